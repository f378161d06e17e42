"""Codes of rows: every fast path against its plain twin, the budget kept to the byte, and what may not be lost."""

from __future__ import annotations

import pytest
import torch

from whence.errors import OptionError, StoreError
from whence.linalg.codes import gaps, levels
from whence.linalg.codes.base import Layout, encoded, record_bytes
from whence.linalg.codes.choose import SCHEMES, choose, code_of
from whence.linalg.codes.low_rank import truncated
from whence.linalg.codes.sparse import MANY, Sparse, largest

LAYOUT = Layout({"a": (7, 11), "b": (20, 16), "c": (3, 3)})


def rows(count: int, *, total: int = LAYOUT.total, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed rows of very different loudness."""
    drawn = torch.randn(count, total, generator=torch.Generator().manual_seed(seed)) ** 3
    return drawn * torch.logspace(-3, 3, count)[:, None]


def queries(count: int = 4, total: int = LAYOUT.total) -> torch.Tensor:
    return torch.randn(count, total, generator=torch.Generator().manual_seed(99)).double()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("budget", [200, 300, 900])
def test_a_row_takes_what_is_said_and_never_more_than_the_budget(scheme: str, budget: int) -> None:
    try:
        code = choose(LAYOUT, budget, scheme)
    except OptionError:
        assert scheme != "sparse"
        return
    record = encoded(code, rows(5))
    assert record_bytes(record) == code.bytes_per_row <= budget
    assert {name: (t.dtype, t.shape[1]) for name, t in record.items()} == dict(code.fields)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_do_not_depend_on_the_batch_they_are_in(scheme: str) -> None:
    code, x = choose(LAYOUT, 1000, scheme), rows(6)
    together = encoded(code, x)
    for n in range(len(x)):
        alone = encoded(code, x[n : n + 1])
        for field, value in alone.items():
            if scheme == "low_rank":  # batched matrix products may round otherwise; levels move by one at most
                torch.testing.assert_close(value[0].float(), together[field][n].float(), atol=1.01, rtol=1e-4)
            else:
                assert torch.equal(value[0], together[field][n]), field


@pytest.mark.parametrize(("scheme", "budget", "within"), [("fp16", 2000, 5e-4), ("int8", 900, 1e-2)])
def test_dense_codes_are_near_exact(scheme: str, budget: int, within: float) -> None:
    code, x, q = choose(LAYOUT, budget, scheme), rows(8), queries()
    error = (code.dot(encoded(code, x), q) - x.double() @ q.T).abs()
    assert bool((error <= within * x.double().norm(dim=1)[:, None] * q.norm(dim=1)).all())


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("total", [60, 2000, 400_000])
def test_gaps_come_back_as_the_same_positions(width: int, total: int) -> None:
    generator = torch.Generator().manual_seed(total)
    at = torch.stack([torch.randperm(total, generator=generator)[:40] for _ in range(6)])
    at[1, 30:] = -1
    at[2] = -1
    slots = 48
    kept = gaps.kept_within(at, slots, width=width)
    distance, source = gaps.coded(at, kept, slots=slots, width=width)
    place, entry = gaps.positions(distance)
    assert distance.shape == (6, slots) and distance.element_size() == width
    for n in range(6):
        expected = sorted(at[n, : int(kept[n])].tolist())
        assert place[n][entry[n]].tolist() == expected
        assert at[n][source[n][entry[n]]].tolist() == expected
        if int(kept[n]) < int((at[n] >= 0).sum()) and total // 40 < gaps.FILLER[width]:
            assert int(entry[n].sum()) + int((~entry[n][: int(entry[n].nonzero().max())]).sum()) >= slots - 2


def test_log_levels_are_within_half_a_step_and_keep_signs() -> None:
    x = rows(5, total=64)
    nibbles, span = levels.log_levels(x, x != 0)
    back = levels.from_log_levels(levels.unpacked(levels.packed(nibbles)), span)
    assert torch.equal(back.sign(), x.sign())
    half = (span[:, 1:] - span[:, :1]) / levels.STEPS / 2
    assert bool(((back.abs().log() - x.abs().log()).abs() <= half + 1e-5).all())


def test_sparse_keeps_the_strongest_of_all_layers() -> None:
    x, code = rows(9), Sparse(LAYOUT, 60, 1)
    back = code.restored(encoded(code, x))
    for row, kept in zip(x, back, strict=True):
        there = kept != 0
        count = int(there.sum())
        assert 50 <= count <= 60
        assert set(there.nonzero().flatten().tolist()) == set(row.abs().topk(count).indices.tolist())
        assert torch.equal(kept.sign()[there], row.sign()[there])


def test_a_row_of_zeros_and_a_row_with_few_numbers() -> None:
    x = torch.zeros(2, LAYOUT.total)
    x[1, [0, 300, LAYOUT.total - 1]] = torch.tensor([1.0, -2.0, 4.0])
    code = Sparse(LAYOUT, 60, 1)
    back = code.restored(encoded(code, x))
    torch.testing.assert_close(back, x, rtol=0.12, atol=0)
    assert torch.equal(code.dot(encoded(code, x), queries())[0], torch.zeros(4).double())


@pytest.mark.parametrize("count", [1, MANY, MANY + 1])
@pytest.mark.parametrize("slots", [60, LAYOUT.total // 4 * 2])
def test_sparse_products_by_both_routes(count: int, slots: int) -> None:
    x, code, q = rows(9), Sparse(LAYOUT, slots, 1), queries(count)
    record = encoded(code, x)
    plain = code.restored(record).double() @ q.T
    torch.testing.assert_close(code.dot(record, q), plain)
    torch.testing.assert_close(code.gathered(record, q.T.contiguous()), plain)


def test_long_rows_take_wide_distances_and_the_other_route() -> None:
    layout = Layout({"a": (1000, 700)})
    code = choose(layout, 600, "sparse")
    assert isinstance(code, Sparse) and code.width == 2 and layout.total > 64 * code.slots
    x, q = rows(3, total=layout.total), queries(2, layout.total)
    record = encoded(code, x)
    torch.testing.assert_close(code.dot(record, q), code.restored(record).double() @ q.T)


def test_truncated_is_the_best_of_its_rank() -> None:
    x = rows(4)[:, LAYOUT.spans["b"]].view(-1, 20, 16).double()
    u, v = truncated(x, 5, "b")
    left, s, right = torch.linalg.svd(x, full_matrices=False)
    best = (left[:, :, :5] * s[:, None, :5]) @ right[:, :5]
    error, least = ((x - other).flatten(1).norm(dim=1) for other in (u @ v.transpose(1, 2), best))
    assert bool((error <= 1.02 * least).all())


def test_low_rank_product_is_that_of_its_factors() -> None:
    exact = torch.zeros(3, LAYOUT.total)
    for n, span in enumerate(LAYOUT.spans.values()):
        outputs, inputs = list(LAYOUT.sizes.values())[n]
        exact[:, span] = torch.einsum("bo,bi->boi", rows(3, total=outputs), rows(3, total=inputs, seed=1)).flatten(1)
    code, q = choose(LAYOUT, 120, "low_rank"), queries()
    assert code.about["rank"] == 1
    error = (code.dot(encoded(code, exact), q) - exact.double() @ q.T).abs()
    assert bool((error <= 0.02 * exact.double().norm(dim=1)[:, None] * q.norm(dim=1)).all())


def test_a_code_is_made_again_from_what_it_says() -> None:
    for scheme in SCHEMES:
        code = choose(LAYOUT, 1000, scheme)
        again = code_of(LAYOUT, dict(code.about))
        assert again.about == code.about and again.bytes_per_row == code.bytes_per_row
    with pytest.raises(StoreError, match="coded as"):
        code_of(LAYOUT, {"scheme": "pickle"})


def test_auto_keeps_everything_where_it_fits() -> None:
    assert choose(LAYOUT, 2000).about["scheme"] == "fp16"
    assert choose(LAYOUT, 600).about["scheme"] == "int8"
    assert choose(LAYOUT, 200).about["scheme"] == "sparse"
    with pytest.raises(OptionError, match="spars"):
        choose(LAYOUT, 200, "spars")
    with pytest.raises(OptionError, match="bytes a row"):
        choose(LAYOUT, 8, "sparse")


@pytest.mark.parametrize("shape", ["random", "one block", "unseen", "zeros"])
def test_the_largest_are_found_by_a_guess(shape: str) -> None:
    """Also where the sample misleads: everything large in a few places, or almost everything 0."""
    x = rows(3, total=20_000)
    if shape == "one block":
        x[:, 100:1000] *= 1e5
    elif shape == "unseen":
        x[:, ::16] = 0
    elif shape == "zeros":
        x[:, 5:] = 0
    for row in x:
        values, at = map(torch.from_numpy, largest([piece.numpy() for piece in row.split(7000)], 500))
        assert torch.equal(values, row[at]) and len(at.unique()) == 500
        assert torch.equal(values.abs(), row.abs().topk(500).values)


def test_rows_kept_whole_and_rows_cut_layer_by_layer_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout({"a": (100, 70), "b": (64, 128)})
    code, x = choose(layout, 1000, "sparse"), rows(5, total=layout.total)
    whole = encoded(code, x)
    monkeypatch.setattr("whence.linalg.codes.sparse.WHOLE", 0)
    for field, value in encoded(code, x).items():
        assert torch.equal(value, whole[field])
