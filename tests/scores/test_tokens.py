"""Token shares add up exactly, and each definition equals its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import VOCAB, examples, gpt2, llama
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.errors import TaskError
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.score import collect, pairwise, precondition, prepare_queries
from whence.scores.tokens import by_input, by_output, by_position, mixed, restrict_targets, split_targets
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

MODELS = {
    "llama": lambda: (llama(), ()),
    "llama-bias": lambda: (llama(layers=1, bias=True), ()),
    "gpt2-tied-head": lambda: (gpt2(), ("*",)),
}


def source(model, rows, patterns=(), budget=25):
    plan = plan_batches([e.length for e in rows], token_budget=budget)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model, patterns))


@pytest.fixture(params=MODELS)
def case(request):
    model, patterns = MODELS[request.param]()
    train = source(model, examples(6, seed=1), patterns)
    query = source(model, examples(2, seed=2), patterns)
    method = get_method("kfac")
    inverse = method.operator(fit(train, method), Problem(train)).power(-1, relative(0.1))
    queries = prepare_queries(query, inverse)
    return train, query, inverse, queries, pairwise(train, queries)


IDS = ("row-0", "row-3", "row-4")


@pytest.mark.parametrize("definition", [by_position, by_output])
def test_tokens_add_up_to_the_score(case, definition):
    train, _, _, queries, scores = case
    found = definition(train, queries, IDS)
    assert set(found.values) == set(IDS)
    for id_ in IDS:
        n = train.ids.index(id_)
        assert found.values[id_].shape == (2, train.examples[n].length)
        total = found.values[id_].sum(1) + found.unplaced[id_]
        np.testing.assert_allclose(total, scores[:, n], rtol=1e-9, atol=1e-9 * np.abs(scores).max())


def test_output_shares_are_scores_of_single_target_tokens(case):
    """The slow twin: the row with all labels but one masked, through the ordinary loop."""
    train, _, _, queries, _ = case
    found = by_output(train, queries, IDS)
    for id_ in IDS:
        example = train.examples[train.ids.index(id_)]
        copies = split_targets(example)
        alone = pairwise(_like(train, copies), queries)
        wanted = np.zeros((2, example.length))
        wanted[:, [int(c.id.split("#")[1]) for c in copies]] = alone
        np.testing.assert_allclose(found.values[id_], wanted, rtol=1e-8, atol=1e-9 * np.abs(wanted).max())


def _like(train, rows):
    from dataclasses import replace

    return replace(train, examples=rows, plan=plan_batches([e.length for e in rows], token_budget=25))


def test_masked_targets_and_the_first_token_have_no_output_share(case):
    train, _, _, queries, _ = case
    found = by_output(train, queries, ("row-3",))
    example = train.examples[train.ids.index("row-3")]
    silent = np.concatenate([[True], example.labels[1:] == -100])
    assert silent.sum() > 1 and np.abs(found.values["row-3"][:, silent]).max() == 0


def test_query_tokens_by_train_tokens_add_up_both_ways(case):
    train, query, inverse, _, scores = case
    example = query.examples[1]
    pieces = prepare_queries(_like(query, split_targets(example)), inverse)
    matrix = by_position(train, pieces, ("row-4",)).values["row-4"]  # query tokens x train positions
    n = train.ids.index("row-4")
    assert matrix.shape == (example.loss_tokens, train.examples[n].length)
    np.testing.assert_allclose(matrix.sum(), scores[1, n], rtol=1e-9)


def test_layers_add_up_to_the_total(case):
    from whence.scores.score import Pairwise
    from whence.scores.sinks import AllScores

    train, _, _, queries, scores = case
    sink = AllScores.empty(2, train.ids, len(queries.grads))
    train.visit(Pairwise(queries, sink, keep_layers=True))
    np.testing.assert_allclose(sink.per_layer.sum(-1), scores, rtol=1e-5, atol=1e-5 * np.abs(scores).max())
    one = list(queries.grads)[1]
    only = {one: queries.grads[one]}
    block = np.concatenate([g.dot(only[one]).T.numpy() for g in _grads_of(train, one)], axis=1)
    order = [i for batch in train.plan.batches for i in batch]
    np.testing.assert_allclose(sink.per_layer[:, order, 1], block, rtol=1e-5, atol=1e-6 * np.abs(block).max())


def _grads_of(train, layer):
    class Keep:
        def __init__(self):
            self.found = []

        def see(self, name, grads):
            if name == layer:
                self.found.append(grads)

        def close(self, closed):
            pass

    keep = Keep()
    train.visit(keep)
    return keep.found


def test_a_span_explains_its_tokens_only():
    example = examples(2, seed=5, longest=9, shortest=8)[1]
    part = restrict_targets(example, 5, 7)
    assert part.loss_tokens == 2 and set(np.flatnonzero(part.labels != -100)) == {5, 6}
    with pytest.raises(TaskError, match="carry no loss"):
        restrict_targets(example, 0, 2)


def test_mixed_queries_are_linear(case):
    train, query, inverse, _, scores = case
    raw = collect(query)
    both = mixed(raw, np.array([[0.5, 0.5], [1.0, -1.0]]), ["mean", "contrast"])
    found = pairwise(train, precondition(both, inverse))
    np.testing.assert_allclose(found[0], scores.mean(0), rtol=1e-9, atol=1e-9 * np.abs(scores).max())
    np.testing.assert_allclose(found[1], scores[0] - scores[1], rtol=1e-9, atol=1e-9 * np.abs(scores).max())
    assert both.measurements[1] == pytest.approx(raw.measurements[0] - raw.measurements[1])


def test_modules_used_twice_are_folded_onto_their_positions():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.twice, self.head = nn.Embedding(VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, VOCAB)

        def forward(self, input_ids, attention_mask=None, **_):
            x = torch.tanh(self.twice(torch.tanh(self.twice(self.embed(input_ids))))).cumsum(1)
            return type("Output", (), {"logits": self.head(x)})()

    model = Loop().double()
    train, query = source(model, examples(4, seed=1), ("twice",)), source(model, examples(2, seed=2), ("twice",))
    queries = collect(query)
    scores = pairwise(train, queries)
    for definition in (by_position, by_output):
        found = definition(train, queries, train.ids)
        for n, id_ in enumerate(train.ids):
            assert found.values[id_].shape[1] == train.examples[n].length
            np.testing.assert_allclose(found.values[id_].sum(1), scores[:, n], rtol=1e-9)


def test_input_tokens_answer_like_finite_differences(case):
    """The slow twin: the row's score with the embedding of one token a little longer or shorter."""
    train, _, _, queries, _ = case
    id_, step = "row-3", 1e-4
    found = by_input(train, queries, [id_]).values[id_]
    embedding = train.model.get_input_embeddings()
    for t in range(found.shape[1]):
        score = {}
        for sign in (1, -1):

            def scaled(_module, _args, output, t=t, sign=sign):
                factor = torch.ones(output.shape[1], 1, dtype=output.dtype)
                factor[t] = 1 + sign * step
                return output * factor

            handle = embedding.register_forward_hook(scaled)
            score[sign] = pairwise(train.only([id_]), queries)[:, 0]
            handle.remove()
        np.testing.assert_allclose(found[:, t], (score[1] - score[-1]) / (2 * step), rtol=1e-3, atol=1e-6)
