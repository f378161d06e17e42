"""Loader fuzz: hostile files of every kind we read, and what must hold whatever is in them.

A case is a kept file with bytes changed, or rows made by a grammar with damaged ones between good ones. What must hold:

- nothing but a ``WhenceError`` comes out;
- every good row around a bad one is still loaded, unchanged and in order (formats of one row a line);
- no row vanishes: usable + quarantined = ids, all different;
- two CPU seconds and 512 MB of further memory at most.

``run(cases, place, seed=0)`` counts; a seed and a number name a case for good.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from folders import word_tokenizer
from whence.errors import WhenceError
from whence.options import read_config, trace_request
from whence.store import atomic
from whence.store.index_folder import read_manifest as read_index_manifest
from whence.store.provenance import peak_memory_bytes
from whence.store.run import load_scores, seal
from whence.tasks.base import Example, RowProblem
from whence.tasks.causal_lm import CausalLM
from whence.tasks.encode import encode_rows
from whence.tasks.formats import Limits
from whence.tasks.rows import ReadOptions, Rows, read_rows

CORPUS = Path(__file__).with_name("corpus")
SECONDS, MEGABYTES = 2.0, 512.0
READ = ReadOptions(max_bad_rows=1.0, dup_ids="suffix", limits=Limits(line_bytes=4096, gzip_floor=2**20))
DICTIONARY = [
    b"\x00", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"{", b"}", b"[", b"]", b'"', b"'",
    b"\\", b",", b":", b"\n", b"\r", b"\r\n", b"\t", b"null", b"NaN", b"Infinity", b"1e999", b"-0", b"9" * 400,
    b"[" * 90, b'{"a":' * 90, b'{"text": 5}', b'"id": "b"', b"<script>", b"\x1b[31m", b"\xe2\x80\xae",
    b"\xf0\x9f\x98\x80", b"&a *a",
    b"!!python/object/apply:os.system", b"{% for i in range(9999) %}", b"{{ ''.__class__ }}", b"{% endfor %}", b"../",
    b"true", b"-1", b"0x10", b"2026-13-45", b"~", b"|", b">", b"? ", b"- ", b"\x85", b"\xe2\x80\xa8",
]  # fmt: skip


class Escape(AssertionError):
    """Something came out that must not."""


@dataclass
class Tally:
    """What a run of cases came to."""

    tried: int = 0
    escapes: list[str] = field(default_factory=list)
    families: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    grown_mb: float = 0.0


def mutated(data: bytes, drawn: random.Random) -> bytes:
    """One to eight changes: bits, bytes, words of the dictionary, cuts, copies, swaps."""
    piece = bytearray(data)
    for _ in range(drawn.choice((1, 1, 2, 3, 8))):
        at = drawn.randrange(len(piece) + 1)
        kind = drawn.randrange(7)
        if kind == 0 and piece:
            piece[at % len(piece)] ^= 1 << drawn.randrange(8)
        elif kind == 1 and piece:
            piece[at % len(piece)] = drawn.randrange(256)
        elif kind == 2:
            piece[at:at] = drawn.choice(DICTIONARY)
        elif kind == 3:
            del piece[at : at + drawn.randrange(1, 30)]
        elif kind == 4:
            other = drawn.randrange(len(piece) + 1)
            piece[at:at] = piece[other : other + drawn.randrange(1, 40)]
        elif kind == 5:
            piece[at : at + drawn.randrange(1, 8)] = drawn.randbytes(drawn.randrange(1, 8))
        else:
            word = drawn.choice(DICTIONARY)
            piece[at : at + len(word)] = word
    return bytes(piece)


def _value(drawn: random.Random, depth: int = 0) -> Any:
    """JSON values of every kind, deep and odd ones among them."""
    kind = drawn.randrange(10 if depth < 3 else 8)
    if kind < 3:
        return "".join(drawn.choices(string.printable + "é😀\ufeff\u202e\u2028", k=drawn.randrange(12)))
    if kind == 8:
        return [_value(drawn, depth + 1) for _ in range(drawn.randrange(4))]
    if kind == 9:
        return {str(_value(drawn, 3)): _value(drawn, depth + 1) for _ in range(drawn.randrange(3))}
    return [None, True, drawn.randrange(-(10**20), 10**20), drawn.gauss(0, 1e9), 0][kind - 3]


NAMES = (  # noqa: SIM905 - as prose
    "text prompt completion messages conversations input_ids labels attention_mask label id instruction input output "
    "response features target tools role content from value"
).split()


def made_record(drawn: random.Random) -> dict[str, Any]:
    """A row by the grammar of rows: known column names with values of any kind."""
    return {drawn.choice(NAMES): _value(drawn) for _ in range(drawn.randrange(5))}


def _lines(name: str) -> list[bytes]:
    return (CORPUS / name).read_bytes().splitlines()


def _bad_line(drawn: random.Random) -> bytes:
    """A damaged or made line, without a line break of its own."""
    kind = drawn.randrange(3)
    if kind == 0:
        line = mutated(drawn.choice(_lines(drawn.choice(("good.jsonl", "chat.jsonl", "shapes.jsonl")))), drawn)
    elif kind == 1:
        line = json.dumps(made_record(drawn), ensure_ascii=drawn.random() < 0.5).encode("utf-8", "surrogatepass")
    else:
        line = drawn.randbytes(drawn.randrange(60))
    return line.replace(b"\n", b" ").replace(b"\0\0\0\0", b"\0")


def _complete(rows: Rows) -> None:
    if len(rows) + len(rows.quarantine) != len(rows.ids) or len(set(rows.ids)) != len(rows.ids):
        raise Escape(f"{len(rows)} usable + {len(rows.quarantine)} quarantined of {len(rows.ids)} ids")
    if not all(q.code and q.message and q.location for q in rows.quarantine):
        raise Escape("a quarantined row without code, message or place")


def _holds(path: Path, good: list[str]) -> None:
    """The good rows are all there, as they were and in order; they are too many for the file to be refused."""
    try:
        rows = read_rows(str(path), options=READ)
    except WhenceError as error:
        raise Escape(f"good rows refused: {error}") from error
    _complete(rows)
    wanted = set(good)
    found = [row.fields["text"] for row in rows.rows if row.fields.get("text") in wanted]
    if found != good:
        raise Escape(f"{len(good) - len(found)} good rows lost around a bad one")


def _between(good: list[bytes], bad: list[bytes], drawn: random.Random) -> list[bytes]:
    """The good lines in order, bad ones anywhere."""
    lines = list(good)
    for line in bad:
        lines.insert(drawn.randrange(len(lines) + 1), line)
    return lines


def jsonl(drawn: random.Random, place: Path) -> None:
    good = [f"good row {n}" for n in range(6)]
    bad = [_bad_line(drawn) for _ in range(drawn.randrange(1, 4))]
    lines = _between([json.dumps({"text": text}).encode() for text in good], bad, drawn)
    path = place / "f.jsonl"
    path.write_bytes(b"\n".join(lines) + drawn.choice((b"", b"\n", b"\r\n")))
    _holds(path, good)


def gz(drawn: random.Random, place: Path) -> None:
    good = [f"good row {n}" for n in range(6)]
    bad = [_bad_line(drawn) for _ in range(drawn.randrange(3))]
    lines = _between([json.dumps({"text": text}).encode() for text in good], bad, drawn)
    data = gzip.compress(b"\n".join(lines) + b"\n", 1, mtime=0)
    path = place / "f.jsonl.gz"
    if drawn.random() < 0.5:
        path.write_bytes(data)
        _holds(path, good)
    else:
        path.write_bytes(mutated(data, drawn))
        _complete(read_rows(str(path), options=READ))


def csv(drawn: random.Random, place: Path) -> None:
    good = [f"good row {n}" for n in range(6)]
    bad = [_bad_line(drawn).replace(b"\r", b" ") for _ in range(drawn.randrange(1, 4))]
    lines = _between([f"{text},{n}".encode() for n, text in enumerate(good)], bad, drawn)
    path = place / "f.csv"
    path.write_bytes(b"text,label\n" + b"\n".join(lines) + b"\n")
    _holds(path, good)


def mutated_file(drawn: random.Random, place: Path) -> None:
    """A kept file with bytes changed: typed errors, and no row vanishes."""
    source = drawn.choice(("good.jsonl", "chat.jsonl", "shapes.jsonl", "good.csv", "array.json"))
    path = place / f"m{Path(source).suffix}"
    path.write_bytes(mutated((CORPUS / source).read_bytes(), drawn))
    _complete(read_rows(str(path), options=READ))


@cache
def _parquet() -> bytes:
    table = pa.table({
        "text": ["one", "two é", "three " * 9], "label": [1, None, 3], "meta": [[1], [], None],
        "at": pa.array([0, 1, 2], pa.timestamp("ns")),
    })  # fmt: skip
    out = io.BytesIO()
    pq.write_table(table, out, write_page_checksum=True)
    return out.getvalue()


def parquet(drawn: random.Random, place: Path) -> None:
    path = place / "f.parquet"
    if drawn.random() < 0.7:
        path.write_bytes(mutated(_parquet(), drawn))
    else:
        rows = [{k: str(v) for k, v in made_record(drawn).items()} | {"text": "x"} for _ in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    _complete(read_rows(str(path), options=READ))


def options(drawn: random.Random, place: Path) -> None:
    path = place / "o.yaml"
    text = (CORPUS / "options.yaml").read_bytes()
    if drawn.random() < 0.5:
        path.write_bytes(mutated(text, drawn))
    else:
        keys = drawn.choices(text.decode().replace(":", " ").split(), k=4)
        path.write_text(json.dumps({key: _value(drawn) for key in keys} | {"model": "m", "data": _value(drawn)}))
    trace_request(read_config(path))


@cache
def _chat() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _lines("chat.jsonl")]
    return [row for row in rows if "messages" in row]


def template(drawn: random.Random, place: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = mutated((CORPUS / "template.jinja").read_bytes(), drawn).decode("utf-8", "replace")
    rows = read_rows(_chat(), options=READ)
    task = CausalLM(tokenizer, shape="messages")
    examples, bad = encode_rows(task, rows.rows)
    if len(examples) + len(bad) != len(rows):
        raise Escape("a row vanished in its template")


def chat_rows(drawn: random.Random, place: Path) -> None:
    """Made rows through the task: every one encoded or a problem with a name."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (CORPUS / "template.jinja").read_text()
    rows = read_rows([*_chat(), *({"messages": _value(drawn)} for _ in range(2)), made_record(drawn)], options=READ)
    _complete(rows)
    for result in CausalLM(tokenizer).encode_many(rows.rows):
        if not isinstance(result, Example | RowProblem):
            raise Escape(f"a row became {type(result).__name__}")


@cache
def _run_manifest() -> dict[str, Any]:
    return {
        "format": 1, "scores": {"queries": 1, "rows": 2, "kept_per_query": None, "layers": [], "dtype": "float64",
        "n_train": 2, "heads": {}}, "about": {}, "files": {"scores.parquet": {"bytes": 3, "checksum": "xxh3:0"}},
    }  # fmt: skip


def manifest(drawn: random.Random, place: Path) -> None:
    """Manifests with bytes changed, and sealed ones of our form with values that are not."""
    for name, read in (("run.json", load_scores), ("index.json", read_index_manifest)):
        body = dict(_run_manifest())
        for _ in range(drawn.randrange(1, 3)):
            body[drawn.choice([*body, "shards", "code"])] = _value(drawn)
        body = atomic.plain(body)
        data = json.dumps({**body, "seal": seal(body)}).encode()
        (place / name).write_bytes(data if drawn.random() < 0.5 else mutated(data, drawn))
        try:
            read(place)
        except WhenceError:
            continue


FAMILIES: Mapping[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "jsonl": (6, jsonl), "gz": (2, gz), "csv": (3, csv), "mutated": (4, mutated_file), "parquet": (1, parquet),
    "options": (2, options), "template": (1, template), "chat": (1, chat_rows), "manifest": (2, manifest),
}  # fmt: skip


def one(number: int, place: Path, *, seed: int) -> str:
    """One case; returns its family.

    Raises:
        Exception: anything that is not a ``WhenceError``: an escape.
    """
    drawn = random.Random(f"{seed}/{number}")
    weights = [weight for weight, _ in FAMILIES.values()]
    name = drawn.choices(list(FAMILIES), weights)[0]
    try:
        FAMILIES[name][1](drawn, place)
    except WhenceError as error:
        if not str(error):
            raise Escape("an error without words") from error
    return name


def run(cases: int, place: Path, *, seed: int = 0, most: int = 20) -> Tally:
    """Many cases; stops early after ``most`` escapes.

    Args:
        cases: how many.
        place: an empty folder.
        seed: of all of them.
        most: escapes after which it is enough.
    """
    tally, before = Tally(), peak_memory_bytes() or 0
    for number in range(cases):
        began = time.process_time()
        tally.tried += 1
        try:
            name = one(number, place, seed=seed)
            tally.families[name] = tally.families.get(name, 0) + 1
        except BaseException as error:  # a KeyboardInterrupt must still stop it
            if isinstance(error, KeyboardInterrupt):
                raise
            tally.escapes.append(f"seed {seed} case {number}: {type(error).__name__}: {str(error)[:200]}")
        took = time.process_time() - began
        tally.slowest = max(tally.slowest, took)
        if took > SECONDS:
            tally.escapes.append(f"seed {seed} case {number}: {took:.1f} CPU seconds")
        if len(tally.escapes) >= most:
            break
    tally.grown_mb = ((peak_memory_bytes() or 0) - before) / 1e6
    if tally.grown_mb > MEGABYTES:
        tally.escapes.append(f"memory grew by {tally.grown_mb:.0f} MB")
    return tally
