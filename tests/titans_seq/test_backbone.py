"""`Titans`, every variant: a stream may be cut anywhere, no token sees the future, no row sees another, states stay small and resume."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.limits import HANG
from titans_seq import AttentionConfig, MemoryConfig, Titans, TitansConfig, TitansState
from titans_seq.state import State

DIM, WINDOW, SEGMENT = 16, 6, 6
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
VARIANTS = {
    "lmm": ("lmm", 0),
    "mac": ("mac", 0),
    "mac-3-tokens": ("mac", 3),
    "mag": ("mag", 0),
    "mal": ("mal", 0),
    "mac-to-first": ("mac", 0),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def make_model(name: str, dtype: torch.dtype = torch.float64, large: bool = True, layers: int = 2) -> Titans:
    """Two layers by default; weights large enough that memory, attention and gates all matter."""
    variant, memory_tokens = VARIANTS[name]
    towards = "first_state" if name.endswith("to-first") else "zero"
    attention = {"num_heads": 2, "sliding_window": WINDOW, "segment_length": SEGMENT, "persistent_tokens": 2}
    config = TitansConfig(
        dim=DIM,
        num_layers=layers,
        variant=variant,
        memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4, max_step=0.05, forgetting_towards=towards),
        attention=AttentionConfig(memory_tokens=memory_tokens, **attention),
    )
    model = Titans(config)
    for parameter in model.parameters():
        if large and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=dtype)


def tensors(state: State) -> list[Tensor]:
    found: list[Tensor] = []
    state.map(lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def assert_same_state(actual: State, expected: State) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def read_in_pieces(model: Titans, x: Tensor, cuts: list[int]) -> tuple[Tensor, TitansState]:
    pieces, state = [], None
    for start, stop in pairwise([0, *cuts, x.shape[1]]):
        y, state = model(x[:, start:stop], state)
        pieces.append(y)
    return torch.cat(pieces, dim=1), state


@variants
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_split_equals_one_pass(name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 20), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=5), label="cuts"))
    model, x = make_model(name), inputs(length)
    with torch.inference_mode():
        expected, expected_state = model(x)
        y, state = read_in_pieces(model, x, cuts)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_same_state(state, expected_state)


@variants
def test_token_by_token_equals_one_pass(name: str) -> None:
    model, x = make_model(name), inputs(26)
    with torch.inference_mode():
        expected, expected_state = model(x)
        y, state = read_in_pieces(model, x, list(range(1, 26)))
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_same_state(state, expected_state)


@variants
def test_gradients_flow_through_a_split(name: str) -> None:
    model, x = make_model(name), inputs(15)
    leaves = list(model.parameters())
    cotangent = inputs(15)
    expected = torch.autograd.grad((model(x)[0] * cotangent).sum(), leaves)
    actual = torch.autograd.grad((read_in_pieces(model, x, [5, 8])[0] * cotangent).sum(), leaves)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    for (parameter, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert gradient.abs().max() > 1e-9, parameter


@variants
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_no_token_sees_the_future(name: str, scale: float) -> None:
    """Other tokens from t on, huge ones too: nothing before t changes, the rest does. Every t of two segments and three chunks."""
    model, x = make_model(name), inputs(13)
    with torch.inference_mode():
        y, _ = model(x)
        for t in range(1, 13):
            changed = x.clone()
            changed[:, t:] = scale * inputs(13 - t)
            z, _ = model(changed)
            torch.testing.assert_close(z[:, :t], y[:, :t], rtol=0, atol=1e-12)
            assert ((z[:, t:] - y[:, t:]).abs().amax(-1) > 1e-6).all()


@variants
def test_gradients_are_causal(name: str) -> None:
    """d y_t / d x_s is zero for s > t, and not for s <= t: the memory reaches back to the first token."""
    model, x = make_model(name), inputs(13, batch=1).requires_grad_()
    y, _ = model(x)
    for t in range(13):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        size = gradient[0].abs().amax(-1)
        assert size[t + 1 :].sum() == 0
        assert (size[: t + 1] > 0).all()


@variants
def test_rows_do_not_touch_each_other(name: str) -> None:
    model, x = make_model(name), inputs(15, batch=3)
    changed = x.clone()
    changed[0] = 1e3 * inputs(15, batch=1)[0]
    with torch.inference_mode():
        for cuts in ([], [5, 6]):
            (y, state), (z, state_z) = read_in_pieces(model, x, cuts), read_in_pieces(model, changed, cuts)
            assert torch.equal(z[1:], y[1:])
            assert not torch.allclose(z[0], y[0])
            rest = torch.tensor([1, 2])
            assert all(map(torch.equal, tensors(state_z.select(rest)), tensors(state.select(rest))))


@variants
def test_select_takes_rows_of_a_stream(name: str) -> None:
    """A row that is taken twice goes on as two streams, in the order of the index."""
    model, x, rest = make_model(name), inputs(9, batch=3), inputs(7, batch=3)
    index = torch.tensor([2, 0, 2, 1])
    with torch.inference_mode():
        _, state = model(x)
        expected, _ = model(rest, state)
        y, _ = model(rest[index], state.select(index))
    torch.testing.assert_close(y, expected[index], **TOLERANCE)


@variants
def test_a_state_can_be_forked(name: str) -> None:
    """Going on from a state leaves it as it was: any number of continuations start from the same point."""
    model = make_model(name)
    with torch.inference_mode():
        _, state = model(inputs(9))
        kept = state.clone()
        model(inputs(8), state)
        model(inputs(1), state)
    assert all(map(torch.equal, tensors(state), tensors(kept)))


CONTINUE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from titans_seq import Titans, TitansState
torch.set_num_threads(int(sys.argv[1]))
for folder in sys.argv[2:]:
    model = Titans.from_pretrained(folder)
    state = TitansState.load(folder + "/state.safetensors")
    with torch.inference_mode():
        y, state = model(load_file(folder + "/input.safetensors")["x"], state)
    save_file({"y": y}, folder + "/output.safetensors")
    state.save(folder + "/after.safetensors")
"""


def test_a_stream_goes_on_in_another_process(tmp_path: Path) -> None:
    """Model, state and input through files: bit for bit what this process gives. 9 tokens: inside a segment and a chunk; 12: between."""
    expected = {}
    for name in VARIANTS:
        for length in (9, 12):
            folder = tmp_path / f"{name}-{length}"
            model, rest = make_model(name, torch.float32), inputs(11, dtype=torch.float32)
            model.save_pretrained(folder)
            with torch.inference_mode():
                _, state = model(inputs(length, dtype=torch.float32))
                state.save(folder / "state.safetensors")
                save_file({"x": rest}, folder / "input.safetensors")
                expected[folder] = model(rest, state)
    command = [sys.executable, "-c", CONTINUE, str(torch.get_num_threads()), *map(str, expected)]
    subprocess.run(command, check=True, timeout=HANG)
    for folder, (y, state) in expected.items():
        assert torch.equal(load_file(folder / "output.safetensors")["y"], y), folder.name
        after = TitansState.load(folder / "after.safetensors")
        assert all(map(torch.equal, tensors(after), tensors(state))), folder.name


@variants
def test_the_state_does_not_grow(name: str) -> None:
    """Of one size from the first token on, whatever is read."""
    model, state, sizes = make_model(name, torch.float32), None, []
    with torch.inference_mode():
        for _ in range(8 + 3 * SEGMENT):
            _, state = model(inputs(1, dtype=torch.float32), state)
            sizes.append(state.nbytes)
        _, state = model(inputs(4 * SEGMENT * WINDOW, dtype=torch.float32), state)
    assert {*sizes, state.nbytes, model.init_state(2).nbytes} == {sizes[0]}


@variants
def test_training_lowers_the_loss(name: str, tmp_path: Path) -> None:
    """A few steps of AdamW on telling the token before last; then the checkpoint gives the same bits."""
    model = make_model(name, torch.float32, large=False).train()
    x = inputs(24, batch=4, dtype=torch.float32)
    target = torch.cat([torch.zeros(4, 2, DIM), x[:, :-2]], dim=1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (model(x)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    model.save_pretrained(tmp_path)
    loaded = Titans.from_pretrained(tmp_path)
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(x)[0], model.eval()(x)[0])


def assert_compiles(name: str, gradients: bool) -> None:
    model, x = make_model(name, layers=1), inputs(8)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(gradients):
        (y, state), (expected, expected_state) = compiled(x), model(x)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_same_state(state, expected_state)
    if gradients:
        leaves = list(model.parameters())
        actual, wanted = (torch.autograd.grad(result.square().sum(), leaves) for result in (y, expected))
        torch.testing.assert_close(actual, wanted, **TOLERANCE)
    torch._dynamo.reset()


@variants
def test_compiles_as_one_graph(name: str) -> None:
    """A fresh stream through torch.compile(fullgraph=True) equals eager; two chunks, and for MAC two segments."""
    assert_compiles(name, gradients=False)


@pytest.mark.slow
@variants
def test_compiles_as_one_graph_with_gradients(name: str) -> None:
    assert_compiles(name, gradients=True)


@variants
def test_inference_mode_and_autograd_give_the_same(name: str) -> None:
    model, x = make_model(name), inputs(9)
    with torch.inference_mode():
        y, _ = model(x)
    assert torch.equal(y, model(x)[0])


def test_what_a_memory_is_written_with_does_not_grow_with_attentions_output() -> None:
    """MAC: however large training makes the output of attention, the memory is written with vectors of one size."""
    model, x = make_model("mac"), inputs(29)
    expected, _ = model(x)
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.attention.output.weight.mul_(1e3)
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-3, atol=1e-3)  # but for the norms' eps


def test_dropout_acts_in_training_only() -> None:
    config = TitansConfig(dim=DIM, num_layers=1, variant="mag", dropout=0.5)
    model, x = Titans(config), inputs(5, dtype=torch.float32)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


@variants
def test_bad_inputs_name_expected_and_given(name: str) -> None:
    model = make_model(name)
    with pytest.raises(TypeError, match=rf"x must be a torch.Tensor \(B, T, dim={DIM}\), got list"):
        model([[0.0] * DIM])
    for shape in ((2, 5, DIM + 1), (2, 0, DIM), (0, 5, DIM), (5, DIM), (1, 2, 5, DIM)):
        with pytest.raises(ValueError, match=rf"x must be \(B >= 1, T >= 1, dim={DIM}\), got \({', '.join(map(str, shape))}\)"):
            model(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must have the model's dtype torch\.float64, got torch\.float32"):
        model(inputs(3).float())
    _, state = model(inputs(3))
    with pytest.raises(ValueError, match="batch_size must be at least 0, got -1"):
        model.init_state(-1)
    with pytest.raises(ValueError, match="state is of a model with 1 blocks, this one has 2"):
        model(inputs(3), TitansState(state.blocks[:1]))


@variants
def test_a_state_of_another_model_is_refused(name: str) -> None:
    """Another variant, and another batch size."""
    model = make_model(name)
    other = make_model("lmm" if name != "lmm" else "mag")
    _, state = other(inputs(3))
    with pytest.raises(ValueError, match="state"):
        model(inputs(3), state)
    _, state = model(inputs(3, batch=3))
    with pytest.raises(ValueError, match="state"):
        model(inputs(3), state)


@variants
@pytest.mark.parametrize("position", [-1, 2**60], ids=["before", "beyond"])
def test_a_position_where_no_stream_stands_is_refused(name: str, position: int) -> None:
    """As a damaged file may hold it, of every part of every state; and one that is no integer."""
    model = make_model(name)
    _, state = model(inputs(3))
    for wrong in (lambda x: torch.full_like(x, position), Tensor.double):
        damaged = state.map(lambda x, wrong=wrong: x if x.is_floating_point() else wrong(x))
        with pytest.raises(ValueError, match=r"state\.position must be"):
            model(inputs(3), damaged)
