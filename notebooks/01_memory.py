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
# # A memory that learns while it reads
#
# A Titans network carries a small network inside, whose **weights are its memory**. With every token that it reads it takes one step of
# gradient descent on them. Nothing is stored, no list of what was read grows: what was read has changed the weights, and to remember is
# to run the small network on a query.
#
# This notebook watches one such memory: how it is written, what it still knows and after how long, what momentum and forgetting are for,
# what depth buys, and what it finds surprising. It needs no data and takes about a minute. The derivation is in
# [docs/rule.md](../docs/rule.md), the paper is [Titans: Learning to Memorize at Test Time](https://arxiv.org/abs/2501.00663).

# %% [markdown]
# ## The rule
#
# Each token brings a key $k_t$, a value $v_t$ and a query $q_t$. The memory $M$ should answer a key with its value, so its loss is
#
# $$\ell(M; k_t, v_t) = \lVert M(k_t) - v_t \rVert^2 \qquad \text{(equation 12)}$$
#
# and its weights $W$ take a step against the gradient, with momentum $S$ and forgetting:
#
# $$S_t = \eta_t\, S_{t-1} - \theta_t \nabla \ell(W_{t-1}; k_t, v_t) \qquad W_t = (1 - \alpha_t)\, W_{t-1} + S_t \qquad \text{(equations 13 and 14)}$$
#
# The output is $y_t = M_t(q_t)$. $\theta$ is the size of a step, $\eta$ how much of the last steps goes on, $\alpha$ how much is forgotten.
# In a model a token decides its own gates; here we set them by hand.
#
# With the smallest memory there is, one matrix ($L = 1$), the rule is three lines:

# %%
import matplotlib.pyplot as plt
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from titans_seq.memory import Gates, MemoryState, MemoryWeights, neural_memory, read_memory

WIDTH = 32
k, v = (normalize(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in (0, 1))

W, S = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, WIDTH)
alpha, eta, theta = 0.01, 0.5, 0.2
for key, value in zip(k, v, strict=True):
    gradient = 2 * torch.outer(key, key @ W - value)  # of |k W - v|^2
    S = eta * S - theta * gradient
    W = (1 - alpha) * W + S

# %% [markdown]
# `neural_memory` is the operator of this package. It does the same for batches, heads, any depth, in chunks, on GPUs, with gradients with
# respect to everything. Written with chunks of one token, it is the loop above:


# %%
def write(weights: MemoryWeights, k: Tensor, v: Tensor, theta: float, eta: float = 0.0, alpha: float = 0.0) -> MemoryState:
    """The state of a memory that has read pairs (B, H, T, D), every gradient taken where the token before left the weights."""
    each = torch.ones(k.shape[:3])
    gates = [Gates(alpha=alpha * each, eta=eta * each, theta=theta * each) for _ in weights.layers]
    return neural_memory(k, k, v, gates, weights, chunk_size=1)[1]


matrix = MemoryWeights(layers=[torch.zeros(1, WIDTH, WIDTH)], residual=False)
state = write(matrix, k[None, None], v[None, None], theta, eta, alpha)
print("largest difference from the loop:", float((state.weights[0][0, 0] - W).abs().max()))
state

# %% [markdown]
# The state is all that is carried from one call to the next. It has the size it had before the first token, however much is read.

# %% [markdown]
# ## What is recalled, and after how long
#
# We write 128 random pairs, one after another, into a matrix of 32 x 32, and then ask for each of them: how similar is the answer to the
# value that was written? 1 is perfect, 0 is no idea. The number of pairs that came after one is its age.

# %%
PAIRS, TRIALS = 128, 32


def recall(weights: MemoryWeights, theta: float, eta: float = 0.0, alpha: float = 0.0) -> Tensor:
    """Similarity of answers and values by age (PAIRS,), the mean over trials."""
    generator = torch.Generator().manual_seed(7)
    k, v = (normalize(torch.randn(TRIALS, 1, PAIRS, WIDTH, generator=generator), dim=-1) for _ in range(2))
    state = write(weights, k, v, theta, eta, alpha)
    return cosine_similarity(read_memory(k, weights, state.weights), v, dim=-1).mean((0, 1)).flip(0)


def smooth(x: Tensor) -> Tensor:
    return x.unfold(0, 5, 1).mean(-1)


def draw(curves: dict[str, Tensor], title: str) -> None:
    _, ax = plt.subplots(figsize=(8, 3.4))
    for name, curve in curves.items():
        ax.plot(smooth(curve), label=name)
    ax.set(xlabel="age: pairs written since", ylabel="similarity to what was written", title=title, ylim=(-0.1, 1.05))
    ax.axvline(WIDTH, color="grey", lw=0.8, ls=":")
    ax.legend(frameon=False)
    plt.show()


draw(
    {f"step {theta}": recall(matrix, theta) for theta in (0.05, 0.1, 0.2, 0.5)},
    "the size of a step: a sharp short memory, or a dull long one",
)

# %% [markdown]
# A large step (at 0.5 a unit key is written exactly) knows the latest pairs well and overwrites the old ones; a small one averages over many.
# The dotted line is the width: 32 numbers cannot keep more than 32 directions apart, so recall of a matrix must fall about there, whatever
# the gates. That is the capacity that a deeper or wider memory buys, at its price.

# %% [markdown]
# ### Momentum
#
# With momentum, the step of a pair is spread over the tokens after it. So the latest pair is *not yet* there, and the best-known one is some
# tokens old: good where what matters was a moment ago and surprise should last a little, bad for a key that is asked for at once. We keep
# the sum of all steps, $\theta / (1 - \eta)$, the same.

# %%
draw({f"eta {eta}": recall(matrix, 0.2 * (1 - eta), eta) for eta in (0.0, 0.5, 0.9, 0.97)}, "momentum: when a pair arrives in the weights")

# %% [markdown]
# ### Forgetting
#
# A matrix that is full can only write over what it holds. Forgetting clears it evenly: old pairs go sooner, and the room is there for the
# new ones.

# %%
draw(
    {f"alpha {alpha}": recall(matrix, 0.2, 0.0, alpha) for alpha in (0.0, 0.01, 0.03, 0.1)}, "forgetting: less of the old, more of the new"
)

# %% [markdown]
# The best setting depends on what will be asked, which is why a Titans block computes all three gates from each token, and why they are
# trained from outside: the gradient of the loss of the task goes through the memory's own gradient steps.

# %% [markdown]
# ## Deep against linear
#
# A matrix can hold linear maps alone. With $L \ge 2$ layers the memory is a small network, $M(x) = \sigma(x W_1) W_2$, and the same rule trains
# it: every token one forward and one backward pass of it. Give both a *function* to learn, not a list: the value depends on how far the key
# lies along four directions, whichever way. We ask for keys that were never shown.


# %%
def network(expansion: int) -> MemoryWeights:
    """Two layers, at random as a model would learn them."""
    generator = torch.Generator().manual_seed(3)
    hidden = expansion * WIDTH
    first = torch.randn(1, WIDTH, hidden, generator=generator) / WIDTH**0.5
    return MemoryWeights(layers=[first, 0.3 * torch.randn(1, hidden, WIDTH, generator=generator) / hidden**0.5], residual=False)


def function(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    inner, outer = torch.randn(WIDTH, 4, generator=generator), torch.randn(4, WIDTH, generator=generator)
    return normalize(((x @ inner).abs() - 0.8) @ outer, dim=-1)


def generalises(weights: MemoryWeights, theta: float, tokens: int) -> float:
    """Similarity on keys that were not among the `tokens` that were read."""
    generator = torch.Generator().manual_seed(5)
    seen, asked = (normalize(torch.randn(4, 1, count, WIDTH, generator=generator), dim=-1) for count in (tokens, 256))
    state = write(weights, seen, function(seen), theta, eta=0.9)
    return float(cosine_similarity(read_memory(asked, weights, state.weights), function(asked), dim=-1).mean())


lengths = (256, 1024, 4096, 8192)
memories = {"linear": (matrix, 0.01), "deep, 4 x 32 hidden": (network(4), 0.02), "deep, 16 x 32 hidden": (network(16), 0.01)}
learned = pl.DataFrame(
    {"tokens read": lengths} | {name: [generalises(m, theta, n) for n in lengths] for name, (m, theta) in memories.items()}
)
learned

# %% [markdown]
# A key and its opposite have the same value, so no matrix can say anything about it, and the linear memory stays at zero. The deep ones learn
# it *while reading*, from one look at each pair, and after a slow begin: thousands of tokens, as gradient descent goes. (Whether a task has
# such structure to offer is another question; for plain lists of random pairs a matrix is as good.) With steps twice as large these two
# diverge; in a model steps are bounded by `max_step`, and surprise by `surprise_clip`.

# %% [markdown]
# ## What surprises it
#
# The norm of the gradient is how wrong the memory was about a token, and so how strongly it will be written: the paper calls it surprise.
# `titans_seq.inspect.record` looks into any model of this package while it reads. Here a whole backbone, untrained, reads a melody of 40
# tokens again and again, and strangers from token 200 to 240.

# %%
from titans_seq import MemoryConfig, Titans, TitansConfig
from titans_seq.inspect import plot_heads, plot_memory, record

torch.manual_seed(0)
memory = MemoryConfig(num_heads=2, chunk_size=8, max_step=0.05)
model = Titans(TitansConfig(dim=32, num_layers=2, variant="mag", memory=memory)).eval()
x = torch.randn(1, 40, 32).repeat(1, 8, 1)
x[:, 200:240] = 1.5 * torch.randn(1, 40, 32)

with record(model) as recording, torch.inference_mode():
    model(x)

frame = recording.frame()
recording

# %%
plot_memory(frame, title="a melody of 40 tokens again and again, strangers from 200 to 240")

# %% [markdown]
# Surprise falls within the first round, while the part of the answers that was *learned* from the stream rises to the size of the answers
# themselves. The strangers surprise it, less than the first tokens did, and when the melody returns it is still known. Each line is a mean;
# the heads differ:

# %%
plot_heads(frame, "surprise")

# %% [markdown]
# The recording is a plain [polars](https://pola.rs) frame, a row for each token, block, head and layer of the memory:

# %%
frame.group_by("block", rounds=pl.col("token") // 40).agg(pl.col("surprise", "learned").mean()).sort("block", "rounds").pivot(
    "block", index="rounds", values="surprise"
)

# %% [markdown]
# ## What to try next
#
# - Change `chunk_size` in `MemoryConfig`: inside a chunk every gradient is taken at the chunk's first weights. Longer chunks are faster and
#   blunter. How long until the first round is no longer learned?
# - `with frozen_memory(model):` (`titans_seq.memory`) switches all learning off: what is left of `learned`, and of surprise?
# - A model that is *trained* to use its memory: `tests/titans_seq/test_recall.py` trains one to recall pairs, and one whose memory cannot
#   learn.
# - [docs/variants.md](../docs/variants.md): how memory and attention are joined in the four variants.
