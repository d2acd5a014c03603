"""FSDP2 and DDP around models with a carried state: what torch's wrappers need to be told.

Each is given a model with `titans_seq.blocks.Block` in it, whatever a domain puts around the backbone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from titans_seq.blocks import Block
from titans_seq.memory.layer import MemoryNetwork
from titans_seq.state import State


def shard_model(model: nn.Module, mesh: DeviceMesh, forward_methods: Sequence[str] = ()) -> None:
    """Shard parameters, gradients and with them the optimizer's state over the ranks of `mesh` by FSDP2, in place, block by block.

    Make the optimizer afterwards. Parameters are gathered and gradients averaged in their own dtype: with float32 parameters the memory is
    float32 all through, exactly as on one device; `torch.autocast` makes the large products cheap. `init_state` works without autograd
    alone: in training begin with None.

    Args:
        model: with the same parameters on every rank, on the device of `mesh`.
        mesh: of one dimension.
        forward_methods: methods of `model` besides `forward` that run it, such as a Lightning module's training_step.

    Raises:
        ValueError: the model has no Block, or the mesh more than one dimension.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no titans_seq.blocks.Block to shard")
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}: {mesh}")
    use_every_parameter(model)
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in blocks:
        block.mixer.init_state = _WholeInitialState(block.mixer)  # type: ignore[assignment]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for name in forward_methods:
        register_fsdp_forward_method(model, name)


def use_every_parameter(model: nn.Module) -> None:
    """Have every step give the memories' first states a gradient: zero where all rows go on from a carried state.

    Without it they have none in such a step. Ranks could then differ in which gradients they have, which DDP refuses and FSDP2 gets wrong.
    A run on one device that is to give the same numbers needs it too, as an optimizer skips what has no gradient.
    """
    for module in model.modules():
        if isinstance(module, Block) and _touch_first_states not in module._forward_hooks.values():
            module.register_forward_hook(_touch_first_states)


def _touch_first_states(block: nn.Module, inputs: Any, output: tuple[Tensor, State]) -> tuple[Tensor, State]:
    if not torch.is_grad_enabled():
        return output
    y, state = output
    memories = (module for module in block.modules() if isinstance(module, MemoryNetwork))
    nothing = sum(W.flatten()[0] * 0 for memory in memories for W in memory.first_state)
    return y + torch.as_tensor(nothing).to(y.dtype), state


class _WholeInitialState:
    """`init_state` of a mixer, outside of its block's forward too: there parameters are shards, and are gathered."""

    def __init__(self, mixer: nn.Module) -> None:
        self._make = mixer.init_state

    def __call__(self, batch_size: int) -> State:
        state: State = self._make(batch_size)  # type: ignore[operator]
        if not any(isinstance(x, DTensor) for x in state.tensors()):
            return state
        if torch.is_grad_enabled():
            raise ValueError(
                "init_state of a model sharded by FSDP has no gradient: pass state=None instead, or call it in torch.no_grad()"
            )
        return state.map(lambda x: x.full_tensor().detach() if isinstance(x, DTensor) else x)
