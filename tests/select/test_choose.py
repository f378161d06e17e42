"""Quotas, near-duplicates, rows without scores: what is kept and why."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.errors import DataError, OptionError
from whence.select.amounts import Amount, Quota, most_by_source, parse_amount, parse_quota
from whence.select.choose import Rule, choose, choose_by_value

VALUES = np.array([5.0, 1.0, 4.0, np.nan, 3.0, 2.0, 6.0])
SOURCES = ("a", "a", "b", "b", "b", "a", "b")


def kept(rule: Rule, values=VALUES, sources=SOURCES, groups=None) -> list[int]:
    return np.flatnonzero(choose_by_value(values, rule, sources=sources, groups=groups).kept).tolist()


@pytest.mark.parametrize(
    ("text", "amount"),
    [("10%", Amount(share=0.1)), ("0.1", Amount(share=0.1)), ("500", Amount(count=500)), (0.5, Amount(share=0.5)),
     (1, Amount(count=1)), ("100%", Amount(share=1.0)), ("12.5 %", Amount(share=0.125)), ("0", Amount(share=0.0))],
)  # fmt: skip
def test_amounts_as_people_write_them(text, amount):
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", ["", "ten", "-1", "1.5", "101%", "nan", "inf", "5%%"])
def test_what_is_no_amount(text):
    with pytest.raises(OptionError, match="a share or a count"):
        parse_amount(text)


def test_shares_and_counts():
    assert [Amount(share=s).of(30) for s in (0, 0.001, 0.1, 0.5, 1)] == [0, 1, 3, 15, 30]
    assert [Amount(count=c).of(30) for c in (1, 30, 99)] == [1, 30, 30]
    assert (str(Amount(share=0.125)), str(Amount(count=5000))) == ("12.5 %", "5,000")


def test_the_most_helpful_are_kept():
    assert kept(Rule(keep=Amount(count=3))) == [0, 2, 6]
    assert kept(Rule(keep=Amount(share=0.5))) == [0, 2, 4, 6]  # of all seven rows


def test_the_least_helpful_are_left_out_and_the_unknown_stay():
    assert kept(Rule(drop=Amount(count=2))) == [0, 2, 3, 4, 6]
    assert kept(Rule(drop=Amount(count=2), unscored="drop")) == [0, 2, 4, 6]
    assert kept(Rule(keep=Amount(count=1), unscored="keep")) == [3, 6]
    reasons = choose_by_value(VALUES, Rule(drop=Amount(count=2)), sources=SOURCES).reasons
    assert reasons[3] == "kept: not scored" and reasons[1] == "below the cut"


def test_ties_go_to_the_earlier_row():
    assert kept(Rule(keep=Amount(count=2)), np.ones(7)) == [0, 1]


def test_one_of_a_group_of_near_duplicates():
    groups = {0: "alike-1", 6: "alike-1", 2: "alike-2", 4: "alike-2"}
    assert kept(Rule(keep=Amount(count=3), diverse=1), groups=groups) == [2, 5, 6]
    assert kept(Rule(keep=Amount(count=3), diverse=2), groups=groups) == [0, 2, 6]
    assert kept(Rule(keep=Amount(count=3)), groups=groups) == [0, 2, 6]
    # with drop: the two least helpful, and the two duplicates besides
    assert kept(Rule(drop=Amount(count=2), diverse=1, unscored="drop"), groups=groups) == [2, 6]
    reasons = choose_by_value(VALUES, Rule(keep=Amount(count=3), diverse=1), sources=SOURCES, groups=groups).reasons
    assert reasons[0] == "near-duplicate of alike-1"


def test_quotas():
    assert kept(Rule(keep=Amount(count=4), quota=Quota("even"))) == [0, 2, 5, 6]
    assert kept(Rule(keep=Amount(count=4), quota=parse_quota(["b=1"]))) == [0, 1, 5, 6]
    assert kept(Rule(keep=Amount(count=2), quota=parse_quota(["b=50%"]))) == [0, 6]
    with pytest.raises(OptionError, match="a source of these rows"):
        kept(Rule(keep=Amount(count=4), quota=parse_quota(["c=1"])))
    with pytest.raises(OptionError, match="even, proportional"):
        parse_quota(["even", "b=1"])


def test_dealt_evenly_and_in_proportion():
    have = {"a": 2, "b": 10, "c": 90}
    assert most_by_source(Quota("even"), have, 30) == {"a": 2, "b": 10, "c": 18}
    assert most_by_source(Quota("proportional"), have, 51) == {"a": 1, "b": 5, "c": 45}
    assert most_by_source(Quota(), have, 51) == have


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 100), st.sampled_from(["even", "proportional"])
)
def test_dealing_out_neither_loses_nor_invents(rows, count, spread):
    have = {str(n): r for n, r in enumerate(rows)}
    given_ = most_by_source(Quota(spread), have, count)
    assert sum(given_.values()) == min(count, sum(rows))
    assert all(0 <= given_[s] <= have[s] for s in have)
    if spread == "even":  # nobody who has more to give gives less than another, beyond the odd one
        open_ = [given_[s] for s in have if given_[s] < have[s]]
        assert not open_ or max(given_.values()) - min(open_) <= 1


def test_bids_is_an_order_not_a_value():
    table = np.random.default_rng(1).normal(size=(3, 20))
    found = choose(table, ("a", "b", "c"), Rule(keep=Amount(count=5), balance="bids"), sources=["s"] * 20)
    assert found.kept.sum() == 5
    assert sorted(found.values[found.kept].tolist()) == [-5, -4, -3, -2, -1]
    capped = choose(
        table, ("a", "b", "c"), Rule(keep=Amount(count=6), balance="bids", quota=Quota("even")),
        sources=["s", "t"] * 10,
    )  # fmt: skip
    assert Counter(np.array(["s", "t"] * 10)[capped.kept].tolist()) == {"s": 3, "t": 3}


def test_rules_that_cannot_be():
    with pytest.raises(OptionError, match="both keep and drop"):
        Rule(keep=Amount(count=1), drop=Amount(count=1))
    with pytest.raises(OptionError, match="neither"):
        Rule()
    with pytest.raises(DataError, match="no row has a score"):
        choose_by_value(np.full(2, np.nan), Rule(keep=Amount(count=1)), sources=("a", "b"))
    with pytest.raises(DataError, match="3 sources for 7 rows"):
        choose_by_value(VALUES, Rule(keep=Amount(count=1)), sources=("a", "b", "c"))
