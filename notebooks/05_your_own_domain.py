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
# # A domain of your own
#
# Text, genomes and time series are three domains on one backbone. This notebook adds a fourth, in a hundred lines: sequences of your own in, a model with a
# head of its own, the shared trainer, a score beside simple baselines, a saved model, and a look into its memory. It takes one to two minutes on
# two cores. As files, with commands and installed as a package, the same is [docs/adding_a_domain.md](../docs/adding_a_domain.md).
#
# ## The data
#
# A café keeps a list: customer, time of the day, what was ordered. What will this customer order next, at this time of the day? We make the list up, so that we know what
# there is to find. A customer is of one of six kinds, which agree on what they drink at each time of the day; but of each time
# of the day one in four customers has a mind of his own; and one order in seven is a whim.

# %%
import numpy as np
import polars as pl

TIMES = ("early", "morning", "late morning", "noon", "afternoon", "tea time", "evening", "night")
DRINKS = ("espresso", "cappuccino", "flat white", "black tea", "green tea", "mint tea", "juice", "water", "cocoa", "beer", "wine", "cider")
ORDERS, KINDS, OWN, WHIM = 64, 6, 1 / 4, 1 / 7
OF_KIND = np.random.default_rng(7).integers(len(DRINKS), size=(KINDS, len(TIMES)))
"""What each kind drinks at each time."""


def make_orders(customers: int, seed: int) -> pl.DataFrame:
    """A row an order: customer, time and drink, in the order in which they came."""
    random = np.random.default_rng(seed)
    habits = OF_KIND[random.integers(KINDS, size=customers)]
    own = random.integers(len(DRINKS), size=habits.shape)
    habits = np.where(random.random(habits.shape) < OWN, own, habits)
    times = random.integers(len(TIMES), size=(customers, ORDERS))
    whims = random.integers(len(DRINKS), size=times.shape)
    drinks = np.where(random.random(times.shape) < WHIM, whims, np.take_along_axis(habits, times, axis=1))
    columns = {
        "customer": np.repeat(np.arange(customers), ORDERS),
        "time": np.array(TIMES)[times.ravel()],
        "drink": np.array(DRINKS)[drinks.ravel()],
    }
    return pl.DataFrame(columns)


table = make_orders(6000, seed=0)
table.head(4)

# %% [markdown]
# A document is what hangs together: here a customer. A token may be a number or, as here, several: the time and the drink. `TokenDocuments` takes all of them end to end,
# and where each begins, in memory or mapped from a file. Whole customers are held out.

# %%
from titans_seq.training.documents import TokenDocuments


def to_documents(table: pl.DataFrame) -> TokenDocuments:
    """Tokens (N, 2) int64: numbers of time and drink."""
    number = [
        pl.col(name).replace_strict(known, range(len(known)), return_dtype=pl.Int64) for name, known in (("time", TIMES), ("drink", DRINKS))
    ]
    starts = [0, *table.group_by("customer", maintain_order=True).len()["len"].cum_sum()]
    return TokenDocuments(table.select(number).to_numpy(), np.array(starts))


train, validation, test = (
    to_documents(table.filter(pl.col("customer").is_between(*ends))) for ends in ((0, 5599), (5600, 5799), (5800, 5999))
)
train.lengths[:4], train.read(0, 0, 3)

# %% [markdown]
# ## A configuration and a model
#
# A configuration is a frozen dataclass that derives from `Config`: it checks itself, and goes to JSON and back. The backbone's is a part of it. Ours mixes by
# memory alone: there is no attention that could look back, so what the model knows of a customer is in its memory's weights or nowhere.
#
# The model is yours: what goes into the backbone as vectors (B, T, dim), and what is made of the vectors that come out. Three things are asked
# for: `model_type` and `config_class`, for saving; `metric`, the unit in which the loss is shown; and `loss`, the mean over its units of a batch, how many
# those are, and the state after.

# %%
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_seq import MemoryConfig, Titans, TitansConfig, TitansState
from titans_seq.checkpoint import Pretrained
from titans_seq.config import Config
from titans_seq.training.trainable import BITS, LossOutput, Metric


def small_backbone() -> TitansConfig:
    return TitansConfig(dim=48, num_layers=2, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, chunk_size=4, max_step=0.5))


@dataclass(frozen=True, kw_only=True)
class CafeConfig(Config):
    """Attributes: titans: the backbone."""

    titans: TitansConfig = field(default_factory=small_backbone)


class CafeModel(Pretrained):
    """The next order of a customer, when one knows at what time it comes."""

    model_type = "cafe"
    config_class = CafeConfig
    metric = Metric("bits per order", BITS)

    def __init__(self, config: CafeConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.titans.dim
        self.drink, self.time, self.next_time = (nn.Embedding(len(known), dim) for known in (DRINKS, TIMES, TIMES))
        self.titans = Titans(config.titans)
        self.head = nn.Linear(dim, len(DRINKS))

    def init_state(self, batch_size: int) -> TitansState:
        return self.titans.init_state(batch_size)

    def forward(self, orders: Tensor, next_times: Tensor, state: TitansState | None = None, **marks: Any) -> tuple[Tensor, TitansState]:
        """Logits (B, T, drinks) of what follows each of the orders (B, T, 2), at the times (B, T); and the state after."""
        x = self.time(orders[..., 0]) + self.drink(orders[..., 1]) + self.next_time(next_times)
        y, state = self.titans(x, state, **marks)
        return self.head(y), state

    def loss(self, batch: dict[str, Any], state: TitansState | None) -> LossOutput:
        """Mean nats an order, of a batch of `DocumentStream`: tokens and targets (B, T, 2), mask of padding, reset where a customer begins."""
        mask = batch["mask"]
        logits, state = self(batch["tokens"], batch["targets"][..., 0], state, mask=mask, reset=batch["reset"])
        nats = F.cross_entropy(logits.transpose(1, 2), batch["targets"][..., 1], reduction="none")
        counted = nats.flatten() if mask is None else nats[mask]
        return LossOutput(counted.mean(), torch.tensor(counted.numel()), state)


# %% [markdown]
# ## Training
#
# `train` does what all domains need: a folder for the run, the bar below, metrics.csv, checkpoints, going on after a stop (`resume=True`), mixed precision, several
# devices, and at the end the model. It takes functions, because it seeds the random numbers before it calls them.

# %%
import tempfile
from pathlib import Path

from titans_seq.training.config import TrainingConfig
from titans_seq.training.loaders import document_loaders
from titans_seq.training.module import TrainingData
from titans_seq.training.run import train as run

folder = Path(tempfile.mkdtemp())
config = TrainingConfig(learning_rate=1e-2, max_steps=250, batch_size=32, segment_length=ORDERS - 1, validate_every=100)
path = run(lambda: CafeModel(CafeConfig()), lambda: TrainingData(*document_loaders(train, validation, config)), config, folder / "cafe")
model = CafeModel.from_pretrained(path)  # in any process, later; save_pretrained(.., ) and the Hugging Face hub as well

# %% [markdown]
# ## A score, beside what is simple
#
# A loss that falls is not yet a model that works. Beside it: how popular a drink is at that time of the day; and what a waiter with a notebook does, who counts what *this* customer
# had at this time, and begins with what is popular (how much that weighs is chosen on the validation customers). And because the list is made up, there
# is a last line: Bayes' rule for one who knows how it was made, all six kinds by heart. Nobody can do better.

# %%
Bits = np.ndarray
orders = torch.stack([torch.from_numpy(test.read(i, 0, ORDERS)) for i in range(len(test.lengths))])  # (customers, orders, 2)
times, drinks = orders.numpy().transpose(2, 0, 1)

popular = np.ones((len(TIMES), len(DRINKS)))
np.add.at(popular, tuple(train.tokens.T), 1)
popular /= popular.sum(1, keepdims=True)


def of_waiter(times: np.ndarray, drinks: np.ndarray, weight: float) -> Bits:
    """Counts of each customer and time of the day, which begin as what is popular: bits (customers, orders)."""
    counts, bits, row = weight * np.repeat(popular[None], len(times), axis=0), np.empty(times.shape), np.arange(len(times))
    for i in range(ORDERS):
        here = counts[row, times[:, i]]
        bits[:, i] = -np.log2(here[row, drinks[:, i]] / here.sum(1))
        counts[row, times[:, i], drinks[:, i]] += 1
    return bits


def of_bayes(times: np.ndarray, drinks: np.ndarray) -> Bits:
    """Who knows the six kinds, how many have a mind of their own, and how many orders are whims."""
    n, bits, row = len(DRINKS), np.empty(times.shape), np.arange(len(times))
    typical = np.eye(n)[OF_KIND]  # (kinds, times, drinks): what the habit is
    habit = np.log((1 - OWN) * typical + OWN / n)[None].repeat(len(times), 0)  # joint with what was ordered so far
    told = (1 - WHIM) * np.eye(n) + WHIM / n  # of a habit, the chance of each drink
    for i in range(ORDERS):
        of_kind = np.logaddexp.reduce(habit, axis=3).sum(2)  # (customers, kinds)
        of_kind = np.exp(of_kind - np.logaddexp.reduce(of_kind, axis=1, keepdims=True))
        here = habit[row, :, times[:, i]]
        here = np.exp(here - np.logaddexp.reduce(here, axis=2, keepdims=True))  # (customers, kinds, drinks)
        chances = np.einsum("ck,ckh,hd->cd", of_kind, here, told)
        bits[:, i] = -np.log2(chances[row, drinks[:, i]])
        habit[row, :, times[:, i]] += np.log(told[:, drinks[:, i]]).T[:, None]
    return bits


@torch.inference_mode()
def of_model(orders: Tensor) -> Bits:
    """Of every order (customers, orders, 2) but the first, which has nothing before it: NaN."""
    logits, _ = model.eval()(orders[:, :-1], orders[:, 1:, 0])
    nats = F.cross_entropy(logits.transpose(1, 2), orders[:, 1:, 1], reduction="none")
    return np.pad(nats.numpy() * BITS, ((0, 0), (1, 0)), constant_values=np.nan)


# %%
from titans_seq.memory import frozen_memory

held_out = np.stack([validation.read(i, 0, ORDERS) for i in range(len(validation.lengths))]).transpose(2, 0, 1)
weight = min((0.1, 0.2, 0.5, 1.0, 2.0, 5.0), key=lambda weight: of_waiter(*held_out, weight).mean())
with frozen_memory(model):
    forgetful = of_model(orders)
found = {
    "popular at that time": -np.log2(popular[times, drinks]),
    "model, its memory frozen": forgetful,
    f"waiter, counts from {weight}": of_waiter(times, drinks, weight),
    "model": of_model(orders),
    "who knows how it was made": of_bayes(times, drinks),
}
pl.DataFrame(
    [
        (name, *(round(float(bits[:, part].mean()), 2) for part in (slice(1, 8), slice(8, 24), slice(24, 64), slice(1, 64))))
        for name, bits in found.items()
    ],
    schema=["bits per order, 200 new customers", "orders 2 to 8", "9 to 24", "25 to 64", "all"],
    orient="row",
)

# %%
import matplotlib.pyplot as plt

_, ax = plt.subplots(figsize=(8, 3.6))
for (name, bits), colour in zip(found.items(), ("#8c959f", "#8250df", "#d4600a", "#0969da", "#24292f"), strict=True):
    ax.plot(np.arange(3, ORDERS - 2), np.convolve(bits[:, 1:].mean(0), np.ones(5) / 5, "valid"), color=colour, label=name)
ax.set(xlabel="orders read of the customer", ylabel="bits per order", title="what is learned of a customer while reading", ylim=(0.8, 3.9))
ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The model comes close to the best there is, and it is far ahead of the waiter: he begins with every customer anew, while *training* has taught the model that there are
# kinds of customers. A few orders tell it the kind, and so what is drunk at times of which it has seen nothing. With its memory frozen it knows the last few orders (in each block a
# convolution over four tokens sees them), and no more. On real data nobody hands out the last line, and the waiter's table may win: so begin with that.

# %% [markdown]
# ## What the memory does
#
# `titans_seq.inspect` looks into any model that is built on the backbone, yours too. A customer of the test, whom we give another person's habits after 32 orders:

# %%
from titans_seq.inspect import plot_memory, record

changed = torch.cat([orders[:100, :32], orders[100:, 32:]], dim=1)  # 100 customers whose habits change
with record(model) as recording, torch.inference_mode():
    model(changed[:, :-1], changed[:, 1:, 0])

frame = recording.frame()
plot_memory(frame, row=0, title="one customer, whose habits change after 32 orders")

# %% [markdown]
# One customer is noisy. Over all hundred: below, what the orders cost; above, the surprise of the memories, which is their own inner loss and not that of the model.

# %%
means = frame.group_by("block", "head", "token").agg(pl.col("surprise").mean()).sort("block", "head", "token")
_, (upper, lower) = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
for (block, head), part in means.group_by("block", "head", maintain_order=True):
    upper.plot(part["token"], part["surprise"], lw=1.2, label=f"block {block}, head {head}")
lower.plot(of_model(changed).mean(0), color="#d4600a", label="habits change")
lower.plot(of_model(orders[:100]).mean(0), color="#0969da", label="the same customers, unchanged")
upper.set(ylabel="surprise", title="a hundred customers whose habits change after 32 orders")
lower.set(xlabel="orders read", ylabel="bits per order")
for ax in (upper, lower):
    ax.axvline(32, color="#8c959f", lw=0.8, ls=":")
    ax.legend(frameon=False, fontsize=8, ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Surprise falls while the habits are learned, and rises when they change, if only by a little. The bits jump, and come down slowly: no customer in training
# ever changed, so nothing has taught the gates to forget, and what was learned before must be written over. Trained on customers who change, it would.

# %% [markdown]
# Streams are kept and go on: a state is saved with what was learned of a customer, has the same size however long he comes, and is all one needs when he
# comes back.

# %%
with torch.inference_mode():
    _, state = model(orders[:1, :40], orders[:1, 1:41, 0])
    state.save(folder / "customer.safetensors")
    state = TitansState.load(folder / "customer.safetensors")
    logits, state = model(orders[:1, 40:41], torch.tensor([[TIMES.index("tea time")]]), state)
chances = logits[0, 0].softmax(-1)
had = [DRINKS[drink] for time, drink in orders[0, :41].tolist() if TIMES[time] == "tea time"]
print(f"at tea time: {DRINKS[int(chances.argmax())]}, {float(chances.max()):.0%}; had so far: {', '.join(had)}")
print(f"the state: {(folder / 'customer.safetensors').stat().st_size / 1024:.0f} KiB")

# %% [markdown]
# ## What to try next
#
# - A list of your own: a table with a column that tells sequences apart, and one or more of what happens. Numbers go in by `nn.Linear` in place of `nn.Embedding`.
# - `variant="mag"` in `TitansConfig`: attention over a window, beside the memory. With 64 orders it sees everything; does it need the memory?
# - `chunk_size=16`: gradients are taken at the chunk's first weights. What is lost of the first orders, and how much faster is it?
# - Fewer customers in training, 500: when does the waiter win?
# - Commands, flags for every setting and `titans-seq info`, from one entry point: [docs/adding_a_domain.md](../docs/adding_a_domain.md). What the trainer can do:
#   [docs/training.md](../docs/training.md).
