"""The plain record of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from whence.errors import DataError
from whence.evaluate.outcome import FORMAT, Chart, Curve, Outcome
from whence.store import atomic


def test_outcome_becomes_json():
    chart = Chart("t", "x", "y", (Curve("a", (0.0, 1.0), (np.nan, 1.0), (0.0, 0.5), (1.0, 1.5)),))
    found = Outcome("lds", "title", ("a", "b"), ((1, "x"),), (chart,), {"v": np.arange(3)}, ("said",), {"seed": 0})
    read = json.loads(json.dumps(atomic.plain(found.to_dict()), allow_nan=False))
    assert read["format"] == FORMAT and read["values"]["v"] == [0, 1, 2]
    assert read["charts"][0]["curves"][0]["y"] == [None, 1.0] and read["rows"] == [[1, "x"]]


def test_shapes_are_checked():
    with pytest.raises(DataError):
        Outcome("lds", "title", ("a", "b"), ((1,),))
    with pytest.raises(DataError):
        Curve("a", (1.0, 2.0), (1.0,))
    with pytest.raises(DataError):
        Curve("a", (1.0,), (1.0,), low=(0.5,))
