"""R23, second half: mistakes put into storage, loader and report, and how many of them the tests notice.

python -m scorecard.mutants --count 140 --seed 0 --json FILE     coverage first, then a sample; what survives is listed
python -m scorecard.mutants --covered FILE ...                   with the coverage that an earlier run left
python -m scorecard.mutants --again FILE --json FILE             those that survived once more, after tests were added

What is written to ``scorecard/mutants.json`` is what R23 counts; ``SCORECARD=full`` draws a sample of its own.

A sample of all changes of ``scorecard.mutations``, drawn with a seed. Each mutant is run in a fork of a process that
has torch and the like in memory but nothing of whence, against the tests that run its line and the others of their
files, the quickest first, until one fails. Nothing is written into the working copy. Those that change nothing anybody
could notice are judged by hand and listed with the reason in ``equivalent.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from scorecard import mutant_import, mutations
from scorecard.covered import COVERED, COVERING, ROOT, Covered, covered
from scorecard.tests_run import read_report

SEED = 0
TOLD = 200  # characters of a change that are written down
EQUIVALENT = Path(__file__).with_name("equivalent.json")
BUDGET = 20.0  # seconds of tests against one mutant, as they took without it; at least one test is run
PATIENCE = 3.0, 30.0  # times as long, and seconds more, until it counts as a hang
# no plugins of pytest: those it wants to load itself
LOADED = (
    "torch", "transformers", "datasets", "peft", "safetensors.torch", "pandas", "pyarrow.parquet", "scipy.stats",
    "rich", "typer", "pydantic", "jinja2", "filelock", "bm25s", "PIL.Image", "matplotlib.figure", "numpy.testing",
)  # fmt: skip
MODELS = (
    "LlamaForCausalLM GPT2LMHeadModel MixtralForCausalLM PreTrainedTokenizerFast AutoModelForCausalLM AutoTokenizer"
)


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        file, number, line, kind, before, after: which.
        ended: ``killed``, ``timeout`` (killed), ``survived``, ``no test`` (survived) or ``equivalent``.
        tests: how many were to be run.
        seconds: how long that took.
        why: of an equivalent one.
        by: the test that noticed it; none for one that cannot even be imported, or hangs.
    """

    file: str
    number: int
    line: int
    kind: str
    before: str
    after: str
    ended: str
    tests: int = 0
    seconds: float = 0.0
    why: str = ""
    by: str = ""


def sample(files: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """(file, number of the change), drawn from all changes of all files."""
    every = [(file, n) for file in sorted(files) for n in range(mutations.count((ROOT / file).read_text("utf-8")))]
    return sorted(random.Random(seed).sample(every, min(count, len(every))))


def judged(found: Covered, drawn: Sequence[tuple[str, int]]) -> Iterator[Verdict]:
    """The verdict of each mutant of a sample, as (file, number of the change)."""
    known = {(e["file"], e["before"], e["after"], e["text"]): e["why"] for e in json.loads(EQUIVALENT.read_text())}
    _load()
    with tempfile.TemporaryDirectory() as place:
        _check(found, Path(place))
        for file, number in drawn:
            text = (ROOT / file).read_text("utf-8")
            made = mutations.mutant(text, number)
            stated = text.splitlines()[made.lines[0] - 1].strip()
            which = (file, number, made.lines[0], made.kind, made.before[:TOLD], made.after[:TOLD])
            why = known.get((file, made.before[:TOLD], made.after[:TOLD], stated))
            if why:
                yield Verdict(*which, "equivalent", why=why)
                continue
            tests, within = chosen(found, file, made.lines)
            began = time.monotonic()
            ended, by = "no test", ""
            if tests:
                ended, by = _run(Path(place), file, made.source, tests=tests, within=within)
            yield Verdict(*which, ended, len(tests), round(time.monotonic() - began, 1), by=by)


def chosen(found: Covered, file: str, lines: tuple[int, int]) -> tuple[list[str], float]:
    """Tests for a mistake in these lines, and the seconds that they may take: those that run them, then their files'.

    What is run while importing is in the hands of all tests of the module.
    """
    by_line = found.tests.get(file, {})
    own = {t for line in range(lines[0], lines[1] + 1) for t in by_line.get(line, ())}
    own = own or {t for tests in by_line.values() for t in tests}
    beside = {t for t in found.seconds if t.partition("::")[0] in {o.partition("::")[0] for o in own}} - own
    order = [t for group in (own, beside) for t in sorted(group, key=lambda t: (found.seconds.get(t, 0.0), t))]
    taken, total = [], 0.0
    for test in order:
        total += found.seconds.get(test, 0.0)
        if taken and total > BUDGET:
            break
        taken.append(test)
    times, more = PATIENCE
    return taken, times * sum(found.seconds.get(t, 0.0) for t in taken) + more


def _check(found: Covered, place: Path) -> None:
    """A fork without a mistake passes; else everything would look noticed.

    Raises:
        RuntimeError: it does not.
    """
    quickest = min(found.seconds, key=lambda test: (found.seconds[test], test))
    ended, by = _run(place, "", "", tests=[quickest], within=120.0)
    if ended != "survived":
        raise RuntimeError(f"{quickest} does not pass in a fork without any mistake ({ended} {by})")


def confirmed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Without the credit of tests that fail here without any mistake, too."""
    by = sorted({v.by for v in verdicts if v.by})
    if not by:
        return list(verdicts)
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        _run(Path(place), "", "", tests=by, within=3600.0, more=(f"--junitxml={report}", "--maxfail=1000"))
        good = {name for name, cases in read_report(report).items() if cases.held}
    return [replace(v, ended="survived") if v.by and v.by not in good else v for v in verdicts]


def _load() -> None:
    """What every test imports, but nothing of whence: that must be imported with the mistake in it.

    Raises:
        RuntimeError: whence is there already.
    """
    if "whence" in sys.modules:
        raise RuntimeError("mutants are counted in a process that has not imported whence: python -m scorecard.mutants")
    sys.path.insert(0, str(ROOT / "tests"))
    for name in LOADED:
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in MODELS.split():
        getattr(transformers, name)
    importlib.import_module("torch").set_num_threads(1)


def _run(
    place: Path, file: str, source: str, *, tests: Sequence[str], within: float, more: Sequence[str] = ("-x",)
) -> tuple[str, str]:
    """How a fork with this source for that file ended, and by which test; no file: without any mistake."""
    text, by = place / "mutant.py", place / "by"
    by.unlink(missing_ok=True)
    text.write_text(source, encoding="utf-8")
    (place / "sitecustomize.py").write_text("from scorecard.mutant_import import install\ninstall()\n")
    name = file.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    pid = os.fork()
    if not pid:
        _be(f"{name}={text}" if file else "", place, [*more, *tests])
    until = time.monotonic() + within
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _end(pid)
            ended = "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
            return ended, by.read_text() if by.exists() else ""
        time.sleep(0.02)
    _end(pid)
    os.waitpid(pid, 0)
    return "timeout", ""


def _end(group: int) -> None:
    """Whatever the tests left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _be(mutant: str, place: Path, words: Sequence[str]) -> None:
    """The forked process; does not return."""
    code = 70
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.chdir(ROOT)
        scratch = place / "scratch"
        scratch.mkdir(exist_ok=True)
        os.environ[mutant_import.VARIABLE] = mutant
        os.environ["PYTHONPATH"] = os.pathsep.join((str(place), str(ROOT)))
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those that came with a library would complain
        mutant_import.install(mutant)
        quiet = [
            "-q",
            "-p",
            "xdist",
            "-p",
            "pytest_timeout",
            "-n0",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
            f"--basetemp={scratch}",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            code = int(pytest.main([*quiet, *words], plugins=[_First(place / "by")]))
    finally:
        os._exit(code)


class _First:
    """Writes down which test failed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._path.exists():
            self._path.write_text(report.nodeid.partition("[")[0])


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts, the score in percent, and what survived."""
    ended = [v.ended for v in verdicts]
    killed = ended.count("killed") + ended.count("timeout")
    counted = len(ended) - ended.count("equivalent")
    told = {
        "mutants": len(ended), "killed": killed, "timeouts": ended.count("timeout"),
        "equivalent": ended.count("equivalent"), "score": round(100 * killed / counted, 1) if counted else 0.0,
    }  # fmt: skip
    left = [f"{v.file}:{v.line} {v.kind}: {v.before[:80]} -> {v.after[:80]}" for v in verdicts if _lived(v)]
    return {**told, "survived": left}


def _lived(verdict: Verdict) -> bool:
    return verdict.ended in ("survived", "no test")


def recorded(verdicts: Sequence[Verdict], seed: int) -> dict[str, Any]:
    """What is written down of a sample: the counts, when and at which commit, and what survived."""
    git = ["git", "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    made = {"when": time.strftime("%Y-%m-%d %H:%M"), "commit": commit, "seed": seed}
    return {**made, **summary(verdicts)}


def again(path: Path, found: Covered) -> Iterator[Verdict]:
    """Those that survived an earlier run, judged anew; the others as they were.

    Raises:
        RuntimeError: the code has changed since then, so that they are not the same mistakes any more.
    """
    known = [Verdict(**verdict) for verdict in json.loads(path.read_text())["verdicts"]]
    for verdict in known:
        made = mutations.mutant((ROOT / verdict.file).read_text("utf-8"), verdict.number)
        if (made.before[:TOLD], made.after[:TOLD]) != (verdict.before, verdict.after):
            raise RuntimeError(f"{verdict.file} has changed: draw a new sample")
    left = iter(judged(found, [(v.file, v.number) for v in known if _lived(v)]))
    yield from (next(left) if _lived(verdict) else verdict for verdict in known)


def keep(found: Covered, path: Path) -> None:
    """For ``--covered``."""
    path.write_text(json.dumps(asdict(found)))


def kept(path: Path) -> Covered:
    """As ``keep`` wrote it."""
    told: Mapping[str, Any] = json.loads(path.read_text())
    tests = {file: {int(line): names for line, names in lines.items()} for file, lines in told["tests"].items()}
    return Covered(**{**told, "tests": tests})


def main() -> int:
    """Coverage, then mutants; prints one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=140)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--covered", type=Path, help="Written by an earlier run, or written now.")
    parser.add_argument("--again", type=Path, help="Only those that survived in this file of --json.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.covered and given.covered.is_file():
        found = kept(given.covered)
    else:
        with tempfile.TemporaryDirectory() as place:
            found = covered(COVERED, COVERING, Path(place))
        if given.covered:
            keep(found, given.covered)
    print(f"{found.branches:.1f} % of {found.count:,} branches {found.failed}", flush=True)
    verdicts = []
    if given.again:
        given.seed = json.loads(given.again.read_text())["seed"]  # of the sample that is judged anew
        coming = again(given.again, found)
    else:
        coming = judged(found, sample(list(found.files), given.count, given.seed))
    for verdict in coming:
        verdicts.append(verdict)
        print(f"{verdict.ended:<10} {verdict.seconds:6.1f} s  {verdict.file}:{verdict.line} {verdict.kind}: "
              f"{verdict.before[:70]!r} -> {verdict.after[:70]!r}", flush=True)  # fmt: skip
    verdicts = confirmed(verdicts)
    told = recorded(verdicts, given.seed)
    print(json.dumps({name: value for name, value in told.items() if name != "survived"}))
    if given.json:
        given.json.write_text(json.dumps({**told, "verdicts": [asdict(v) for v in verdicts]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
