"""Damage of every kind: found before use, and only what is damaged made again. Each sweep returns a ``Count``."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import whence
from reliability.harness import UNTOLD, Count, Workload, fresh, run_forked, snapshot, workload
from reliability.states import recorded
from reliability.sweeps import resumed, truth
from whence import faults
from whence.errors import StoreError, WhenceError
from whence.store.index_damage import examine
from whence.store.index_folder import MANIFEST, PLAN, read_manifest
from whence.store.index_journal import JOURNAL
from whence.store.run import MARKER, seal

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}]


def data_files(folder: Path) -> list[Path]:
    """Files whose every byte means something."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name not in {*UNTOLD, MARKER})


def corruption(place: Path, *, flips: int = 2000, truncations: int = 256, repairs: int = 6, seed: int = 0) -> Count:
    """R6: flipped bits (every byte of the small files first), cut and swapped, missing and added files: all detected,
    the right file named, the others not; some of them repaired, which changes nothing else."""
    work, draw, missed, repaired = workload("small"), random.Random(seed), [], 0
    whole = truth(work, place)
    folder = place / "undisturbed"
    cases = [*_flips(folder, flips, draw), *_cuts(folder, truncations, draw), *_swaps(folder)]
    again = set(draw.sample(range(len(cases)), min(repairs, len(cases))))
    with fresh(place, "damaged") as copied:
        shutil.copytree(folder, copied)
        for number, (name, change) in enumerate(cases):
            original = (copied / name).read_bytes()
            change(copied / name)
            found = examine(copied)
            if name not in found.damaged and not (name == MANIFEST and not found.finished):
                missed.append(f"case {number}: {name} not in {found.damaged}")
            if number in again:
                before = _times(copied)
                work.build(copied)
                kept = all(_times(copied)[n] == at for n, at in before.items() if n.startswith("shard-") and n != name)
                repaired += snapshot(copied) == whole and kept
            (copied / name).write_bytes(original)
        (copied / "shard-99999.safetensors").write_bytes(b"not ours")
        extra = examine(copied)
        missed += [] if extra.extra == ("shard-99999.safetensors",) and not extra.damaged else ["an extra file"]
    missed += [] if repaired == len(again) else [f"{repaired} of {len(again)} repaired"]
    facts = {"flips": flips, "truncations": truncations, "repaired": repaired, "wrong": missed[:5]}
    return Count("R6", "flips, cuts, swaps, missing and extra files: detected", len(cases) + 1, len(missed), facts)


Case = tuple[str, Callable[[Path], Any]]


def _flips(folder: Path, count: int, draw: random.Random) -> Iterator[Case]:
    files = data_files(folder)
    small = [(p.name, at) for p in files if p.suffix != ".safetensors" for at in range(p.stat().st_size)]
    chosen = draw.sample(small, min(count // 2, len(small)))
    large = [p for p in files if p.suffix == ".safetensors"]
    while len(chosen) < count:
        path = draw.choice(large)
        chosen.append((path.name, draw.randrange(path.stat().st_size)))
    for name, at in chosen:
        yield name, _flip(at, 1 << draw.randrange(8))


def _flip(at: int, bit: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= bit
        path.write_bytes(data)

    return change


def _cuts(folder: Path, count: int, draw: random.Random) -> Iterator[Case]:
    files = data_files(folder)
    for number in range(count):
        path = files[number % len(files)]
        if path.stat().st_size:
            left = draw.randrange(path.stat().st_size)
            yield path.name, lambda p, n=left: p.write_bytes(p.read_bytes()[:n])


def _swaps(folder: Path) -> Iterator[Case]:
    shards = sorted(p.name for p in folder.glob("shard-*"))
    for one, other in pairwise(shards):
        yield one, lambda p, o=other: p.write_bytes((p.parent / o).read_bytes())
    for path in data_files(folder):
        yield path.name, lambda p: p.unlink()


def _times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.is_file()}


def compound(place: Path, *, count: int = 20, seed: int = 0) -> Count:
    """R4: killed, killed again while it resumes, or while it repairs; then once more to the end."""
    work, draw, wrong = workload("small"), random.Random(seed), []
    whole = truth(work, place)
    for number in range(count):
        with fresh(place, "twice") as folder:
            if number % 3 == 2:  # damage, and a kill during its repair
                shutil.copytree(place / "undisturbed", folder)
                _flip(40, 4)(draw.choice([p for p in data_files(folder) if p.name != PLAN]))
            else:
                run_forked(lambda f=folder: work.build(f), faults_=f"kill@{draw.randrange(1, 200)}")
            second = draw.choice(["kill", "tear", "enospc"])
            run_forked(lambda f=folder: work.build(f), faults_=f"{second}@{draw.randrange(1, 60)}")
            if not resumed(work, folder, whole)[0]:
                wrong.append(number)
    return Count("R4", "two faults, one during resume or repair: files equal", count, len(wrong), {"wrong": wrong})


def power_loss(place: Path, *, orders: int = 100, seed: int = 0) -> Count:
    """R5: states a power cut can leave where syncs had not happened: renames undone, appended lines cut or zeroed,
    unfinished files empty or full of zeros. Never a third state: the same command gives the same files."""
    work, draw = workload("small"), random.Random(seed)
    whole = truth(work, place)
    points = recorded(work, place)
    loose = [n for n, p in enumerate(points) if p.name in ("open", "written", "renamed", "appended", "link")]
    wrong = []
    for number in range(orders):
        at = draw.choice(loose)
        point, before = points[at], points[at - 1]
        lost = point.name == "renamed" and draw.random() < 0.5
        with fresh(place, "cut") as folder:
            shutil.copytree(place / "states" / (before.state if lost else point.state), folder)
            _lose(folder, point.name, draw)
            if not resumed(work, folder, whole)[0]:
                wrong.append(f"order {number}: {point}")
    shutil.rmtree(place / "states")
    return Count("R5", "power cut with writes not yet synced: files equal", orders, len(wrong), {"wrong": wrong[:5]})


def _lose(folder: Path, name: str, draw: random.Random) -> None:
    """What was written and not synced is cut, or zeros."""
    for part in folder.rglob("*.part"):
        data = part.read_bytes()[: draw.randrange(part.stat().st_size + 1)]
        part.write_bytes(bytes(len(data)) if draw.random() < 0.5 else data)
    journal = folder / JOURNAL
    if name == "appended" and journal.exists():
        data = journal.read_bytes()
        start = data.rfind(b"\n", 0, len(data) - 1) + 1
        kept = draw.randrange(start, len(data) + 1)
        zeros = bytes(len(data) - kept) if draw.random() < 0.5 else b""
        journal.write_bytes(data[:kept] + zeros)


# fields that cannot be mutated by settings alone are mutated in the stored plan
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"train": [{"id": "new", "text": "the cat sat on the mat ."}]},
    "options.method": {"method": "identity"},
    "options.damping": {"damping": 0.3},
    "options.fisher": {"fisher": "empirical"},
    "options.seed": {"seed": 9},
    "options.batch_tokens": {"batch_tokens": 40},
    "task.max_length": {"max_length": 4},
    "layers": {"layers": ("*q_proj",)},
    "compression.budget": {"compression": {"budget": 0.3}},
    "compression.scheme": {"compression": {"budget": 0.2, "scheme": "low_rank"}},
}


def mismatch(place: Path) -> Count:
    """R14: every field of the identity alone, in the stored plan; and those that settings can change, for real."""
    work, wrong = workload("small"), []
    truth(work, place)
    folder = place / "undisturbed"
    fields = list(json.loads((folder / PLAN).read_text())["identity"])
    for name in fields:
        with fresh(place, "other") as other:
            shutil.copytree(folder, other)
            _mutate(other, name)
            wrong += _refusal(lambda o=other: work.build(o), name)
            wrong += _refusal(lambda o=other: _ask(o, work), name) if name.startswith(_ASKED) else []
    for name, change in CHANGES.items():
        given = dict(change)
        rows = given.pop("train", work.rows)
        if "compression" in given:
            given["compression"] = {**work.options["compression"], **given["compression"]}
        other = replace(work, rows=rows, options={**work.options, **given})
        wrong += _refusal(lambda o=other: o.build(folder), name)
    facts = {"fields": len(fields), "real_changes": len(CHANGES), "wrong": wrong[:5]}
    tried = len(fields) + len(CHANGES)
    return Count("R14", "each field of the identity alone: refused and named", tried, len(wrong), facts)


_ASKED = ("model.", "tokenizer.", "task.", "layers")


def _ask(folder: Path, work: Workload) -> Any:
    return whence.ask(folder, QUESTION, model=work.model)


def _mutate(folder: Path, name: str) -> None:
    """Another value of one field in plan and manifest, sealed as if it had been written so."""
    for file in (PLAN, MANIFEST):
        body = json.loads((folder / file).read_text())
        body.pop("seal")
        value = body["identity"][name]
        body["identity"][name] = {**value, "one_more": [1, 1]} if isinstance(value, dict) else f"not {value}"
        (folder / file).write_text(json.dumps({**body, "seal": seal(body)}, indent=2) + "\n")


def _refusal(act: Callable[[], Any], name: str) -> list[str]:
    try:
        act()
    except StoreError as error:
        return [] if name in str(error) else [f"{name}: {error}"]
    return [f"{name}: not refused"]


def hostile_manifests(place: Path, *, count: int = 200, seed: int = 0) -> Count:
    """F74 (R16): manifests made by somebody else, with a seal that fits: a typed error, or an answer as before; no
    file outside the folder is named, nothing is imported, and memory does not grow."""
    work, draw, wrong = workload("small"), random.Random(seed), []
    truth(work, place)
    folder = place / "undisturbed"
    expected = _ask(folder, work).values
    cases = [*_attacks(), *(_random_attack(read_manifest(folder), draw) for _ in range(count))]
    with fresh(place, "hostile") as other:
        shutil.copytree(folder, other)
        body = read_manifest(folder)
        for number, attack in enumerate(cases):
            changed = copy.deepcopy(body)
            attack(changed)
            _write_sealed(other / MANIFEST, changed)
            try:
                same = np.array_equal(_ask(other, work).values, expected, equal_nan=True)
                # what is not about the numbers (a note, a time) may be anything
                wrong += [] if same or number >= len(cases) - count else [f"{number}: another answer"]
            except WhenceError:
                continue
            except Exception as error:
                wrong.append(f"{number}: {type(error).__name__}: {error}"[:300])
    return Count("R16", "hostile index manifests: typed error before use", len(cases), len(wrong), {"wrong": wrong[:5]})


def _write_sealed(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps({**body, "seal": seal(body)}, indent=2) + "\n")


def _attacks() -> list[Callable[[dict[str, Any]], Any]]:
    """Named ones."""
    record = {"bytes": 1, "checksum": "xxh3:" + "0" * 32}
    layout = lambda b: next(iter(b["layout"]))  # noqa: E731
    return [
        lambda b: b["files"].update({"/etc/passwd": record}),
        lambda b: b["files"].update({"../../outside": record}),
        lambda b: b["files"].update({"shard-00000.safetensors/../../x": record}),
        lambda b: b.update(shards=10**9),
        lambda b: b.update(shards=10**5),
        lambda b: b.update(shards=-1),
        lambda b: b.update(shards=True),
        lambda b: b.update(rows=10**15),
        lambda b: b.update(n_train=10**18),
        lambda b: b["layout"].update({layout(b): [10**9, 10**9]}),
        lambda b: b["layout"].update({layout(b): [-1, 3]}),
        lambda b: b["layout"].update({layout(b): [1, 1]}),
        lambda b: b["layout"].update({"no_such_layer": [8, 8]}),
        lambda b: b["layout"].clear(),
        lambda b: b["code"].update(slots=10**12),
        lambda b: b["code"].update(scheme="../x"),
        lambda b: b["code"].clear(),
        lambda b: b["places"].clear(),
        lambda b: b["options"].update(trust_remote_code=True),
        lambda b: b["options"].update(allow_pickle_weights=True),
        lambda b: b["options"].update(method="antigravity.thing"),
        lambda b: b["options"].update(method="no_such"),
        lambda b: b["options"].update(damping="absolute:-1"),
        lambda b: b["options"].update(surprise=1),
        lambda b: b.update(files=[]),
        lambda b: b.update(identity={}),
        lambda b: b.pop("options"),
        lambda b: b.pop("about"),
        lambda b: b.update(format="whence index 99"),
    ]


def _random_attack(body: dict[str, Any], draw: random.Random) -> Callable[[dict[str, Any]], None]:
    """One field of those that are used, at random, replaced by something odd or left out."""
    used = ("identity", "files", "options", "code", "layout", "places", "shards", "rows", "n_train", "fit")
    top = draw.choice(used)
    inner = draw.choice([None, *body[top]]) if isinstance(body[top], dict) and body[top] else None
    odd = draw.choice([None, -1, 10**18, "", "../x", [], {}, True, [10**9, 10**9], {"a": 1}, 1.5])

    def attack(changed: dict[str, Any]) -> None:
        where, key = (changed, top) if inner is None else (changed[top], inner)
        if draw.random() < 0.2:
            del where[key]
        else:
            where[key] = odd

    return attack


def memory_backoff(place: Path, *, schedules: int = 30, seed: int = 0) -> Count:
    """R11: memory runs out in some batch, some times: every row once, the numbers as before, the split recorded; a row
    that does not fit alone is left out by name."""
    work, draw, wrong, lost = _uncompressed(), random.Random(seed), [], 0
    truths: dict[tuple[str, ...], np.ndarray] = {}
    for number in range(schedules):
        batch, times, kind = draw.randrange(4), 1 + number % 4, ("oom", "oomcpu")[number % 2]
        case = f"{kind} of batch {batch} x {times}"
        with fresh(place, "memory") as folder:
            faults.arm(f"{kind}@batch={batch}x{times}")
            try:
                body = work.build(folder)
            except WhenceError as error:
                wrong.append(f"{case}: {error}")
                continue
            finally:
                faults.arm("")
            found, named = _ask(folder, work), [e["row"] for e in body["splits"] if "row" in e]
            gone = np.isnan(found.values[0])
            told = [row for row, view in found.train_rows.items() if view.status == "quarantined:too_large"]
            lost += len(named)
            # kept in 16 bits: rounding of half a thousandth, twice
            if tuple(named) not in truths:
                truths[tuple(named)] = _scores_without(work, place, named)
            truth_N = truths[tuple(named)]
            bound = 2e-3 * np.abs(truth_N).max()
            near = np.abs(found.values[0][~gone] - truth_N).max() <= bound
            split = any("parts" in e for e in body["splits"])
            if not split or int(gone.sum()) != len(named) or told != named or not near:
                wrong.append(f"{case}: splits {body['splits']}, {int(gone.sum())} without a score, near: {near}")
    facts = {"rows_left_out_by_name": lost, "wrong": wrong[:5]}
    return Count("R11", "memory runs out: that batch split, every row once", schedules, len(wrong), facts)


def _scores_without(work: Workload, place: Path, left_out: list[str]) -> np.ndarray:
    """Scores by an index that never had these rows."""
    kept = replace(work, rows=[row for row in work.rows if row["id"] not in left_out])
    with fresh(place, "without") as folder:
        kept.build(folder)
        return _ask(folder, kept).values[0]


def _uncompressed() -> Workload:
    """64 rows, about eight in a batch, all numbers kept."""
    work = workload("full")
    kept = {"budget": 200.0, "shard_bytes": 2_000_000}
    return replace(work, options={**work.options, "method": "kfac", "compression": kept})
