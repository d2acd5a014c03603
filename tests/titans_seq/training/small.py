"""A run so small that it takes a second, with everything that has a state switched on; the same in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from domains.text.model import TextConfig, TitansForCausalLM
from tests.limits import HANG
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.training import TrainingConfig
from titans_seq.training.metrics import read_metrics

ROOT = Path(__file__).parents[3]

SMALL = TitansConfig(
    dim=16,
    num_layers=1,
    variant="mag",
    dropout=0.1,
    memory=MemoryConfig(num_heads=1, expansion=1, chunk_size=4),
    attention=AttentionConfig(num_heads=1, sliding_window=8, segment_length=8, persistent_tokens=1),
)

TINY = TrainingConfig(
    learning_rate=1e-2,
    max_steps=12,
    warmup_steps=2,
    batch_size=3,
    accumulate=2,
    segment_length=16,
    document_length=50,
    ema_decay=0.9,
    validate_every=5,
    checkpoint_every=1,
    log_every=2,
)


def small_model(**changes: Any) -> TitansForCausalLM:
    """The same weights at every call."""
    torch.manual_seed(0)
    return TitansForCausalLM(TextConfig(**{"titans": SMALL, **changes}))


def command(
    texts: Path, output: Path, config: TrainingConfig, resume: bool = False, backbone: TitansConfig = SMALL, before: str = ""
) -> list[str]:
    """Command line of a process that trains, after the code of `before`."""
    script = output.parent / f"{output.name}.py"
    script.write_text(f"""{before}
from domains.text.model import TextConfig
from domains.text.train import train
from titans_seq.training import TrainingConfig
model = TextConfig.from_json({TextConfig(titans=backbone).to_json()!r})
config = TrainingConfig.from_json({config.to_json()!r})
train([{str(texts)!r}], {str(output)!r}, model, config, resume={resume}, progress=False)
""")
    return [sys.executable, str(script)]


def forks(texts: Path, folder: Path, config: TrainingConfig, before: dict[str, str]) -> dict[str, int]:
    """Processes that train in FOLDER/NAME, each after its code of `before`; one that imports everything forks them. Exit codes by name."""
    script = folder / "forks.py"
    script.write_text(f"""
import json, os
import torch
import titans_seq.training.run
from domains.text.model import TextConfig
from domains.text.train import train
from titans_seq.training import TrainingConfig
model = TextConfig.from_json({TextConfig(titans=SMALL).to_json()!r})
config = TrainingConfig.from_json({config.to_json()!r})
codes = {{}}
for name, code in {before!r}.items():
    if not (child := os.fork()):
        exec(code, globals())
        train([{str(texts)!r}], os.path.join({str(folder)!r}, name), model, config, progress=False)
        os._exit(0)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
""")
    done = run([sys.executable, str(script)])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def start(arguments: list[str]) -> subprocess.Popen:
    """Start a process."""
    return subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a process to its end."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=HANG, env=ENVIRONMENT)


def results(output: Path) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
    """Rows of metrics without the clock's columns, and the weights of the trained model."""
    clock = ("tokens_per_second", "seconds")
    rows = [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(output / "metrics.csv")]
    return rows, TitansForCausalLM.from_pretrained(output / "model").state_dict()
