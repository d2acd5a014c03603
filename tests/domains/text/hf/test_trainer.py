"""`Trainer` of transformers on our model: a step, its checkpoint, and on from there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from domains.text.model import TitansForCausalLM
from titans_seq import load_model

TEXTS = ["It was the best of times", "it was the worst", "of times, it was", "the age of wisdom"]


def trainer(folder: Path, output: Path, steps: int) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        save_steps=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [dict(tokenizer(text)) for text in TEXTS]
    return Trainer(model, settings, DataCollatorForLanguageModeling(tokenizer, mlm=False), rows, processing_class=tokenizer)


def test_a_step_is_the_step_of_the_loss_and_goes_on_from_its_checkpoint(ours: TitansForCausalLM, folder: Path, tmp_path: Path) -> None:
    """With gradients summed over two batches: a step of SGD on the mean over all tokens; what is saved is one of our models."""
    run = trainer(folder, tmp_path / "run", 2)
    run.train()
    ours.train()
    rows = [torch.tensor([[ours.config.end, *ids.tolist()]]) for ids in ours.tokenizer.encode_batch(TEXTS)]
    for _ in range(2):  # each an epoch
        nats = [torch.nn.functional.cross_entropy(ours(row)[0][0, :-1], row[0, 1:], reduction="sum") for row in rows]
        loss = torch.stack(nats).sum() / sum(row.shape[1] - 1 for row in rows)
        parameters = list(ours.parameters())
        with torch.no_grad():
            for x, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                x -= 0.01 * gradient
    logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert logged[1] == pytest.approx(loss.item(), rel=1e-5)
    saved = load_model(tmp_path / "run" / "checkpoint-2")
    assert isinstance(saved, TitansForCausalLM)
    assert saved.tokenizer.identity == ours.tokenizer.identity
    for name, x in ours.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], x, rtol=1e-4, atol=1e-6)

    resumed = trainer(folder, tmp_path / "run", 2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    again = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(x, saved.state_dict()[name]) for name, x in again.items())
