"""`titans-seq doctor`: what is installed here, what will run, and what is broken."""

import os
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from titans_seq.commands.report import show
from titans_seq.installed import installed_version, torch_problem

REQUIRED = ("torch", "safetensors", "huggingface_hub", "lightning", "gluonts", "polars", "numpy")
EXTRAS = {
    "triton": "the fused form of the memory on NVIDIA GPUs",
    "tensorboard": "TensorBoard logs of training",
    "fastapi": "`titans-seq serve`, with uvicorn: pip install 'titans-seq[serve]'",
    "uvicorn": "`titans-seq serve`, with fastapi: pip install 'titans-seq[serve]'",
    "hf_xet": "faster transfers from and to the hub",
    "transformers": "language models in Hugging Face transformers",
    "lm_eval": "language models on tasks of lm-evaluation-harness",
}


def doctor(
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object.", negative="")] = False,
) -> None:
    """Say what is installed here, which form of the memory will run and why, and which domains are found or broken.

    Exit status 1 if something is broken.
    """
    found: dict[str, Any] = {"titans_seq": version("titans-seq"), "python": f"{platform.python_version()} ({sys.executable})"}
    found["platform"] = platform.platform()
    found["packages"] = {name: installed_version(name) for name in REQUIRED}
    found["extras"] = {name: installed_version(name) or f"not installed: {use}" for name, use in EXTRAS.items()}
    found |= _torch_report()
    cache, cache_problem = _cache()
    found["hub_cache"] = cache
    plugins, plugin_problems = _domains()
    found["domains"] = plugins
    missing = [f"{name} is not installed: pip install --upgrade titans-seq" for name in REQUIRED[1:] if find_spec(name) is None]
    found["problems"] = [*filter(None, [torch_problem()]), *missing, *cache_problem, *plugin_problems]
    if not as_json:
        found["problems"] = {str(i + 1): problem for i, problem in enumerate(found["problems"])}
    show(found, as_json)
    if found["problems"]:
        sys.exit(1)


def _torch_report() -> dict[str, Any]:
    """The build of torch, its devices and threads, and the form that `impl="auto"` takes on each kind of device."""
    if find_spec("torch") is None:
        return {}
    import torch

    cuda = torch.cuda.is_available()
    names = [f"{torch.cuda.get_device_name(i)}, capability {'.'.join(map(str, torch.cuda.get_device_capability(i)))}" for i in _range(cuda)]
    return {
        "torch_build": f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU",
        "cuda_devices": names,
        "threads": {
            "torch": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        },
        "memory_form": _forms("cuda" if cuda else "cpu"),
        "native_kernels": _native(),
    }


def _native() -> str:
    """The libraries that `impl="fused"` runs on CPUs, or why there are none."""
    from titans_seq.memory.native import library

    problem = library.problem("float")
    return f"compiled by {' '.join(library.find_compiler())}, kept in {library.cache_folder()}" if problem is None else problem


def _range(cuda: bool) -> range:
    import torch

    return range(torch.cuda.device_count() if cuda else 0)


def _forms(device: str) -> dict[str, str]:
    """What `choose_implementation` says for the default memory with heads of 64: many tokens, and one."""
    import torch

    from titans_seq.config import MemoryConfig
    from titans_seq.memory import NeuralMemory
    from titans_seq.memory.functional import choose_implementation

    layer = NeuralMemory(64, MemoryConfig(num_heads=1)).to(device)
    forms = {}
    for name, length in (("many_tokens", 64), ("one_token", 1)):
        q = torch.zeros(1, 1, length, 64, device=device)
        choice = choose_implementation(q, layer.gates(torch.zeros(1, length, 64, device=device)), layer.weights)
        forms[f"{name}_on_{device}"] = f"{choice.impl}: {choice.reason}"
    return forms


def _cache() -> tuple[str, list[str]]:
    """The hub's cache, and a problem if nothing can be written there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return str(folder), []
    except OSError as error:
        return str(folder), [f"the hub's cache {folder} cannot be written ({error}): set HF_HOME to a folder of yours"]


def _domains() -> tuple[dict[str, str], list[str]]:
    from titans_seq.domain import find_plugins, import_object

    plugins, problems = {}, []
    for plugin in find_plugins():
        broken = [plugin.problem] if plugin.problem else []
        for path in (*plugin.domain.commands.values(), *plugin.domain.models.values()):
            try:
                with warnings.catch_warnings(action="ignore"):
                    import_object(path)
            except Exception as error:  # noqa: BLE001 - whatever a third party's module raises
                broken.append(f"{path}: {type(error).__name__}: {error}")
        offers = ", ".join((*plugin.domain.commands, *plugin.domain.models))
        plugins[plugin.name] = f"{plugin.package}: {'broken' if broken else offers}"
        problems += [f"domain {plugin.name!r} of package {plugin.package}: {problem}" for problem in broken]
    return plugins, problems
