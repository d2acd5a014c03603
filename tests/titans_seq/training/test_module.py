"""The step: state carried over segments, gradients that end at them, losses that weigh units alike, reduced precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from domains.text.model import TextConfig, TitansForCausalLM
from domains.text.train import train
from tests.titans_seq.training.small import SMALL, TINY, results, small_model
from titans_seq import UserError, presets
from titans_seq.config import VARIANTS
from titans_seq.training import TrainingConfig
from titans_seq.training.checkpoints import checkpoints_of, read_checkpoint
from titans_seq.training.documents import TokenDocuments
from titans_seq.training.loaders import DocumentStream, TrainingLoader, WindowStream
from titans_seq.training.module import TrainingData, TrainingModule

CPU = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def text_batch(tokens: Tensor, start: int, stop: int) -> dict[str, Any]:
    """A segment of one long document a row."""
    reset = torch.zeros_like(tokens[:, start:stop], dtype=torch.bool)
    reset[:, 0] = True
    return {
        "tokens": tokens[:, start:stop],
        "targets": tokens[:, start + 1 : stop + 1],
        "mask": None,
        "reset": reset if start == 0 else None,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_carried_segments_have_the_losses_of_one_long_reading(variant: str) -> None:
    """Segments end inside chunks, windows and MAC's segments."""
    model = TitansForCausalLM(TextConfig(titans=presets.debug(variant)))
    module = TrainingModule(model, TrainingConfig())
    tokens = torch.randint(0, 256, (2, 34))
    with torch.no_grad():
        whole, _ = model(tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(whole.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, -1)
    for start in range(0, 33, 11):
        module.window.clear()
        loss = module.training_step(text_batch(tokens, start, start + 11), 0)
        assert loss.requires_grad
        mean = float(module.window.total / module.window.units)
        assert mean == pytest.approx(float(expected[:, start : start + 11].mean()), rel=1e-5)


def test_a_stream_of_documents_has_the_losses_of_the_documents_alone() -> None:
    """Rows that begin a document within a segment start from the first state; the mean over a pass is that over the documents."""
    model = small_model().eval()
    documents = TokenDocuments(torch.randint(0, 256, (90,)).numpy(), [0, 7, 40, 43, 90])  # type: ignore[arg-type]
    stream, module = DocumentStream(documents, 2, 6, document_length=100), TrainingModule(model, TrainingConfig(batch_size=2))
    module.on_validation_epoch_start()
    while (batch := stream.take()) is not None:
        module.validation_step(batch, 0)
    total, units = 0.0, 0
    for n in range(4):
        text = torch.from_numpy(documents.read(n, 0, int(documents.lengths[n])).copy())[None]
        with torch.no_grad():
            result = model.loss(text_batch(text, 0, text.shape[1] - 1))
        total, units = total + float(result.loss * result.units), units + int(result.units)
    assert int(module.validation.units) == units == 86
    assert float(module.validation.total) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("carry", [True, False], ids=["carried", "anew"])
def test_gradients_end_where_a_segment_begins(carry: bool) -> None:
    """A byte that stands in the first segment alone moves the second's loss through the memory, but gets no gradient from it."""
    model = TitansForCausalLM(TextConfig(titans=replace(SMALL, dropout=0.0), tie_embeddings=False))
    module = TrainingModule(model, TrainingConfig(carry_state=carry))
    tokens = torch.randint(0, 100, (1, 17))
    tokens[0, 3] = 200
    module.training_step(text_batch(tokens, 0, 8), 0)
    module.training_step(text_batch(tokens, 8, 16), 1).backward()
    assert model.embedding.weight.grad is not None
    assert not model.embedding.weight.grad[200].any()
    second = float(module.window.total)
    tokens[0, 3] = 201
    again = TrainingModule(model, module.config)
    again.training_step(text_batch(tokens, 0, 8), 0)
    first_changed = float(again.window.total)
    again.training_step(text_batch(tokens, 8, 16), 1)
    whole, _ = model(tokens[:, :16])
    whole[:, 8:].sum().backward()
    assert model.embedding.weight.grad[201].any()  # without the boundary there is a gradient
    seen = float(again.window.total) - first_changed != pytest.approx(second - first_of(model, carry, tokens), abs=1e-12)
    assert seen or not carry


def first_of(model: TitansForCausalLM, carry: bool, tokens: Tensor) -> float:
    """Loss of the first segment with byte 200 in it."""
    module = TrainingModule(model, TrainingConfig(carry_state=carry))
    original = tokens.clone()
    original[0, 3] = 200
    module.training_step(text_batch(original, 0, 8), 0)
    return float(module.window.total)


class CaughtGradients(TrainingModule):
    """Keeps what the optimizer is given."""

    gradients: dict[str, Tensor]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def test_a_step_weighs_its_units_alike() -> None:
    """Two batches of 30 and 3 bytes accumulate to the gradient of the mean over all 33, whatever the padding holds."""
    tokens = torch.randint(0, 256, (6, 12))
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[3:, 1:] = False
    mask[0, 8:] = False
    items = [{"tokens": tokens[i, :-1], "targets": tokens[i, 1:], "mask": mask[i], "reset": torch.arange(11) == 0} for i in range(6)]
    config = TrainingConfig(batch_size=3, segment_length=11, accumulate=2, max_steps=1, warmup_steps=0, carry_state=False)
    module = CaughtGradients(small_model(titans=replace(SMALL, dropout=0.0)), config)

    class InOrder(WindowStream):
        def _window(self, taken: int) -> int:
            return taken

    loader = TrainingLoader(InOrder(items, 3), 2)
    trainer = pl.Trainer(max_steps=1, accumulate_grad_batches=2, limit_val_batches=0, **CPU)
    trainer.fit(module, datamodule=TrainingData(lambda rank, world_size: loader, None))
    model = small_model(titans=replace(SMALL, dropout=0.0))
    logits, _ = model(tokens[:, :-1], mask=mask, reset=torch.stack([item["reset"] for item in items]))
    torch.nn.functional.cross_entropy(logits[mask], tokens[:, 1:][mask]).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(module.gradients[name], p.grad, rtol=1e-4, atol=1e-7)


def test_bfloat16_keeps_the_memory_in_float32(texts: Path, tmp_path: Path) -> None:
    """Losses stay near those of float32; the carried memory, the weights and the optimizer are float32."""
    config = replace(TINY, max_steps=10, ema_decay=None, log_every=1)
    for precision in ("32", "bf16"):
        train([texts], tmp_path / precision, TextConfig(titans=SMALL), replace(config, precision=precision), progress=False)
    exact, rounded = (
        [float(row["train_bits_per_byte"]) for row in results(tmp_path / p)[0] if row["train_bits_per_byte"]] for p in ("32", "bf16")
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)
    checkpoint = read_checkpoint(checkpoints_of(tmp_path / "bf16" / "checkpoints")[-1])
    carried = checkpoint["titans_seq"]["carried"][0]["tensors"]
    memory = [x for name, x in carried.items() if ".memory.memory." in name and x.is_floating_point()]
    assert memory
    assert all(x.dtype == torch.float32 for x in memory)
    assert all(x.dtype == torch.float32 for x in checkpoint["state_dict"].values())
    moments = [x for state in checkpoint["optimizer_states"][0]["state"].values() for x in state.values()]
    assert all(x.dtype == torch.float32 for x in moments)


def test_float16_without_cuda_is_refused(texts: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(UserError, match="Use 'bf16' or '32'"):
        train([texts], tmp_path / "run", TextConfig(titans=SMALL), replace(TINY, precision="16"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_says_so_and_keeps_no_checkpoint_of_it(texts: Path, tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e20, gradient_clip=None, warmup_steps=0, ema_decay=None)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+.*Lower learning_rate"):
        train([texts], tmp_path / "run", TextConfig(titans=SMALL), config, progress=False)
    for path in checkpoints_of(tmp_path / "run" / "checkpoints"):
        assert read_checkpoint(path)["global_step"] < 3
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler raises some of its own
def test_compiled_blocks_train_alike(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for any backend; making machine code of it would take minutes."""
    compiled: list[torch.nn.Module] = []

    def compile_traced(self: torch.nn.Module) -> None:
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_traced)
    model = TextConfig(titans=replace(SMALL, dropout=0.0))
    config = replace(TINY, max_steps=3, warmup_steps=1, accumulate=1, ema_decay=None, log_every=1, validate_every=100)
    losses = []
    for flag in (False, True):
        train([texts], tmp_path / str(flag), model, replace(config, compile=flag), progress=False)
        rows = results(tmp_path / str(flag))[0]
        losses.append([float(row["train_bits_per_byte"]) for row in rows if row["train_bits_per_byte"]])
    assert len(compiled) == SMALL.num_layers
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_stage_of_short_sequences_is_training_on_short_documents(texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is handed on from one of them to the next. That the run ends before the stages do is said."""
    config = replace(TINY, max_steps=4, warmup_steps=1)
    short = replace(config, batch_size=12, segment_length=4, document_length=4, carry_state=False)
    train([texts], tmp_path / "warmed_up", TextConfig(titans=SMALL), replace(config, length_warmup=(4, 9)), progress=False)
    said = "length_warmup takes 13 steps and the run has max_steps=4: none of them has sequences of segment_length="
    assert [said in message for message in caplog.messages] == [True]
    train([texts], tmp_path / "short", TextConfig(titans=SMALL), short, progress=False)
    first, second = (results(tmp_path / name)[1] for name in ("warmed_up", "short"))
    assert all(map(torch.equal, first.values(), second.values()))
