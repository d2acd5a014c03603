# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A needle in a haystack that no window holds
#
# We train a small language model on texts of 32 tokens and then hide a fact in texts of up to 4,096. A model with attention over a window cannot
# find what has left the window. One with a memory can, as far as its memory holds, and how far that is, is what this notebook measures: a *needle
# map* over length and depth, with the memory and without. In the end the model reads a text once and answers questions from the state that it saved.
#
# Everything is made here, and takes about two minutes of processor time. The model is tiny (one block, 93 thousand parameters), knows a hundred words, and says
# nothing of what a large one does; it shows what to measure and how.

# %% [markdown]
# ## A language of facts
#
# `facts` is one of the tasks that come with the package ([docs/text_tasks.md](../docs/text_tasks.md)). A text tells two facts, again and again, between
# sentences that are the same in every text ("The grass is green. The sky is blue. ..", RULER's noise). The first time a fact is told its last word cannot be known; from then on a model that remembers knows
# it. So a plain language model, trained on the next token and nothing else, has a reason to remember.

# %%
import warnings

warnings.filterwarnings("ignore")

import logging
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl
import torch

from domains.text.tasks import load_task
from domains.text.tasks.task import generator
from domains.text.tokenizers import train_tokenizer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
folder = Path(tempfile.mkdtemp())

texts = load_task("facts", length=400)  # of bytes
for i in range(3):
    print(texts.text(generator(0, "training", i))[:130], "..")

# %% [markdown]
# A test tells each fact once, somewhere in a haystack of noise, and ends where one of them is asked. A tokeniser that is learned from some hundred
# texts has a token for each word:

# %%
tokenizer = train_tokenizer((texts.text(generator(0, "training", i)) for i in range(500)), vocabulary=4000)
task = load_task("facts", tokenizer, length=32)
question = task.at_length(64).question(generator(0, "test", 1))
print(f"{question.prompt} -> {question.answers[0]}   (depth {question.depth:.0%})")
print(len(tokenizer.encode_batch([question.prompt])[0]), "tokens of", tokenizer.vocabulary)

# %% [markdown]
# ## Under a minute of training
#
# One block whose mixer is the memory alone (LMM): there is no attention that could do the work. The memory is a single matrix, which suits facts
# ([01_memory](01_memory.ipynb) compares it with deep ones), every gradient is taken where the token before left it, and nothing is forgotten on purpose.

# %%
from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.text.tasks.train import train
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.training import TrainingConfig

memory = MemoryConfig(num_heads=1, depth=1, norm=False, gradient="token", max_step=0.5, momentum=False, forgetting="none")
config = TextConfig(titans=TitansConfig(dim=64, num_layers=1, variant="lmm", memory=memory))
training = TrainingConfig(max_steps=500, batch_size=32, learning_rate=1e-2, validate_every=100, checkpoint_every=500)

model = TitansForCausalLM.from_pretrained(train(task, folder / "lmm", config, training, progress=False)).eval()
sum(p.numel() for p in model.parameters())

# %%
metrics = pl.read_csv(folder / "lmm" / "metrics.csv")
metrics.filter(pl.col("validation_bits_per_token").is_not_null()).select("step", "validation_bits_per_token")

# %% [markdown]
# ## Does it use what it read?
#
# The loss by position says so before any question is asked. We read texts of 160 tokens (in training they had 32),
# with the memory, and once more with the same weights and a memory that never learns (`frozen_memory`).

# %%
from contextlib import nullcontext

from domains.text.tasks import Examples
from domains.text.tasks.batches import collate
from titans_seq.losses import token_nats
from titans_seq.memory import frozen_memory


def batch_of(facts: int):
    """Texts of 160 tokens that tell so many facts."""
    longer = load_task("facts", tokenizer, length=160, facts=facts)
    return collate(list(Examples(longer, seed=1, count=300, part="training")))


@torch.no_grad()
def bits_by_position(batch, learns: bool) -> torch.Tensor:
    """Of each token, the mean over all texts: (T,)."""
    with nullcontext() if learns else frozen_memory(model):
        y, _ = model.hidden(batch["tokens"], mask=batch["mask"])
    nats = token_nats(y.flatten(0, 1), model.output_weight, batch["targets"].flatten()).view(batch["targets"].shape)
    return nats.sum(0) / (batch["targets"] >= 0).sum(0) / math.log(2)


_, ax = plt.subplots(figsize=(8, 3.2))
for facts, learns, colour in ((2, False, "grey"), (6, True, "tab:orange"), (2, True, "tab:blue")):
    sentences = bits_by_position(batch_of(facts), learns)[:150].unfold(0, 5, 5).mean(-1)  # of about a sentence each
    ax.plot(range(0, 150, 5), sentences, label=f"{facts} facts, memory {'on' if learns else 'off'}", color=colour)
ax.axvline(32, color="grey", lw=0.8, ls=":")
ax.set(xlabel="position in the text, tokens (dotted: where texts of the training ended)", ylabel="bits a token", ylim=(0, None))
ax.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown]
# Without the memory this model has a convolution of four tokens, and knows the grammar alone: a token needs as much late as early. With it a text gets easier as
# its facts become known, and stays so beyond the length of the training. Six facts a text, which training never had, gain less.

# %% [markdown]
# ## The needle map
#
# Now the questions: a hundred at each length, 32 to 4,096 tokens, the fact anywhere. The map shows the share of right answers by length and by where in the
# haystack the fact was. Guessing gives 1 in 40.

# %%
from domains.text.plots import plot_depths
from domains.text.tasks.report import depth_shares, evaluate_lengths

LENGTHS = [32 << k for k in range(8)]
on = evaluate_lengths(model, task, LENGTHS, count=100, seed=0)
plot_depths(LENGTHS, depth_shares(on), "Answers with the memory on,", path=folder / "needle_map.png")

# %%
with frozen_memory(model):
    off = evaluate_lengths(model, task, LENGTHS[:5], count=50, seed=0)
plot_depths(LENGTHS[:5], depth_shares(off), "Answers with the memory off,")

# %% [markdown]
# A fact is found almost always up to 512 tokens, sixteen times the length of the training, and four times in five at 4,096; the early ones go first.
# (No text of 32 tokens has enough sentences for one in the middle.) Nothing is forgotten on purpose, and the noise is always the same, so that soon it surprises
# nobody and hardly changes the memory. What is lost is lost to interference: where a key of the noise is not at right angles to that of the fact, learning the one moves the answer to
# the other. With the memory off the same weights guess, often the same word; a square is about ten questions
# there, so that one that is guessed by luck is a tenth.
#
# How far it reaches is luck of the training as well. With `seed=1` the same settings found 0.99, 0.92, 0.72 and 0.51 at 64, 256, 1,024 and 4,096 tokens.

# %% [markdown]
# ## An attention window that forgets
#
# The same model with attention over the last 32 tokens behind the memory (MAL), and the memory off, in training and in the test: a small transformer with a sliding
# window, and a convolution.

# %%
from titans_seq.config import AttentionConfig
from titans_seq.memory import NeuralMemory

window = TitansConfig(dim=64, num_layers=1, variant="mal", memory=memory, attention=AttentionConfig(num_heads=2, sliding_window=32))


def without_memory(config: TextConfig) -> TitansForCausalLM:
    """A model whose memories never learn."""
    made = TitansForCausalLM(config)
    for module in made.modules():
        if isinstance(module, NeuralMemory):
            module.frozen = True
    return made


attention = TitansForCausalLM.from_pretrained(
    train(task, folder / "window", TextConfig(titans=window), training, make_model=without_memory, progress=False)
).eval()
single = load_task("facts", tokenizer, length=32, facts=1)
with frozen_memory(attention):
    two = evaluate_lengths(attention, task, LENGTHS[:5], count=100, seed=0)
    one = evaluate_lengths(attention, single, LENGTHS[:5], count=100, seed=0)
print("one of two facts asked:", [round(row.scores.answers, 2) for row in two])
print("the only fact asked:   ", [round(row.scores.answers, 2) for row in one])
plot_depths(LENGTHS[:5], depth_shares(one), "Answers of attention over 32 tokens,")

# %% [markdown]
# The staircase is the window: what is in it is found, what has left it is gone, and no training helps. (The last row of a long text still has some facts within 32
# tokens.) In fairness the map asks for the only fact that was told. In these 500 steps attention has learned to repeat *a* quality from its window, not yet *whose* it is:
# with two facts, the task of the training and of the maps above, it says either one (the first row of figures). That is a matter of training and size, not a limit of attention.

# %% [markdown]
# ## Where the memory fails
#
# Noise is easy hay: it is always the same, so that nothing new is to be written. Hide the fact among *facts about other things*, each drawn anew, and every
# sentence of the hay claims room in a matrix of 64 by 64:

# %%
hay = load_task("facts", tokenizer, length=32, haystack="facts")
crowded = evaluate_lengths(model, hay, LENGTHS[:6], count=100, seed=0)
plot_depths(LENGTHS[:6], depth_shares(crowded), "Answers among other facts,")

# %% [markdown]
# Ten other facts, at 64 tokens, cost four answers in ten, and a hundred leave nothing. A matrix of width 64 keeps at most 64 directions apart, this one was trained on
# texts of two facts, and there are no more than 38 other things, so that the hay contradicts itself and is written again and again. So the long reach above is one in length of *noise*:
# what a memory of fixed size can hold of *news* is bounded, and needles in repeated sentences, RULER's first task among them, do not ask for it.

# %% [markdown]
# ## Read once, ask often
#
# What was read is in the state, and the state has one size however much that was. We hide three facts in 700 tokens, read them once and save the state; another
# process, another day, would go on from the file.

# %%
from domains.text.context import Context, begin, extend, load_context
from domains.text.generate import generate
from domains.text.tasks.needles import NOISE

story = [NOISE] * 30
for place, fact in ((4, "The candle is crimson."), (15, "The anchor is amber."), (22, "The basket is cold.")):
    story.insert(place, fact)
(tokens,) = tokenizer.encode_batch([" ".join(story)])

context = extend(model, begin(model), [tokens])
context.save_for(model, folder / "story.safetensors")
print(len(tokens), "tokens read,", (folder / "story.safetensors").stat().st_size, "bytes kept")

# %%
from domains.text.config import GenerationConfig

kept = load_context(model, folder / "story.safetensors")
questions = [" The candle is", " The anchor is", " The basket is"]
for asked, answer in zip(questions, generate(model, questions, GenerationConfig(temperature=0.0, max_tokens=2), kept), strict=True):
    print(asked + answer.text)

# %% [markdown]
# The state can be forked. In one branch the story goes on, and the anchor is painted; the other does not know of it. And a model always answers, also where nothing was told: the
# chance that it gives its answer is worth a look.


# %%
@torch.no_grad()
def ask(context: Context, thing: str) -> str:
    """The likeliest quality, and its chance."""
    asked = extend(model, context, tokenizer.encode_batch([f" The {thing} is"]))
    logits, _ = model(asked.last[:, None], asked.state)
    chance, token = logits[0, -1].softmax(-1).max(-1)
    return f"{tokenizer.decode([int(token)]).strip()} ({float(chance):.0%})"


painted = extend(model, kept, tokenizer.encode_batch([f" The anchor is bold. {NOISE}"]))
things = ("candle", "anchor", "basket", "canoe")
pl.DataFrame(
    {
        "asked": [f"The {thing} is" for thing in things],
        "as it was read": [ask(kept, thing) for thing in things],
        "after the anchor was painted": [ask(painted, thing) for thing in things],
    }
)

# %% [markdown]
# The new colour is known at once, in its own branch alone. It was not free: in this run painting the anchor also changed what is said of the basket, and with a high chance. That is the
# interference of the maps, seen from within: a chance says how sharp an answer is, not whether the fact is still there. Of the canoe nothing was told, and its answer, a guess,
# has a low chance, as it should.

# %% [markdown]
# ## What to try next
#
# - More facts in a text of the training (`load_task("facts", tokenizer, length=128, facts=8)`): does the model learn to keep more of them? Narrower memories
#   (`num_heads=2` are two of 32 by 32): how much earlier does the map fade?
# - `MemoryConfig(depth=2, ..)`, a deep memory, or `forgetting="head"`: how does the map change? (Deep ones need more steps, and `gradient="chunk"`.)
# - `titans-seq text task evaluate MODEL --lengths 32 256 2048 -o scores` writes the map of any model to `scores/depths.png`; RULER's own needles are
#   `niah_single_1` and others, for models of bytes or with your tokeniser ([docs/text_tasks.md](../docs/text_tasks.md)).
# - `titans-seq text read` and `titans-seq serve` do with files and over HTTP what the last section does ([docs/text.md](../docs/text.md),
#   [docs/serving.md](../docs/serving.md)).
