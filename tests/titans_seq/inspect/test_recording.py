"""`record`: one tidy frame of whatever a model reads, whichever way it is called, and a model that does as it did."""

from pathlib import Path

import polars as pl
import pytest
import torch

from domains.text.config import GenerationConfig, TextConfig
from domains.text.generate import generate
from domains.text.model import TitansForCausalLM
from titans_seq import AttentionConfig, MemoryConfig, NeuralMemory, Titans, TitansConfig, presets
from titans_seq.config import VARIANTS
from titans_seq.inspect import QUANTITIES, plot_heads, plot_memory, record
from titans_seq.memory import trace_memory

DIM, HEADS, DEPTH, BLOCKS = 16, 2, 2, 2
KEYS = ["stream", "row", "token", "block", "head", "layer"]


def backbone(variant: str) -> Titans:
    memory = MemoryConfig(num_heads=HEADS, expansion=2, chunk_size=4)
    attention = AttentionConfig(num_heads=2, sliding_window=8, segment_length=4)
    config = TitansConfig(dim=DIM, num_layers=BLOCKS, variant=variant, memory=memory, attention=attention)
    return Titans(config).double().eval()


def numbers(frame: pl.DataFrame) -> torch.Tensor:
    return torch.from_numpy(frame.select(QUANTITIES).to_numpy().copy())


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_row_for_each_token_head_and_layer_however_the_stream_is_cut(variant: str) -> None:
    model, x = backbone(variant), torch.randn(3, 11, DIM, dtype=torch.float64)
    plain, _ = model(x)
    with record(model) as whole:
        y, _ = model(x)
    assert torch.equal(y, plain)
    frame = whole.frame()
    assert len(frame) == 3 * 11 * BLOCKS * HEADS * DEPTH
    assert frame.select(KEYS).is_unique().all()
    assert frame["memory"].unique(maintain_order=True).to_list() == whole.memories
    assert frame.select(pl.col(QUANTITIES).is_finite().all()).row(0) == (True,) * len(QUANTITIES)
    with record(model) as cut:
        state = None
        for piece in x.split((1, 6, 4), dim=1):
            _, state = model(piece, state)
    assert cut.frame().select(KEYS).equals(frame.select(KEYS))
    torch.testing.assert_close(numbers(cut.frame()), numbers(frame), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_has_no_rows(variant: str) -> None:
    model, x = backbone(variant), torch.randn(2, 9, DIM, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, [0, 3, 7]] = False
    with record(model) as padded:
        model(x, mask=mask)
    with record(model) as alone:
        model(x[1:, mask[1]])
    short = padded.frame().filter(pl.col("row") == 1)
    assert len(short) == 6 * BLOCKS * HEADS * DEPTH
    assert short["token"].max() == 5
    torch.testing.assert_close(numbers(short), numbers(alone.frame()), rtol=1e-5, atol=1e-6)


def test_calls_without_a_state_are_streams_of_their_own() -> None:
    model, x = backbone("mag"), torch.randn(1, 5, DIM, dtype=torch.float64)
    with record(model) as recording:
        for _ in range(3):
            model(x)
    frame = recording.frame()
    assert frame["stream"].unique().sort().to_list() == [0, 1, 2]
    first, last = (numbers(frame.filter(pl.col("stream") == number)) for number in (0, 2))
    assert torch.equal(first, last)
    with pytest.raises(ValueError, match="one stream is expected, 3 were read"):
        recording.stacked("surprise")


def test_texts_that_are_gone_on_with_are_streams_of_their_own() -> None:
    model = TitansForCausalLM(TextConfig(titans=presets.debug("mag"))).eval()
    config = GenerationConfig(max_tokens=3, temperature=0.0)
    with record(model) as recording:
        for prompts in (["It was"], ["It was"], ["It was", "But it"]):
            generate(model, prompts, config)
    frame = recording.frame()
    assert frame["stream"].unique().sort().to_list() == [0, 1, 2]
    first, second = (numbers(frame.filter(pl.col("stream") == number)) for number in (0, 1))
    assert torch.equal(first, second)
    assert frame.filter(pl.col("stream") == 2)["row"].unique().sort().to_list() == [0, 1]


def test_a_memory_by_itself_and_what_is_stacked() -> None:
    layer, x = NeuralMemory(DIM, MemoryConfig(num_heads=HEADS)), torch.randn(2, 7, DIM)
    with record(layer) as recording:
        layer(x)
    trace = trace_memory(layer, x)
    assert torch.equal(recording.stacked("surprise"), trace.surprise.unsqueeze(1))
    assert torch.equal(recording.stacked("learned"), trace.learned.unsqueeze(1))


def test_what_cannot_be_recorded_is_said() -> None:
    with pytest.raises(ValueError, match="Linear has no NeuralMemory"), record(torch.nn.Linear(2, 2)):
        pass
    with record(backbone("lmm")) as nothing:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        nothing.frame()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_hardly_changes_is_drawn_so(variant: str) -> None:
    """An untrained memory's gates stand still, in MAC to a thousandth: scales begin at 0 and end above, and no block hides another."""
    model = backbone(variant)
    with record(model) as recording:
        model(torch.randn(1, 40, DIM, dtype=torch.float64))
    for ax in plot_memory(recording.frame()).axes:
        tokens, means = ax.lines[::2], ax.lines[1::2]
        highest = max(max(line.get_ydata()) for line in tokens)
        assert ax.get_yscale() == "linear"
        assert ax.get_ylim() == pytest.approx((0, 1.1 * highest))
        assert len({line.get_color() for line in means}) == BLOCKS
        assert means[0].get_linewidth() > means[1].get_linewidth()


def one_value_at_50(value: float, block: int = 0) -> pl.DataFrame:
    """A frame of 100 tokens, all quantities 1 but for one token."""
    columns = dict.fromkeys(("stream", "row", "head", "layer"), 0) | {"block": block}
    frame = pl.DataFrame({"token": range(100)}).with_columns(**{name: pl.lit(value) for name, value in columns.items()})
    return frame.with_columns(pl.when(pl.col("token") == 50).then(value).otherwise(1.0).alias(name) for name in QUANTITIES)


def test_a_value_far_above_the_others_does_not_flatten_them() -> None:
    assert {ax.get_yscale() for ax in plot_memory(one_value_at_50(1e4)).axes} == {"log"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_has_diverged_is_drawn_as_far_as_it_goes(value: float) -> None:
    assert {ax.get_ylim() for ax in plot_memory(one_value_at_50(value)).axes} == {(0, 1.1)}


def test_chosen_blocks_keep_their_numbers() -> None:
    frame = pl.concat([one_value_at_50(1.0, block) for block in (1, 3)])
    assert [text.get_text() for text in plot_memory(frame).legends[0].get_texts()] == ["block 1", "block 3"]


def test_pictures_show_every_block_and_name_what_is_not_there(tmp_path: Path) -> None:
    model = backbone("mal")
    with record(model) as recording:
        model(torch.randn(2, 30, DIM, dtype=torch.float64))
    frame = recording.frame()
    figure = plot_memory(frame, row=1, title="a stream", path=tmp_path / "memory.png")
    assert {ax.get_title(loc="left").partition(":")[0] for ax in figure.axes} == set(QUANTITIES)
    assert all(len(ax.lines) == 2 * BLOCKS for ax in figure.axes)  # tokens and running means
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["block 0", "block 1"]
    heads = plot_heads(frame, "learned", path=tmp_path / "heads.png")
    assert [label.get_text() for label in heads.axes[0].get_yticklabels()] == [f"block {b}, head {h}" for b in (0, 1) for h in (0, 1)]
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    assert (tmp_path / "heads.png").stat().st_size > 10_000
    assert heads._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"  # in a notebook
    with pytest.raises(ValueError, match=r"no stream 0, row 2; it has \(stream, row\) \(0, 0\), \(0, 1\)"):
        plot_memory(frame, row=2)
    with pytest.raises(ValueError, match="quantity must be one of surprise"):
        plot_heads(frame, "surprised")
