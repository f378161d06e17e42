"""A bank is resumed, grows, is refused when it does not match, and is read by `whence damping`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whence.errors import DataError, OptionError, StoreError
from whence.evaluate.bank import Given, Plan, member_name, open_bank, parse_subsets, read_bank, train_members
from whence.evaluate.command import CommandTrainer
from whence.evaluate.trainers import FunctionTrainer

ROWS, QUERIES = [f"r{n}" for n in range(12)], ["a", "b"]
PLAN = Plan(12, 5, repeats=2)


class Counting:
    """A trainer that says what it was asked; fails at the given member."""

    def __init__(self, rate: float = 0.1, at_once: int = 3, fail_at: int = 10**6) -> None:
        self.rate, self.at_once, self.fail_at, self.asked = rate, at_once, fail_at, 0

    def fingerprint(self):
        return {"rate": self.rate, "task": {"name": "made up"}}

    def losses(self, kept_KN, seeds):
        self.asked += len(kept_KN)
        if self.asked > self.fail_at:
            raise KeyboardInterrupt
        return np.stack([[kept @ np.arange(12.0), seed] for kept, seed in zip(kept_KN, seeds, strict=True)])


def opened(folder, plan=PLAN, trainer=None, train_ids=ROWS, query_ids=QUERIES):
    return open_bank(folder, plan, trainer or Counting(), train_ids=train_ids, query_ids=query_ids)


@pytest.mark.parametrize("folder", ["bank", None])
def test_members_and_their_losses(tmp_path, folder) -> None:
    told: list[tuple[int, int]] = []
    bank = opened(folder and tmp_path / folder)
    assert np.isnan(bank.losses_MRQ).all()
    assert train_members(bank, Counting(), lambda *said: told.append(said)) == 10
    kept = PLAN.kept_MN
    wanted = np.stack([np.stack([kept @ np.arange(12.0), np.full(5, seed)], 1) for seed in (0, 1)], axis=1)
    np.testing.assert_array_equal(bank.losses_MRQ, wanted)
    assert told == [(0, 10), (3, 10), (6, 10), (9, 10), (10, 10)]
    assert train_members(bank, Counting()) == 0


def test_an_interrupted_bank_goes_on_where_it_was(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_members(opened(tmp_path / "b"), Counting(fail_at=7))
    again = Counting()
    assert train_members(opened(tmp_path / "b"), again) == 4 == again.asked
    whole = opened(None)
    train_members(whole, Counting())
    np.testing.assert_array_equal(opened(tmp_path / "b").losses_MRQ, whole.losses_MRQ)


def test_a_bank_grows(tmp_path) -> None:
    train_members(opened(tmp_path / "b"), Counting())
    larger = opened(tmp_path / "b", replace(PLAN, subsets=7, repeats=3))
    np.testing.assert_array_equal(larger.losses_MRQ[:5, :2], opened(tmp_path / "b").losses_MRQ)
    assert train_members(larger, Counting()) == 7 * 3 - 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trainer": Counting(rate=0.2)}, "recipe.rate: 0.1, now 0.2"),
        ({"plan": replace(PLAN, seed=1)}, "plan.seed: 0, now 1"),
        ({"plan": replace(PLAN, kind="drop", amount=2)}, "plan.kind: 'keep', now 'drop'; plan.amount: 0.5, now 2"),
        ({"train_ids": [*ROWS[:11], "new"]}, "train_ids: 12, now 12, first other one 'new'"),
        ({"query_ids": ["a"]}, "query_ids: 2, now 1"),
    ],
)
def test_a_bank_that_does_not_match_is_refused(tmp_path, change, named) -> None:
    opened(tmp_path / "b")
    with pytest.raises(StoreError) as refused:
        opened(tmp_path / "b", **change)
    assert named in str(refused.value)


def test_foreign_and_damaged_folders(tmp_path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        opened(tmp_path / "foreign")
    bank = opened(tmp_path / "b")
    with pytest.raises(StoreError, match="no trained member"):
        read_bank(tmp_path / "b")
    train_members(bank, Counting())
    path = next((tmp_path / "b" / "members").glob("*.npz"))
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name].tobytes() for name in ("losses", "kept", "seed")}
    for part in arrays.values():
        data = bytearray(whole)
        data[whole.index(part)] ^= 0xFF
        path.write_bytes(bytes(data))
        with pytest.raises(StoreError, match="damaged"):
            _ = bank.losses_MRQ
    path.write_bytes(b"half")
    with pytest.raises(StoreError, match="damaged"):
        _ = bank.losses_MRQ
    (tmp_path / "b" / "bank.json").write_text(json.dumps({"format": "whence bank 99"}))
    with pytest.raises(StoreError, match="another format"):
        opened(tmp_path / "b")


def test_plans() -> None:
    assert (PLAN.kept_MN.sum(1) == 6).all() and len({member_name(k, 0) for k in PLAN.kept_MN}) == 5
    dropped = Plan(12, 4, kind="drop", amount=2)
    assert (dropped.kept_MN.sum(1) == 10).all()
    np.testing.assert_array_equal(replace(PLAN, subsets=9).kept_MN[:5], PLAN.kept_MN)
    assert parse_subsets("half") == ("keep", 0.5) and parse_subsets("drop:10") == ("drop", 10)
    for wrong in ({"subsets": 0}, {"amount": 0.0}, {"amount": 1.0}, {"kind": "drop", "amount": 12}):
        with pytest.raises(OptionError):
            replace(PLAN, **wrong)
    for text in ("quarter", "keep:", "drop:x"):
        with pytest.raises(OptionError):
            parse_subsets(text)
    with pytest.raises(DataError, match="subsets of 12 rows"):
        opened(None, train_ids=ROWS[:5])


def test_chosen_subsets_share_a_folder(tmp_path) -> None:
    kept = np.ones((2, 12), dtype=bool)
    kept[1, 3] = False
    train_members(opened(tmp_path / "b", Given(kept[:1], (0,))), Counting())
    both = Counting()
    assert train_members(opened(tmp_path / "b", Given(kept, (0,))), both) == 1


def test_what_damping_reads(tmp_path) -> None:
    bank = opened(tmp_path / "b")
    train_members(bank, Counting())
    train_ids, query_ids, kept, losses = read_bank(tmp_path / "b")
    assert train_ids == tuple(ROWS) and query_ids == tuple(QUERIES)
    order = [int(np.flatnonzero((PLAN.kept_MN == k).all(1))[0]) for k in kept]
    assert sorted(order) == list(range(5))
    np.testing.assert_array_equal(losses, bank.losses_MRQ.mean(1)[order])


SCRIPT = """
import json, sys
rows, ids, seed, out = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(rows)]
assert [json.loads(line)["id"] for line in open(rows)] == open(ids).read().split()
if seed == "9":
    sys.exit("no such seed")
json.dump({"a": len(texts) + int(seed), "b": texts.count("x; rm -rf $HOME")}, open(out + "/losses.json", "w"))
"""


def test_the_users_command(tmp_path) -> None:
    script = tmp_path / "train me.py"
    script.write_text(SCRIPT)
    rows = [(id_, {"text": "x; rm -rf $HOME"}) for id_ in ROWS]
    command = f"{sys.executable} '{script}' {{rows}} {{ids}} {{seed}} {{out}}"
    trainer = CommandTrainer(command, rows, QUERIES)
    found = trainer.losses(PLAN.kept_MN[:2], [3, 4])
    np.testing.assert_array_equal(found, [[9, 6], [10, 6]])
    with pytest.raises(OptionError, match="code 1: no such seed"):
        trainer.losses(PLAN.kept_MN[:1], [9])
    with pytest.raises(DataError, match="no loss for query 'c'"):
        replace(trainer, query_ids=["a", "c"]).losses(PLAN.kept_MN[:1], [0])
    with pytest.raises(OptionError, match=r"has no \{out\}"):
        replace(trainer, command="python train.py {rows}").losses(PLAN.kept_MN[:1], [0])
    with pytest.raises(OptionError, match="cannot run"):
        replace(trainer, command="/no/such/program {rows} {out}").losses(PLAN.kept_MN[:1], [0])
    other = replace(trainer, rows=[(ROWS[0], {"text": "other"}), *rows[1:]])
    assert other.fingerprint() != trainer.fingerprint()


def test_a_command_that_leaves_a_model(tmp_path) -> None:
    def price(folder: Path) -> dict[str, float]:
        return {"a": 1.0, "b": float(len(list(folder.iterdir())))}

    trainer = CommandTrainer(f"{sys.executable} -c pass {{rows}} {{out}}", [(i, {}) for i in ROWS], QUERIES, price)
    np.testing.assert_array_equal(trainer.losses(PLAN.kept_MN[:1], [0]), [[1, 0]])
    with pytest.raises(DataError, match=r"left no losses\.json"):
        replace(trainer, price=None).losses(PLAN.kept_MN[:1], [0])


def test_a_trainer_with_the_wrong_number_of_losses(tmp_path) -> None:
    wrong = FunctionTrainer(lambda kept, seed: np.zeros(3), {})
    with pytest.raises(DataError, match="one per query"):
        train_members(opened(None, trainer=wrong), wrong)
