"""As many threads as asked for, and as before again, however the work ends."""

from __future__ import annotations

import pytest
import torch

from whence.linalg.threads import threads


def test_as_many_as_asked_for_and_as_before_again() -> None:
    before = torch.get_num_threads()
    with threads(before + 2):
        assert torch.get_num_threads() == before + 2
        with threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_a_failure_leaves_them_as_they_were() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
