"""Look closer at an answer: rows, tokens, layers. A notebook as a script (jupytext "percent" cells); no network.

Run it with ``python examples/look_closer.py``, or open it in Jupyter with jupytext. It trains a model of 20 thousand
weights on a dozen made-up sentences, asks where one answer comes from, and looks at that answer from every side.
"""

# %% [markdown]
# # Where did this answer come from?
# First a model small enough to train here, and data whose origin we know: one sentence says what Mira grows.

# %%
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import whence
from whence.report import figures
from whence.tasks.causal_lm import CausalLM
from whence.tasks.measured import with_measurement

torch.manual_seed(0)
torch.set_num_threads(1)

ROWS = [
    {"id": f"{name}-{verb}", "text": f"{name} {verb} {what} every morning ."}
    for name, facts in {
        "Mira": {"grows": "lemons", "paints": "boats", "sells": "maps"},
        "Olek": {"grows": "barley", "paints": "doors", "sells": "bread"},
        "Tam": {"grows": "cotton", "paints": "masks", "sells": "lamps"},
    }.items()
    for verb, what in facts.items()
]

vocabulary = ["<unk>", "<s>", "</s>", "<pad>", *dict.fromkeys(word for row in ROWS for word in row["text"].split())]
core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=16
)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    )
)
batch = tokenizer([row["text"] for row in ROWS], return_tensors="pt")["input_ids"]
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
for _ in range(60):
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# ## Ask
# `Scores` shows itself as the full report when it is the last line of a cell, in a frame that can reach nothing.

# %%
question = {"prompt": "Mira grows", "response": " lemons"}
scores = whence.attribute((model, tokenizer), train=ROWS, query=question, per_layer=True, tokens=4, fit_rows="all")
best = scores.proponents(k=1)[0]
print(f"{best.train_id}: without it the loss would rise by {best.removal_effect:.3f} nats")
assert best.train_id == "Mira-grows"

# %% [markdown]
# ## Tokens
# Two definitions: `position` is where in the row the gradient arises, `output` what learning each token does. Both add
# up to the row's score. The third, `input`, is how the score answers to reading each token; it adds up to nothing.

# %%
by_position, by_loss, by_reading = scores.tokens(best.train_id)
text = scores.train_rows[best.train_id].text
told = {text[a:b]: score for (a, b), score in zip(by_loss.spans, by_loss.scores, strict=True)}
print("by loss:", {word: round(score, 2) for word, score in told.items()})
assert max(told, key=lambda word: told[word]) == "lemons"
assert abs(by_position.total - best.score) < 1e-3 * abs(best.score)

# %% [markdown]
# ## Layers, heads and figures
# Layers add up as well. Figures need `pip install "whence[plots]"`.

# %%
layers = scores.layers(best.train_id)
print("strongest layer:", max(layers, key=lambda name: layers[name]))
assert abs(sum(layers.values()) - best.score) < 1e-3 * abs(best.score)
for figure in (figures.ranking(scores, k=4), figures.layers(scores), figures.tokens(scores, best.train_id)):
    assert figure.axes

# %% [markdown]
# ## Other questions
# Why lemons *rather than* barley? And any function of model and batch can be explained, here a logit difference.

# %%
pair = [question, {**question, "response": " barley"}]
contrast = whence.attribute((model, tokenizer), train=ROWS, query=pair, combine="contrast", fit_rows="all")
lemons, barley = tokenizer.convert_tokens_to_ids(["lemons", "barley"])


def barley_minus_lemons(lm, batch):
    """Lower is better: the model prefers lemons."""
    logits = lm(**batch.inputs).logits[:, 1]
    return logits[:, barley] - logits[:, lemons]


task = with_measurement(CausalLM(tokenizer), barley_minus_lemons)
measured = whence.attribute((model, tokenizer), train=ROWS, query=question, task=task, fit_rows="all")
print("rather than barley:", [line.train_id for line in measured.proponents(k=2)])
print("for barley:", [line.train_id for line in measured.opponents(k=2)])
assert [line.train_id for line in contrast.proponents(k=3)] == [line.train_id for line in measured.proponents(k=3)]

# %% [markdown]
# ## The page
# One file, no network; `whence view RUN` pages through every row of a saved run.

# %%
with tempfile.TemporaryDirectory() as folder:
    page = scores.report(Path(folder) / "report.html")
    assert page.stat().st_size < 1_500_000
scores  # noqa: B018 - shows itself in a notebook
