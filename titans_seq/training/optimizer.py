"""AdamW's parameter groups, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from titans_seq.memory.layer import MemoryNetwork
from titans_seq.training.config import TrainingConfig

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups "decay" and "no_decay" for `torch.optim.AdamW`; every parameter is in exactly one, in the model's order.

    The weights of linear maps and convolutions decay. All else does not: biases, norms, the memory's first state, the maps that make its
    gates (alpha, eta, theta), and what is looked up rather than multiplied: embeddings (as in OLMo 2, arXiv 2501.00656; tied ones too),
    persistent tokens, memory queries and other parameters that stand alone.
    """
    gates = {module for network in model.modules() if isinstance(network, MemoryNetwork) for module in _gate_maps(network)}
    decaying = {module.weight for module in model.modules() if isinstance(module, LINEAR_MAPS) and module not in gates}
    decaying -= {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}

    def group(name: str, parameters: list[Tensor], decay: float) -> dict[str, Any]:
        return {"name": name, "params": parameters, "weight_decay": decay}

    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        group("decay", [p for p in parameters if p in decaying], weight_decay),
        group("no_decay", [p for p in parameters if p not in decaying], 0.0),
    ]


def _gate_maps(network: MemoryNetwork) -> list[nn.Module]:
    """Every module that takes part in making a memory's gates."""
    maps = [network.momentum_and_step, *([] if network.forgetting is None else [network.forgetting])]
    return [module for gate_map in maps for module in gate_map.modules()]


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of `config.learning_rate` at a step, the first being 0: above 0 there, 1 after the warm-up, minimum_share at max_steps."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * _progress(step, config.warmup, config.max_steps)))
    else:
        start = max(config.warmup, round(config.max_steps * (1 - config.decay_share)))
        left = 1 - math.sqrt(_progress(step, start, config.max_steps))
    return config.minimum_share + (1 - config.minimum_share) * left


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, in [0, 1]."""
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over `parameter_groups` and its schedule, advanced once a step."""
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
