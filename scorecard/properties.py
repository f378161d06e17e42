# ruff: noqa: E501 - a table
"""R1 to R24: what each promises, and how it is counted in the two modes (``pr`` and ``full``)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scorecard import measures
from scorecard.families import BROWSER, CHAT, CLI, FAMILIES, FAULTS, FUZZ, INDEX, LOADING, SAFETY, TEXT
from scorecard.outcome import Outcome, counted, not_run
from scorecard.tests_run import Cases, together

GOLDEN = Path(__file__).with_name("messages.json")
WANTED_CASES = 120
THINNED = {"every": 16, "really": 90}  # of the large workload in the counts of every change
OTHER_ERRORS = ("EIO", "EACCES", "EMFILE")


@dataclass(frozen=True)
class Card:
    """How this run counts.

    Attributes:
        full: nightly counts rather than those of every change.
        found: tests by name.
        plans: a comparison of plans with jobs, if one was recorded.
        covered: coverage of R23, if it was counted before.
    """

    full: bool
    found: Mapping[str, Cases]
    plans: Path | None
    covered: Path | None = None


@dataclass(frozen=True)
class Property:
    """One line.

    Attributes:
        id: R1 ... R24.
        promise: what holds.
        target: the number that is wanted.
        count: how it is counted.
        tests: names that it needs from the run of tests.
    """

    id: str
    promise: str
    target: str
    count: Callable[[Card], Outcome]
    tests: Sequence[str] = ()


def _names(*groups: str) -> tuple[str, ...]:
    return tuple(f"{g.partition('::')[0]}::{name}" for g in groups for name in g.partition("::")[2].split())


def _by_tests(names: Sequence[str], *, missing: str = "") -> Callable[[Card], Outcome]:
    def count(card: Card) -> Outcome:
        cases, failed, absent = together(names, card.found)
        left = "; ".join(filter(None, (missing, f"no passing case of {', '.join(absent)}" if absent else "")))
        return counted(f"{cases - failed} of {cases} cases in {len(names)} tests", cases, failed, missing=left)

    return count


def _sweep(where: str, what: str, **full: Any) -> Callable[[Card], Outcome]:
    """A sweep of tests/reliability; what is not built yet is not run."""
    return lambda card: _swept(where, what, **full)


def _swept(where: str, what: str, **counts: Any) -> Outcome:
    if importlib.util.find_spec(f"reliability.{where}") is None:
        return not_run(f"tests/reliability/{where}.py is not built")
    work = getattr(importlib.import_module(f"reliability.{where}"), what, None)
    if work is None:
        return not_run(f"reliability.{where}.{what} is not built")
    with measures.scratch() as place:
        found = work(place, **counts)
    said = f"{found.tried - found.failed} of {found.tried}: {found.what}"
    return counted(said, found.tried, found.failed, facts=dict(found.facts))


def _together(*parts: Outcome) -> Outcome:
    """Several counts under one number."""
    ran = [part for part in parts if part.status != "not run"]
    missing = "; ".join(part.missing for part in parts if part.missing)
    facts = {str(n): part.facts for n, part in enumerate(parts)}
    said = "; ".join(part.measured for part in ran)
    return counted(said, sum(p.cases for p in ran), sum(p.failed for p in ran), missing=missing, facts=facts)


def _families(card: Card) -> Outcome:
    """R1: every family has a test, every named test exists and passes."""
    cases, failed, absent = together([t for f in FAMILIES.values() for t in f.tests], card.found)
    held, gaps = 0, []
    for name, family in FAMILIES.items():
        whole = family.tests and all(card.found.get(test, Cases()).held for test in family.tests)
        held += bool(whole)
        if not whole:
            gaps.append(f"{name} ({family.fault})")
    said = f"{held} of {len(FAMILIES)} families, {cases} cases, {cases - failed} pass"
    missing = f"without a passing test: {', '.join(gaps)}" if gaps else ""
    missing += f" fewer than {WANTED_CASES} cases" if cases < WANTED_CASES else ""
    return counted(said, cases, failed, missing=missing.strip(), facts={"absent": absent, "gaps": gaps})


def _same(card: Card) -> Outcome:
    counts = (1, 2, 3, 4) if card.full else (1, 2, 4)
    return _together(_rerun(), _swept("crews", "same_bytes", counts=counts))


def _rerun() -> Outcome:
    one, two = (measures.scores(measures.rows()).values.tobytes() for _ in range(2))
    return counted("a second run is bitwise the first", 1, int(one != two))


def _ranks(card: Card) -> Outcome:
    few: dict[str, Any] = {} if card.full else {"kinds": ("kill", "stop"), "phases": ("in the shards",)}
    missing = "" if card.full else "other deaths and phases (nightly)"
    dead, overtaken = _swept("crews", "rank_death", **few), _swept("crews", "thawed", every=1 if card.full else 5)
    paused = _swept("crews", "paused", times=10 if card.full else 3)
    return _together(replace(dead, missing=dead.missing or missing), overtaken, paused)


def _cover(card: Card) -> Outcome:
    """R23: branches that the tests take, then the mutants that they notice."""
    if importlib.util.find_spec("coverage") is None:
        return not_run("branch coverage and mutation score (coverage is not installed)")
    return importlib.import_module("scorecard.tested").measured(400 if card.full else 0, card.covered)


REPORT = _names(
    BROWSER + "test_ten_thousand_rows_are_quick_to_open test_keyboard_alone test_axe_finds_nothing_serious "
    "test_hostile_texts_stay_texts",
    "tests/report/test_html.py::test_a_few_thousand_rows_stay_small test_no_address_and_no_sink",
)
INJECTION = _names(
    BROWSER + "test_hostile_texts_stay_texts test_export_is_formula_safe",
    TEXT
    + "test_nothing_hostile_reaches_the_terminal test_formulas_are_disarmed test_csv_is_safe_and_numbers_stay_numbers",
    "tests/cli/test_trace.py::test_hostile_text_reaches_no_terminal",
    "tests/report/test_evaluation.py::test_hostile_texts_stay_texts test_in_a_browser_nothing_happens_but_the_page",
    "tests/store/test_run.py::test_a_manifest_cannot_point_outside",
)
NO_CODE = _names(
    LOADING + "test_a_malicious_pickle_never_runs test_pickled_weights_are_refused_unless_allowed "
    "test_remote_code_never_runs_by_itself",
    SAFETY + "test_no_unsafe_serialisers test_no_call_that_runs_data test_numpy_files_are_read_without_pickle",
    CHAT + "test_a_template_without_end_is_stopped test_a_template_that_raises_fails_the_row_alone",
    FUZZ + "test_files_of_every_kind",
    "tests/formats/test_formats.py::test_a_sealed_but_hostile_index_is_refused",
)
BOUNDED = _names(FAULTS + "test_a_200_mb_line_costs_little_memory test_a_gzip_bomb_is_stopped test_hostile_lists")
MISMATCH = _names(INDEX + "test_another_plan_is_refused_by_field test_a_changed_model_or_tokenizer_is_refused")
SLOW = _names(
    "tests/gradients/test_capture.py::test_equals_the_for_loop test_lora_matrices_equal_the_for_loop "
    "test_convolutions_equal_the_for_loop",
    "tests/laws/test_matrix_batch.py::test_dot_is_the_frobenius_product_on_every_route "
    "test_full_is_the_sum_of_outer_products test_squared_norm_is_the_diagonal_of_dot",
    "tests/curvature/test_kronecker.py::test_agrees_with_curvlinops test_equals_the_dense_inverse_where_theory_is_exact",
    "tests/curvature/test_solvers.py::test_converged_methods_are_the_dense_inverse "
    "test_block_diagonal_is_the_dense_inverse_of_the_blocks",
    "tests/laws/test_methods.py::test_streaming_top_k_is_the_top_of_all_scores",
    "tests/laws/test_operators.py::test_whitened_dot_products_are_the_operator test_power_minus_one_is_the_damped_inverse",
)
FORMATS = _names("tests/formats/test_formats.py::test_a_kept_run_is_still_read test_a_kept_index_still_answers")
MESSAGES = _names(
    CLI + "test_errors_as_records test_debug_shows_the_traceback test_a_bug_leaves_a_file_and_no_traceback"
)
PLANS = _names("tests/test_planning.py::test_an_index_has_the_bytes_that_were_foreseen "
               "test_a_trace_reads_the_rows_that_were_foreseen_and_writes_that_much")  # fmt: skip

PROPERTIES: Sequence[Property] = (
    Property("R1", "every fault family has tests", "59 of 59 families, at least 120 cases", _families,
             [t for f in FAMILIES.values() for t in f.tests]),
    Property("R2", "killed at any moment, nothing is lost", "every commit point and 50 random kills: 0 differences, at "
             "most one shard made again", lambda card: _together(
                 _swept("sweeps", "kill_at_every_point", size="small"),
                 _swept("sweeps", "kill_at_every_point", size="full", **({} if card.full else THINNED)),
                 _swept("sweeps", "kill_at_random", count=1000 if card.full else 50),
                 _swept("traces", "traces_killed", **({} if card.full else {"every": 24, "really": 150})),
                 _swept("traces", "traces_told_to_stop"))),
    Property("R3", "writes that fail", "every write, four errors: typed error, resume equal", lambda card: _together(
        _swept("sweeps", "failing_writes"),
        _swept("sweeps", "failing_writes", errors=OTHER_ERRORS,
               **({} if card.full else {"kinds": ("once",), "every": 2})),
        _swept("traces", "traces_starved", every=1 if card.full else 24))),
    Property("R4", "faults during repair and resume", "0 differences in 20 (200)",
             lambda card: _swept("damage_sweeps", "compound", count=200 if card.full else 20)),
    Property("R5", "power loss", "0 violations in 100 (1000) orders",
             lambda card: _swept("damage_sweeps", "power_loss", orders=1000 if card.full else 100)),
    Property("R6", "damage is found before use", "2,000 flips and 256 truncations (10,000): all",
             lambda card: _swept("damage_sweeps", "corruption", flips=10_000 if card.full else 2000, truncations=256)),
    Property("R7", "hostile files: typed errors, good rows kept", "0 escapes in 20,000 (1,000,000), 2 s and 512 MB a case",
             lambda card: measures.fuzz(1_000_000 if card.full else 20_000)),
    Property("R8", "a bad row changes no other", "bitwise, every place x 6 faults",
             lambda card: measures.poisoned_rows(1)),
    Property("R9", "same plan, same bytes", "rerun, 1/2/4 ranks, resume: bitwise", _same),
    Property("R10", "other batches, order, threads", "float64 1e-12, float32 1e-5, bf16 2e-2 (gradient products); Spearman 0.9999, bf16: 0.95 of the top 20",
             lambda card: measures.invariance()),
    Property("R11", "out of memory: that batch is split", "30 schedules: every row once", lambda card: _swept(
        "damage_sweeps", "memory_backoff", schedules=30)),
    Property("R12", "a dead or silent rank", "no hang, named within 60 s", _ranks),
    Property("R13", "several processes on one folder", "10 builders and 200 reads (50 / 1000): 0 partial reads",
             lambda card: _swept("crews", "races", builders=50 if card.full else 10, reads=1000 if card.full else 200)),
    Property("R14", "an index of something else is refused", "every fingerprinted field, named", lambda card: _together(
        _by_tests(MISMATCH)(card), _swept("damage_sweeps", "mismatch")), MISMATCH),
    Property("R15", "text stays text", "0 dialogs, requests, escapes, formulas", _by_tests(INJECTION), INJECTION),
    Property("R16", "nothing in data runs", "0 of 30 and more", lambda card: _together(
        _by_tests(NO_CODE)(card), _swept("damage_sweeps", "hostile_manifests", count=200)), NO_CODE),
    Property("R17", "bounded resources", "400 MB above the model, nothing left open", lambda card: _together(
        _by_tests(BOUNDED)(card), measures.many_tiny_rows(1_000_000 if card.full else 100_000)), BOUNDED),
    Property("R18", "the plan is right", "disk 10 %, memory 20 %, time 25 % on three shapes", lambda card: _together(
        _by_tests(PLANS)(card), measures.estimates(card.plans)), PLANS),
    Property("R19", "fast paths equal slow ones", "float64 within 1e-9", _by_tests(SLOW), SLOW),
    Property("R20", "the report", "10,000 rows in 2 s, keyboard, axe, offline", _by_tests(REPORT), REPORT),
    Property("R21", "errors are for people", "all as reviewed: cause, next step, at most 12 lines", lambda card: _together(
        measures.messages(GOLDEN), _by_tests(MESSAGES)(card)), MESSAGES),
    Property("R22", "old folders are read", "runs and indexes of every kept format", _by_tests(
        FORMATS, missing="nothing was released yet: the kept format is today's"), FORMATS),
    Property("R23", "coverage of storage, loader and report", "95 % of branches, 80 % of mutants", _cover),
    Property("R24", "no bug closed without a test that failed first", "0", lambda card: not_run(
        "needs a list of closed bugs; there is no release yet")),
)  # fmt: skip
