"""Numbers as people read them, and what is said of trust, of sizes and of what is missing."""

from __future__ import annotations

import math

import pytest

from whence.report import words
from whence.report.records import Distribution, Line, Ranking


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (math.nan, "unknown"), (-math.inf, "unknown"), (3.14159e-5, "3.14e-05"), (1e-4, "0.000100"),
        (0.01321, "0.0132"), (12.44, "12.4"), (1234.5, "1,234"), (999_999.0, "999,999"), (1e6, "1.00e+06"),
        (-0.5, "-0.500"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (0.0009, "<0.1 %"), (0.001, "0.1 %"), (0.0044, "0.4 %"), (0.05, "5 %"), (0.0999, "10.0 %"),
     (0.31, "31 %"), (1.0, "100 %")],
)  # fmt: skip
def test_percents(share: float, shown: str) -> None:
    assert words.percent(share) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.25, "0.25"), (0.0, "0.00"), (0.0049, "0.005"), (-0.001, "-0.001"), (0.005, "0.01"), (99.994, "99.99"),
        (100.0, "100"), (1234567.0, "1.23e+06"), (None, "–"), (True, "yes"), (False, "no"), (9999, "9999"),
        (10_000, "10,000"), (math.nan, "unknown"), ("text", "text"), ((1, None, "a"), "1, –, a"),
        (tuple(range(9)), "9: 0, 1, 2, 3, 4, 5, 6, 7 …"),
    ],
)  # fmt: skip
def test_cells(value: object, shown: str) -> None:
    assert words.cell(value) == shown


def test_signs_are_true_ones() -> None:
    assert [words.signed(v) for v in (1.5, 0.0, -1.5)] == ["+1.50", "0", "−1.50"]


def ranking(*effects: float, scored: int = 0) -> Ranking:
    """Lines of these removal effects, best first."""
    lines = tuple(Line(n, n + 1, e, e, 0.0, 0.0) for n, e in enumerate(effects))
    up, down = [e for e in effects if e > 0], [e for e in effects if e < 0]
    return Ranking(lines, scored or len(lines), True, sum(up), -sum(down), len(up), len(down))


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (0.0005, "by 0.000500 nats."),  # too small to be put as a probability
        (0.0011, "by 0.00110 nats, which makes the label about 0.1 % less likely."),
        (0.693, "about 50 % less likely."),
        (0.71, "so large a change is more than a first-order estimate can promise, so read the order."),
    ],
)
def test_an_effect_is_put_as_a_probability_where_that_may_be_believed(effect: float, said: str) -> None:
    told = words.answer(ranking(effect, -0.1), ["a", "b"], "label")
    assert told.startswith("Training row a supports this label most: without it, the label's loss is predicted to rise")
    assert f"{said} Row b works most against it (−0.100 nats)." in told


def test_an_answer_without_a_side() -> None:
    assert (
        words.answer(ranking(0.0), ["a"], "text") == "No training row moves this text: every score is zero or missing."
    )
    assert words.answer(ranking(-0.5), ["a"], "text").startswith("No training row supports this text. Row a works most")


@pytest.mark.parametrize(
    ("validation", "level", "said"),
    [
        (None, "not validated", "Nobody has compared"),
        ({}, "not validated", "Nobody has compared"),
        ("not validated", "not validated", "Nobody has compared"),
        ("Not yet", "not validated", "Nobody has compared"),
        ("LDS 0.4 on 64 models.", "validated", "LDS 0.4 on 64 models. They see 50 % of the model's parameters."),
        ({"LDS": 0.41, "models": 64}, "validated", "Validated on this model: LDS 0.4100, models 64."),
    ],
)
def test_what_counts_as_evidence(validation: object, level: str, said: str) -> None:
    found = words.trust({"validation": validation, "coverage": 0.5})
    assert found.level == level and found.sentence.startswith(said)
    assert found.sentence.endswith("They see 50 % of the model's parameters.")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "50 %"), ({"share": 0.25}, "25 %"), ({"covered": 1}, "100 %"), ({"other": 1}, ""), (1.5, ""), (True, ""),
     ("most of it", "most of it"), (None, "")],
)  # fmt: skip
def test_how_much_is_covered(value: object, said: str) -> None:
    assert words.coverage({"coverage": value}) == said


def test_unrolled_scores_do_not_move_with_a_damping() -> None:
    def told(method: str) -> str:
        return " ".join(words.limits({"method": method}, True, 0))

    assert "moves with the damping" in told("ekfac") and "damping" not in told("unrolled")


def test_limits_say_what_was_left_out() -> None:
    said = words.limits({"coverage": 0.1, "warnings": ["mind the gap"]}, False, 1)
    assert "Only the layers listed under provenance take part: 10 % of the parameters." in said
    assert "Only the strongest rows were kept while streaming; shares are of those rows." in said
    assert "1 row could not be used and have no score." in said and said[-1] == "mind the gap"
    assert words.limits({"warnings": "one"}, True, 2)[-2:] == ("2 rows could not be used and have no score.", "one")


def spread(median: float, **changes: object) -> Distribution:
    given = {"edges": (), "counts": (), "cumulative": (), "lorenz": (), "survival": (), "gini": 0.0, "top_10": 0.6,
             "top_1_percent": 0.1, "half_in": 1, "median": median, "tail": None}  # fmt: skip
    return Distribution(**{**given, **changes})


def test_how_concentrated_it_is() -> None:
    one = words.concentration(ranking(1.0, -0.5), spread(0.25))
    assert one == (
        "The only proponent carries 60 % of all positive influence; half of it sits in 1 row. The median row has "
        "+0.250 nats."
    )
    two = words.concentration(ranking(1.0, 0.5, -0.5), spread(0.001, half_in=2), of="theta units")
    assert two.startswith("The 2 strongest of 2 proponents carry 60 %") and "in 2 rows." in two
    assert two.endswith("The median row has almost none.")
    assert words.concentration(ranking(-1.0), spread(0.0)) == "There is no positive influence to share out."
    assert words.concentration(ranking(1.0), None) == "There is no positive influence to share out."


@pytest.mark.parametrize(
    ("median", "rows", "said"), [(0.2, 20, True), (0.2, 19, False), (0.1, 20, False), (-0.2, 20, True)]
)
def test_a_push_of_all_rows_is_named_from_twenty_on(median: float, rows: int, said: bool) -> None:
    found = words.shared_push(ranking(*[1.0] * 15, *[-0.5] * (rows - 15)), spread(median))
    assert bool(found) == said
    if said:
        side = f"{rows - 15} of 20 rows push against it" if median < 0 else "15 of 20 rows push for it"
        assert found.startswith(f"{side}, the median row with {words.signed(median)}:")


def test_the_summary_names_many_files_shortly() -> None:
    about = {
        "method": "kfac",
        "model": "/models/large/tiny",
        "train": "a/b.jsonl, ./c.jsonl, org/set, d.jsonl, e.jsonl",
    }
    assert words.summarise(about, 1200, 1) == (
        "K-FAC influence of 1,200 training rows (a/b.jsonl, c.jsonl, org/set and 2 more) on 1 question to the model "
        "large/tiny."
    )
    assert words.summarise({}, 3, 2) == "an unnamed method influence of 3 training rows on 2 questions."


@pytest.mark.parametrize(
    ("method", "name"),
    [("ekfac", "EK-FAC"), ("kfac", "K-FAC"), ("identity", "gradient dot product"), ("diagonal", "diagonal Fisher"),
     ("exact", "exact inverse"), ("unrolled", "unrolled (exact metagradient)"), ("their.module", "their.module"),
     ({"name": "kfac", "blocks": 2}, "K-FAC"), ({"method": "exact"}, "exact inverse"), (None, "an unnamed method"),
     ({}, "an unnamed method"), ({"name": {}}, "an unnamed method")],
)  # fmt: skip
def test_methods_have_names(method: object, name: str) -> None:
    assert words.method_name({"method": method}) == name


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"damping": {"spec": "relative:0.1", "value": 3}}, "; damping relative:0.1."),
        ({"damping": {"text": "relative:1", "value": 3}}, "; damping relative:1."),
        ({"damping": {"value": 0.5}}, "; damping 0.5."),
        ({"damping": {"kind": "x"}}, " questions."),
        ({"data": {"path": "x/y/z.jsonl"}}, " rows (z.jsonl) on "),
        ({"train": {"spec": "", "paths": "p.csv"}, "data": "other"}, " rows (p.csv) on "),
        ({"model": {"id": "org/name"}}, " to the model org/name."),
        ({"model": {"path": "~/deep/er/name/"}}, " to the model er/name."),
    ],
)
def test_what_was_asked_for_is_found_under_its_usual_names(about: dict[str, object], said: str) -> None:
    assert said in words.summarise({"method": "kfac", **about}, 10, 2)


def test_facts_stand_in_their_sections_in_order() -> None:
    about = {
        "started": "now", "versions": {"torch": "2"}, "platform": "linux", "rows": 12345, "train": "a", "queries": 2,
        "tokenizer": "t", "coverage": 0.5, "model": {"path": "m"}, "damping": None, "seed": 0, "times": {"fit": True},
        "warnings": ["w"], "command": "c", "validation": {}, "quarantine": [], "train_digest": "d",
        "layers": [{"name": "a", "size": 1}, {"size": 2}],
    }  # fmt: skip
    assert [(f.section, f.name, f.value) for f in words.facts(about)] == [
        ("How it was computed", "damping", "–"), ("How it was computed", "seed", "0"),
        ("How it was computed", "layers · a · size", "1"), ("How it was computed", "layers · 2 · size", "2"),
        ("Model", "tokenizer", "t"), ("Model", "coverage", "0.5000"), ("Model", "path", "m"),
        ("Data", "rows", "12,345"), ("Data", "train", "a"), ("Data", "queries", "2"), ("Data", "train digest", "d"),
        ("Versions", "torch", "2"), ("Versions", "platform", "linux"),
        ("Time and memory", "started", "now"), ("Time and memory", "fit", "yes"),
    ]  # fmt: skip


def test_facts_of_long_lists_stay_short() -> None:
    found = {f.name: (f.section, f.value) for f in words.facts({"tokens": list(range(20)), "seconds": {"fit": 1.5}})}
    assert found["tokens"] == ("How it was computed", "20: 0, 1, 2, 3, 4, 5, 6, 7 …")
    assert found["seconds · fit"] == ("Time and memory", "1.500")
