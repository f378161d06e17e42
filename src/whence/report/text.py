"""ReportData -> terminal: the same answer, readable in 80 columns.

Data reach the console only inside ``rich.text.Text`` after ``visible``; no string of theirs is parsed as markup.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from whence.report import words
from whence.report.characters import calm, visible
from whence.report.records import Line, QueryReport, ReportData, Table, TokenScores

UP, DOWN = "blue", "dark_orange3"
EXCERPT = 220
TOKEN_KINDS = {
    "position": "at these tokens",
    "output": "by the loss of these tokens",
}


def render_text(data: ReportData, console: Console, *, k: int = 5, queries: Iterable[int] | None = None) -> None:
    """Print the answer to each question: the k strongest rows on both sides, how concentrated, how far to trust it.

    Args:
        data: what to show.
        console: where; its width is respected, and 80 columns are enough.
        k: rows on each side.
        queries: positions of the questions to print; all by default.
    """
    chosen = range(len(data.queries)) if queries is None else list(queries)
    console.print(_plain(data.summary, "bold"))
    for q in chosen:
        _print_query(data, data.queries[q], console, k=k, number=q + 1)
    for table in data.tables:
        _print_table(table, console)
    console.print()
    console.print(
        Text.assemble(("How far to trust it  ", "bold"), (data.trust.level, "bold"), ". ", data.trust.sentence)
    )
    if data.quarantined or data.unscored:
        left = max(data.quarantined, data.unscored)
        console.print(_plain(f"{left:,} row{'s' if left != 1 else ''} could not be used and have no score.", "yellow"))


def _plain(text: str, style: str = "") -> Text:
    """Data as text: one line, no control characters, no markup."""
    return Text(visible(calm(text), one_line=True), style=style)


def _print_query(data: ReportData, query: QueryReport, console: Console, *, k: int, number: int) -> None:
    name = f"question {number} of {len(data.queries)} · {query.id}" + (f" · {query.view}" if query.view else "")
    console.print()
    console.print(Rule(_plain(name, "dim"), style="dim", align="left"))
    console.print(_question(query))
    console.print()
    console.print(_plain(query.answer))
    console.print(_plain(query.concentration))
    for warning in query.warnings:
        console.print(Text.assemble(("caution  ", "bold yellow"), _plain(warning)))
    if query.lexical and query.lexical.level != "explains":
        console.print(_plain(query.lexical.sentence, "dim"))
    sides = ((UP, "▲ proponents: removing them would raise the loss", query.ranking.top(k)),
             (DOWN, "▼ opponents: removing them would lower the loss", query.ranking.bottom(k)))  # fmt: skip
    for colour, title, lines in sides:
        if lines:
            console.print()
            console.print(Text(title, style=f"bold {colour}"))
            for line in lines:
                tokens = query.tokens.get(line.row, ())
                console.print(_line(data, line, colour, width=console.width, tokens=tokens))


def _question(query: QueryReport) -> Text:
    """The prompt dim, the response bold; a label after an arrow."""
    shown = Text()
    text = query.text if len(query.text) <= 600 else query.text[:600] + " …"
    responses = [(a, b) for kind, a, b in query.parts if kind in {"completion", "assistant", "response", "output"}]
    cuts = sorted({0, len(text), *(min(x, len(text)) for pair in responses for x in pair)})
    for a, b in itertools.pairwise(cuts):
        strong = not responses or any(start <= a and b <= end for start, end in responses)
        shown.append_text(_plain(text[a:b], "bold" if strong else "dim"))
    if query.label:
        shown.append_text(Text.assemble("  →  ", _plain(query.label, "bold")))
    return shown


def _line(data: ReportData, line: Line, colour: str, *, width: int, tokens: Sequence[TokenScores]) -> Grid:
    """Two or three lines: numbers; where the row is; how it begins."""
    row = data.rows[line.row]
    numbers = f"{words.signed(line.removal_effect)} {data.unit}   {words.percent(line.share)} of its side"
    if line.lexical is not None:
        numbers += f"   no. {line.lexical_rank:,} by word overlap" if line.lexical_rank else "   no shared word"
    where = [row.id, row.location or row.source, f"label {row.label}" if row.label else "",
             row.status if row.status != "scored" else ""]  # fmt: skip
    grid = Grid.grid(padding=(0, 1), pad_edge=False)
    grid.add_column(width=6, justify="right")
    grid.add_column(width=max(20, width - 8), overflow="fold")
    grid.add_row(Text(f"{line.rank:,}", style="dim"), Text(numbers, style=colour))
    grid.add_row("", _plain("  ".join(part for part in where if part), "dim"))
    if row.text:
        grid.add_row("", _excerpt(row.text, tokens[0] if tokens else None))
    for said in _told(row.text, tokens):
        grid.add_row("", said)
    return grid


def _excerpt(text: str, track: TokenScores | None) -> Text:
    """The beginning of the row, or the passage around its strongest token; strong tokens stand out."""
    spans, scores = (track.spans, track.scores) if track else ((), ())
    top = max(range(len(spans)), key=lambda i: abs(scores[i]), default=None)
    start = max(0, spans[top][0] - EXCERPT // 2) if top is not None and spans[top][1] > EXCERPT else 0
    stop, at = min(len(text), start + EXCERPT), start
    shown = Text("… " if start else "")
    for (a, b), score in zip(spans, scores, strict=True):
        if top is None or a < at or b > stop or abs(score) <= 0.4 * abs(scores[top]):
            continue
        shown.append_text(_plain(text[at:a]))
        shown.append_text(_plain(text[a:b], f"bold underline {UP}" if score > 0 else f"bold italic {DOWN}"))
        at = b
    shown.append_text(_plain(text[at:stop]))
    return shown.append(" …") if stop < len(text) else shown


def _word(text: str, start: int, stop: int) -> str:
    """The word a token stands in: half a word says little. A blank is shown by its mark."""
    blank = text[start:stop]
    if not blank.strip():
        return "↵" if "\n" in blank else "␣"
    while start and stop - start < 24 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while stop < len(text) and stop - start < 24 and text[stop - 1].isalnum() and text[stop].isalnum():
        stop += 1
    return calm(text[start:stop]).strip()


def _told(text: str, tokens: Sequence[TokenScores]) -> list[Text]:
    """The strongest tokens of each definition in words, for consoles without colour."""
    said = []
    for track in tokens:
        if track.kind == "input":  # adds up to nothing: on the page, with room for an explanation
            continue
        size = sum(abs(x) for x in track.scores) + abs(track.rest)
        order = sorted(range(len(track.spans)), key=lambda i: -abs(track.scores[i]))[:3]
        strongest = [
            f"{_word(text, *track.spans[i])!r} {'+' if track.scores[i] > 0 else '−'}"
            f"{words.percent(abs(track.scores[i]) / size)}"
            for i in order
            if size and track.scores[i]
        ]
        if strongest:
            said.append(_plain(f"{TOKEN_KINDS.get(track.kind, track.kind)}: {', '.join(strongest)}", "dim"))
    return said


def _print_table(table: Table, console: Console) -> None:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    for n, column in enumerate(table.columns):
        grid.add_column(_plain(column, "dim"), justify="left" if n == 0 else "right")
    for row in table.rows:
        grid.add_row(*(_plain(words.cell(c)) for c in row))
    console.print()
    console.print(_plain(table.title, "bold"))
    console.print(grid)
    if table.note:
        console.print(_plain(table.note, "dim"))
