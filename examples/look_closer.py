"""Look closer at an answer: rows, tokens, layers. A notebook as a script ("percent" cells); no network.

Run it with ``python examples/look_closer.py``. ``make notebook`` executes it as docs/tutorial/look-closer.ipynb: edit
this file, not the notebook.
"""

# %% [markdown]
# # Look closer at one answer
#
# This notebook trains a model small enough to train here, asks where one of its answers comes from, and looks at that
# answer from every side: rows, tokens, layers, other questions, and what really happens without the row. It takes half
# a minute on a laptop and needs `pip install "whence[plots]"`.
#
# ## A world whose origin we know
#
# Twelve people; each grows, paints and sells one thing. Every sentence is one training row. The loss is taken on the
# completion only, so exactly one row teaches what Mira grows.

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

torch.set_num_threads(1)

NAMES = "Mira Olek Tam Ines Juno Bram Kaya Levi Nora Otto Pia Remy"
THINGS = {
    "grows": "lemons barley cotton olives hops beans rice figs peas flax corn plums",
    "paints": "boats doors masks walls carts kites signs fans eggs tiles drums bells",
    "sells": "maps bread lamps soap rope wool salt books coal tea ink oil",
}
ROWS = [
    {"id": f"{name}-{verb}", "prompt": f"{name} {verb}", "completion": f" {thing} every morning ."}
    for verb, things in THINGS.items()
    for name, thing in zip(NAMES.split(), things.split(), strict=True)
]
texts = [row["prompt"] + row["completion"] for row in ROWS]
words = ["<unk>", "<s>", "</s>", "<pad>", *dict.fromkeys(word for text in texts for word in text.split())]
core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=16
)


def train(chosen):
    """A two-layer Llama, trained on these texts for 60 steps; the first two words of each carry no loss."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=16, **sizes, **special))
    given = tokenizer(chosen, return_tensors="pt")["input_ids"]
    labels = given.clone()
    labels[:, :2] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    for _ in range(60):
        loss = model(input_ids=given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


model = train(texts)
print(f"{len(ROWS)} rows, {sum(p.numel() for p in model.parameters()):,} weights")
print(ROWS[0])

# %% [markdown]
# ## Ask
#
# Which rows made the model say *lemons*? The default follows the linear maps inside the blocks; in a model this shallow
# the vocabulary head holds much of what it knows, so it is named too. Row ids come back, never positions; a positive
# score belongs to a proponent; score / rows is the predicted rise of the answer's loss without that row, in nats.

# %%
question = {"prompt": "Mira grows", "response": " lemons"}
settings = {"train": ROWS, "layers": ("model.layers.*", "lm_head"), "fit_rows": "all"}
scores = whence.attribute((model, tokenizer), query=question, per_layer=True, tokens=4, **settings)
for line in scores.proponents(k=3) + scores.opponents(k=2):
    print(f"{line.removal_effect:+.4f} nats  {line.train_id:12}  {scores.train_rows[line.train_id].text}")
best = scores.proponents(k=1)[0]
assert best.train_id == "Mira-grows"

# %% [markdown]
# ## The page
#
# As the last line of a cell, `scores` shows itself as the full report, in a frame that can reach nothing.
# `scores.report("report.html")` writes the same page as one file; `whence view RUN` pages through a saved run.

# %%
scores

# %% [markdown]
# ## Tokens
#
# Two definitions, and both add up to the row's score: by `position`, where in the row the gradient arises, and by
# `output`, what learning to say each token does. The third, `input`, is how the score answers to reading each token; it
# adds up to nothing.

# %%
by_position, by_loss, by_reading = scores.tokens(best.train_id)
text = scores.train_rows[best.train_id].text
for track in (by_position, by_loss, by_reading):
    told = {text[a:b]: round(score, 3) for (a, b), score in zip(track.spans, track.scores, strict=True)}
    print(f"{track.kind:9}{told}")
shares = dict(zip((text[a:b] for a, b in by_loss.spans), by_loss.scores, strict=True))
assert max(shares, key=lambda word: shares[word]) == "lemons"
assert abs(by_position.total - best.score) < 1e-3 * abs(best.score)

# %% [markdown]
# ## Layers
#
# Layers add up to the score as well; attention heads are in `scores.heads`.

# %%
layers = scores.layers(best.train_id)
for name in sorted(layers, key=lambda name: -abs(layers[name]))[:4]:
    print(f"{layers[name] / best.score:6.1%}  {name}")
assert abs(sum(layers.values()) - best.score) < 1e-3 * abs(best.score)

# %% [markdown]
# ## Figures
#
# For papers and slides, with matplotlib. Every function returns a `Figure`.

# %%
# %matplotlib inline
figures.ranking(scores, k=5)

# %%
figures.tokens(scores, best.train_id, kind="output")

# %% [markdown]
# ## Other questions
#
# Why lemons *rather than* barley? A contrast asks for the difference of two losses. And any function of model and batch
# can be asked about, here the difference of two logits; on one next word it is the same question.

# %%
pair = [question, {**question, "response": " barley"}]
contrast = whence.attribute((model, tokenizer), query=pair, combine="contrast", **settings)
lemons, barley = tokenizer.convert_tokens_to_ids(["lemons", "barley"])


def barley_minus_lemons(lm, batch):
    """Lower is better: the model prefers lemons."""
    logits = lm(**batch.inputs).logits[:, 1]
    return logits[:, barley] - logits[:, lemons]


task = with_measurement(CausalLM(tokenizer), barley_minus_lemons)
measured = whence.attribute((model, tokenizer), query=question, task=task, **settings)
print("for lemons rather than barley:", [line.train_id for line in contrast.proponents(k=3)])
print("for barley rather than lemons:", [line.train_id for line in contrast.opponents(k=3)])
assert [line.train_id for line in contrast.proponents(k=3)] == [line.train_id for line in measured.proponents(k=3)]

# %% [markdown]
# ## Is it true?
#
# This world is small enough to find out: train again without the row, and measure.


# %%
def loss_of_the_answer(lm):
    given = tokenizer("Mira grows lemons", return_tensors="pt")["input_ids"]
    return -lm(input_ids=given).logits[0, 1].log_softmax(-1)[lemons].item()


before = loss_of_the_answer(model)
for line in (best, scores.proponents(k=2)[1], scores.opponents(k=1)[0]):
    kept = [text for row, text in zip(ROWS, texts, strict=True) if row["id"] != line.train_id]
    after = loss_of_the_answer(train(kept))
    print(f"without {line.train_id:12} predicted {line.removal_effect:+.4f}, measured {after - before:+.4f} nats")

# %% [markdown]
# The one row that matters is found, and the predicted size is of the right order, although leaving a row out whole is
# far from the small step that a first-order estimate describes. The others are small, and training again does not
# confirm them: read the first rows, and do not read small scores one by one.

# %%
with tempfile.TemporaryDirectory() as folder:
    page = scores.report(Path(folder) / "report.html")
    print(f"the page as a file: {page.stat().st_size / 1e3:,.0f} kB")
