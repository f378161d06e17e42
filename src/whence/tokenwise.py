"""Look closer at the strongest rows: which tokens, which heads. After the ranking, for the top rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence.linalg.operators import Operator
from whence.pipeline import Material, Subject
from whence.results import RowView, Scores, TokenTrack
from whence.scores.score import Queries
from whence.scores.tracks import Look, QueryTokens, Way, affordable, carried, head_layers, look_into
from whence.tasks.placing import Placement, place_tokens
from whence.tasks.rows import row_view

QUERIES_MOST = 20  # questions looked into; the others keep their rankings


@dataclass(frozen=True)
class Sides:
    """What is looked at: the rows and the questions, and how they met.

    Attributes:
        subject: model, task, options.
        trained: training rows.
        asked: questions.
        inverse: what preconditions a query.
        queries: preconditioned queries.
        asker: whose questions these are, where it is not the subject (rows of an earlier stage of training).
    """

    subject: Subject
    trained: Material
    asked: Material
    inverse: Operator | Way
    queries: Queries
    asker: Subject | None = None

    @property
    def asking(self) -> Subject:
        """Model and task of the questions."""
        return self.asker or self.subject


def look_closer(sides: Sides, found: Mapping[str, Any]) -> dict[str, Any]:
    """Token tracks, token pairs and head scores of the strongest rows of each question.

    Args:
        sides: the material.
        found: ``values`` and ``columns`` of the ranking.

    Returns:
        ``token_tracks``, ``query_tracks``, ``token_pairs`` and ``heads`` as in ``Scores``; empty when the task has no
        tokens with places.
    """
    options, watch = sides.subject.options, sides.subject.watch
    if options.tokens < 1 or not all(hasattr(s.task, "token_spans") for s in (sides.subject, sides.asking)):
        return {}
    look, ids = _look(sides), sides.queries.ids[:QUERIES_MOST]
    _say_limits(sides, look)
    parts: dict[str, Any] = {"token_tracks": {}, "query_tracks": {}, "token_pairs": {}, "heads": {}}
    for done, query_id in enumerate(ids):
        watch.step("tokens", done, len(ids))
        chosen = _strongest(sides, found, done)
        if chosen:
            tokens = look_into(look, query_id, list(chosen))
            turns = _turns(sides, chosen, tokens)
            _add(parts, sides, query_id, chosen=chosen, tokens=tokens, turns=turns)
            if not tokens.pairs:
                ups = {id_: turns[id_] for id_, score in chosen.items() if score > 0}
                _carry(parts, sides, query_id, shares=carried(look, query_id, ups) if ups else None)
    watch.step("tokens", len(ids), len(ids))
    return parts


def _look(sides: Sides) -> Look:
    asking = sides.asking.task
    same = sides.asked.source.task is asking  # else a measurement of the method's own (TRAK's margin)
    plain = (
        same
        and hasattr(asking, "token_losses")
        and sides.queries.ids == sides.asked.source.ids
        and not hasattr(asking, "measure")
    )
    config = getattr(sides.subject.loaded.model, "config", None)
    heads, width = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    size = getattr(config, "head_dim", None) or (width // heads if heads and width else None)
    cut = {}
    if heads and size:
        shared = getattr(config, "num_key_value_heads", None) or heads
        cut = head_layers(sides.subject.layers.sizes, heads=heads, shared=shared, size=size)
    return Look(sides.trained.source, sides.asked.source if plain else None, sides.inverse, sides.queries, cut)


def _say_limits(sides: Sides, look: Look) -> None:
    watch, asked = sides.subject.watch, len(sides.queries.ids)
    if asked > QUERIES_MOST:
        watch.note("tokens", f"tokens    only of the first {QUERIES_MOST} of {asked} questions")
    if look.asked is None:
        watch.note("tokens", "tokens    of the rows only: the question is a mixture, a measurement or a label")
    elif not all(affordable(look, q) for q in sides.queries.ids[:QUERIES_MOST]):
        watch.note("tokens", "tokens    no pairs of tokens for some questions: too long for it, or an iterative method")


def _strongest(sides: Sides, found: Mapping[str, Any], q: int) -> dict[str, float]:
    """The strongest rows on both sides with their scores."""
    values, columns = found["values"][q], found["columns"]
    names = sides.trained.rows.ids
    at = np.arange(len(values)) if columns is None else columns[q]
    known = np.flatnonzero(np.isfinite(values) & (at >= 0))
    order = known[np.argsort(-values[known], kind="stable")].tolist()
    most = sides.subject.options.tokens
    up = [n for n in order[:most] if values[n] > 0]
    down = [n for n in order[::-1][:most] if values[n] < 0]
    return {names[at[n]]: float(values[n]) for n in (*up, *down)}


def _turns(sides: Sides, chosen: Mapping[str, float], tokens: QueryTokens) -> dict[str, float]:
    """Row id -> what turns shares of its inner product into shares of its score (relative, cosine)."""
    wholes = {id_: tokens.positions[id_].sum() + tokens.rest[id_] for id_ in chosen}
    plain = sides.subject.options.normalise == "none"
    return {id_: 1.0 if plain or not wholes[id_] else score / wholes[id_] for id_, score in chosen.items()}


def _carry(parts: dict[str, Any], sides: Sides, query_id: str, *, shares: np.ndarray | None) -> None:
    """The question's own track from its tokens' shares."""
    if shares is not None:
        parts["query_tracks"][query_id] = _track(_placed(sides.asking, sides.asked, query_id), shares, "query")


def _add(
    parts: dict[str, Any],
    sides: Sides,
    query_id: str,
    *,
    chosen: Mapping[str, float],
    tokens: QueryTokens,
    turns: Mapping[str, float],
) -> None:
    """One question's findings, by characters and in the unit of the row's score."""
    asked = _placed(sides.asking, sides.asked, query_id) if tokens.pairs else None
    question = None if asked is None else np.zeros(len(asked.spans) + 1)
    for id_, score in chosen.items():
        place = _placed(sides.subject, sides.trained, id_)
        turn = turns[id_]
        tracks = [_track(place, tokens.positions[id_] * turn, "position", rest=tokens.rest[id_] * turn)]
        if id_ in tokens.outputs:
            tracks.append(_track(place, tokens.outputs[id_] * turn, "output"))
        if id_ in tokens.inputs:
            tracks.append(_track(place, tokens.inputs[id_] * turn, "input"))
        parts["token_tracks"][query_id, id_] = tuple(tracks)
        if asked is not None and question is not None:
            table = place.folded(asked.folded(tokens.pairs[id_].T).T) * turn
            table[-1, -1] += tokens.rest[id_] * turn
            parts["token_pairs"][query_id, id_] = table.astype(np.float32)
            question += table.sum(1) * (score > 0)
    if asked is not None and question is not None:
        carried = TokenTrack(asked.spans, tuple(question[:-1].tolist()), asked.masked, "query", float(question[-1]))
        parts["query_tracks"][query_id] = carried
    ups = [tokens.heads[id_] for id_, score in chosen.items() if score > 0 and id_ in tokens.heads]
    if ups:
        parts["heads"][query_id] = {name: tuple(np.sum([row[name] for row in ups], axis=0).tolist()) for name in ups[0]}


def _track(place: Placement, values: np.ndarray, kind: str, *, rest: float = 0.0) -> TokenTrack:
    folded = place.folded(values)
    return TokenTrack(place.spans, tuple(folded[:-1].tolist()), place.masked, kind, float(folded[-1]) + rest)


def _placed(subject: Subject, material: Material, id_: str) -> Placement:
    row = next(row for row in material.rows.rows if row.id == id_)
    example = next(example for example in material.examples if example.id == id_)
    view: RowView = row_view(row)
    return place_tokens(material.encoded_by or subject.task, row, example, view)


def side_by_side(parts: Sequence[Scores], renamed: Sequence[Mapping[str, str]], total: int) -> dict[str, Any]:
    """The tokens and heads of several stages of training as those of one result.

    Args:
        parts: one result per stage.
        renamed: for each, row id -> id in the whole.
        total: rows of all stages; scores are rescaled to it, as in ``stages.joined``.
    """
    tracks: dict[tuple[str, str], tuple[TokenTrack, ...]] = {}
    pairs: dict[tuple[str, str], np.ndarray] = {}
    asked: dict[str, TokenTrack] = {}
    heads: dict[str, dict[str, tuple[float, ...]]] = {}
    for part, names in zip(parts, renamed, strict=True):
        scale = total / part.n_train
        for (query, id_), kinds in part.token_tracks.items():
            tracks[query, names[id_]] = tuple(_scaled(track, scale) for track in kinds)
        pairs |= {(query, names[id_]): table * scale for (query, id_), table in part.token_pairs.items()}
        for query, track in part.query_tracks.items():
            asked[query] = _added(asked.get(query), _scaled(track, scale))
        for query, layers in part.heads.items():
            known = heads.setdefault(query, {})
            for layer, shares in layers.items():
                before = known.get(layer, (0.0,) * len(shares))
                known[layer] = tuple(a + b * scale for a, b in zip(before, shares, strict=True))
    return {"token_tracks": tracks, "query_tracks": asked, "token_pairs": pairs, "heads": heads}


def _scaled(track: TokenTrack, scale: float) -> TokenTrack:
    return replace(track, scores=tuple(x * scale for x in track.scores), rest=track.rest * scale)


def _added(one: TokenTrack | None, other: TokenTrack) -> TokenTrack:
    if one is None:
        return other
    scores = tuple(a + b for a, b in zip(one.scores, other.scores, strict=True))
    return replace(other, scores=scores, rest=one.rest + other.rest)
