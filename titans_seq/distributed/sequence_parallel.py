"""Sequence parallelism: ranks hold consecutive shards of a sequence and pass the model's state on.

Of the tokens before a shard the model needs its state alone, which does not grow with the stream. Rank r reads shard r of every
micro-batch: it receives the state after shard r - 1, reads, and sends its own state to rank r + 1; in the backward pass the gradients by
the state go the other way. Ranks work on different micro-batches at a time (1F1B: as soon as it can, a rank goes back through a
micro-batch, so rank r of R holds the activations of R - r shards, not of all):

    rank 0   F0  F1  F2          B0  F3  B1      B2      B3
    rank 1       F0  F1      B0  F2  B1  F3  B2      B3
    rank 2           F0  B0  F1  B1  F2  B2  F3  B3              F, B: forward and backward through a micro-batch's shard

Communication: one state a micro-batch and hand-over (`State.nbytes` at most: a tensor held under two names goes once), the gradients by its
floating-point tensors back, and at the end of a call one sum of the parameters' gradients over all ranks. Of R + M - 1 steps for M
micro-batches a rank waits for R - 1, so its idle fraction is (R - 1) / (M + R - 1).
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from titans_seq.state import State

Batch = TypeVar("Batch")
LossFunction = Callable[[nn.Module, Batch, Any], tuple[Tensor, State]]


@dataclass(frozen=True)
class SequenceParallelGroup:
    """The ranks that share each sequence: rank r of `size` holds shard r.

    Two process groups over the same ranks, one for each direction, so that states on their way forward never wait for gradients on their
    way back. Made by `create`, once.
    """

    rank: int
    size: int
    forward: dist.ProcessGroup
    backward: dist.ProcessGroup

    @classmethod
    def create(cls, size: int | None = None, timeout: timedelta | None = None) -> "SequenceParallelGroup":
        """Called by all ranks of the job, after `torch.distributed.init_process_group`.

        Args:
            size: ranks that share a sequence; None for all. With fewer, ranks 0 to size - 1 share the first sequences, the next `size`
                ranks others, and so on: data parallelism over sequence parallelism.
            timeout: after which a rank that waits for a lost one fails; None for torch's own (30 minutes with gloo).

        Raises:
            ValueError: size does not divide the number of ranks, or torch.distributed is not initialised.
        """
        if not dist.is_initialized():
            raise ValueError("torch.distributed is not initialised: call init_process_group first, in a process that torchrun started")
        world = dist.get_world_size()
        size = world if size is None else size
        if size < 1 or world % size:
            raise ValueError(f"size must divide the number of ranks {world}, got {size}")
        forward, backward = (dist.new_subgroups(size, timeout=timeout)[0] for _ in range(2))
        return cls(dist.get_rank() % size, size, forward, backward)

    def shard(self, x: Tensor, multiple: int = 1) -> Tensor:
        """This rank's shard of x (B, T, ...), along T, with lengths from `shard_lengths`."""
        return x.split(shard_lengths(x.shape[1], self.size, multiple), dim=1)[self.rank]


def shard_lengths(length: int, ranks: int, multiple: int = 1) -> list[int]:
    """Lengths of consecutive shards, as even as can be, each but the last a multiple of `multiple`.

    With the memory's chunk size for `multiple` (MAC: a multiple of the segment length too) no hand-over is inside a chunk: fewer bytes go.

    Raises:
        ValueError: the sequence is too short for every rank to get a token.
    """
    if ranks < 1 or multiple < 1:
        raise ValueError(f"ranks and multiple must be at least 1, got {ranks} and {multiple}")
    units = -(-length // multiple)
    if units < ranks:
        raise ValueError(f"a sequence of {length} tokens in multiples of {multiple} is too short for {ranks} ranks; take fewer ranks")
    return [stop - start for start, stop in pairwise(min(length, rank * units // ranks * multiple) for rank in range(ranks + 1))]


@dataclass(frozen=True)
class SequenceParallelResult:
    """What a call gives.

    losses: (M,) loss of each micro-batch, of all shards together; the same on every rank of the group.
    states: after the last shard of each micro-batch, cut from the graph; on the first rank, if the call was given `carry=True`, else empty.
    """

    losses: Tensor
    states: tuple[State, ...]


@dataclass
class _Running:
    """A micro-batch between its forward and its backward pass: what came in, what went out."""

    received: list[Tensor]
    loss: Tensor
    sent: list[Tensor]


def sequence_parallel_forward_backward(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    loss_fn: LossFunction[Batch],
    group: SequenceParallelGroup,
    states: Sequence[State] | None = None,
    carry: bool = False,
) -> SequenceParallelResult:
    """One forward and backward pass over sequences that the ranks of `group` share, equal to one process to rounding.

    Adds to `parameter.grad` the gradients of all micro-batches, shards and ranks of the job, summed: the same on every rank. Under
    `torch.no_grad()` only the forward pass runs.

    Args:
        model: the same parameters on every rank, neither in DDP nor sharded. Its random numbers (dropout) are each rank's own.
        micro_batches: this rank's shard of each, whatever `loss_fn` takes; as many on every rank. Labels of the next token have to be
            made before the sequence is cut: the label of a shard's last token is in the next shard.
        loss_fn: (model, micro-batch, state) -> (loss, state after it). The state is None at the sequence's begin. The loss is a scalar,
            this shard's part: parts are summed over shards, micro-batches and ranks. For a mean divide by the tokens of all of them.
        group: see `SequenceParallelGroup.create`.
        states: one for each micro-batch to begin with in place of None; read on the first rank only.
        carry: hand the states after the last shard to the first rank, which gives them to the next call: streams longer than all ranks hold
            at a time, with back-propagation through the tokens of one call.

    Raises:
        ValueError: other numbers of micro-batches on the ranks, sharded parameters, or a loss that is no scalar. An error in one rank
            leaves the others waiting until the group's timeout: let torchrun end them.
    """
    _check(model, micro_batches, group, states)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    differentiate = torch.is_grad_enabled()
    earlier = [parameter.grad for parameter in parameters]
    if differentiate:
        model.zero_grad()
    pipeline = _Pipeline(group, next(model.parameters()).device)
    running: dict[int, _Running] = {}
    losses: list[Tensor] = []
    last_states: list[State] = []
    for is_forward, m in schedule(group.rank, group.size, len(micro_batches), differentiate):
        if not is_forward:
            pipeline.go_back(running.pop(m))
            continue
        state = pipeline.receive_state() if group.rank else None if states is None else states[m].detach()
        received = _unique(state) if group.rank and isinstance(state, State) else []
        if differentiate:
            received = [x.requires_grad_() for x in received if x.is_floating_point()]
        loss, state = loss_fn(model, micro_batches[m], state)
        if loss.dim() != 0:
            raise ValueError(f"loss_fn must return a scalar loss, got shape {tuple(loss.shape)}")
        losses.append(loss.detach())
        sent: list[Tensor] = []
        if group.rank + 1 < group.size:
            pipeline.send_state(state, group.rank + 1)
            sent = [x for x in _unique(state) if x.is_floating_point()]
        elif carry:
            last_states.append(state.detach())
        if differentiate:
            running[m] = _Running(received, loss, sent)
    total = torch.stack(losses)
    dist.all_reduce(total, group=group.forward)
    if differentiate:
        _sum_gradients(parameters, earlier)
    if carry:
        last_states = pipeline.hand_to_first(last_states, len(micro_batches))
    pipeline.finish()
    return SequenceParallelResult(total, tuple(last_states))


def schedule(rank: int, ranks: int, micro_batches: int, backward: bool = True) -> list[tuple[bool, int]]:
    """What a rank does in order: (forward or not, number of the micro-batch). 1F1B; all forward without `backward`."""
    ahead = min(ranks - 1 - rank, micro_batches) if backward else micro_batches
    steps = [(True, m) for m in range(ahead)]
    for m in range(micro_batches if backward else 0):
        steps += [(True, m + ahead)] if m + ahead < micro_batches else []
        steps.append((False, m))
    return steps


@dataclass
class _Pipeline:
    """Messages between neighbours. Sends do not wait for the receiver: their buffers are kept until they have gone."""

    group: SequenceParallelGroup
    device: torch.device
    under_way: list[tuple[dist.Work, Tensor]] = field(default_factory=list)

    def send_state(self, state: State, target: int) -> None:
        """Its structure, pickled without the tensors' storage as torch.distributed sends objects; then its tensors, flat, one a dtype."""
        structure = state.map(_without_storage())
        header = torch.frombuffer(bytearray(pickle.dumps(structure)), dtype=torch.uint8).to(self.device)
        length = torch.tensor([len(header)], device=self.device)
        for message in (length, header, *_pack(_unique(state))):
            self._send(message, target, self.group.forward)

    def receive_state(self, source: int | None = None) -> State:
        """The state that the rank before, or rank `source` of the group, sends next."""
        source = self.group.rank - 1 if source is None else source
        length = self._receive(torch.empty(1, dtype=torch.int64, device=self.device), source, self.group.forward)
        header = self._receive(torch.empty(int(length), dtype=torch.uint8, device=self.device), source, self.group.forward)
        structure: State = pickle.loads(bytes(header.tolist()))  # from a rank of this job, not from a file
        expected = _unique(structure)
        flat = [self._receive(torch.empty_like(x, device=self.device), source, self.group.forward) for x in _pack(expected)]
        tensors = dict(zip(map(id, expected), _unpack(flat, expected), strict=True))
        return structure.map(lambda x: tensors[id(x)])

    def go_back(self, micro_batch: _Running) -> None:
        """Gradients by the sent state come in, those by the received one go out; those by the parameters stay."""
        outputs, gradients = [micro_batch.loss], [torch.ones_like(micro_batch.loss)]
        if micro_batch.sent:
            flat = [torch.empty_like(x, device=self.device) for x in _pack([_without_storage()(x) for x in micro_batch.sent])]
            flat = [self._receive(x, self.group.rank + 1, self.group.backward) for x in flat]
            outputs += micro_batch.sent
            gradients += _unpack(flat, micro_batch.sent)
        pairs = [(y, gradient) for y, gradient in zip(outputs, gradients, strict=True) if y.requires_grad]
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [gradient for _, gradient in pairs])
        received = [torch.zeros_like(x) if x.grad is None else x.grad for x in micro_batch.received]
        for message in _pack(received):
            self._send(message, self.group.rank - 1, self.group.backward)

    def hand_to_first(self, states: list[State], micro_batches: int) -> list[State]:
        """The last rank's states, on the first rank; nothing on the others."""
        last = self.group.size - 1
        if self.group.rank == last != 0:
            for state in states:
                self.send_state(state, 0)
        if self.group.rank == 0 != last:
            return [self.receive_state(last) for _ in range(micro_batches)]
        return states if last == 0 else []

    def finish(self) -> None:
        """Wait until everything has gone."""
        for work, _ in self.under_way:
            work.wait()
        self.under_way.clear()

    def _send(self, message: Tensor, target: int, group: dist.ProcessGroup) -> None:
        self.under_way = [(work, kept) for work, kept in self.under_way if not work.is_completed()]
        if message.numel():
            work = dist.isend(message, group=group, group_dst=target)
            assert work is not None
            self.under_way.append((work, message))

    def _receive(self, message: Tensor, source: int, group: dist.ProcessGroup) -> Tensor:
        if message.numel():
            dist.recv(message, group=group, group_src=source)
        return message


def _unique(state: State) -> list[Tensor]:
    """Every tensor of the state, once: at a chunk's end the memory's weights are their own anchor."""
    return list({id(x): x for x in state.tensors()}.values())


def _without_storage() -> Callable[[Tensor], Tensor]:
    """Function to a tensor of the same shape and dtype on the meta device, the same one for the same tensor."""
    made: dict[int, Tensor] = {}
    return lambda x: made.setdefault(id(x), torch.empty(x.shape, dtype=x.dtype, device="meta"))


def _pack(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One flat tensor a dtype, in the order in which dtypes appear."""
    parts: dict[torch.dtype, list[Tensor]] = {}
    for x in tensors:
        parts.setdefault(x.dtype, []).append(x.detach().reshape(-1))
    return [torch.cat(of_dtype) for of_dtype in parts.values()]


def _unpack(flat: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Inverse of `_pack`: views of the flat tensors with the shapes of `like`."""
    sizes: dict[torch.dtype, list[int]] = {}
    for x in like:
        sizes.setdefault(x.dtype, []).append(x.numel())
    parts = {whole.dtype: iter(whole.split(sizes[whole.dtype])) for whole in flat}
    return [next(parts[x.dtype]).view(x.shape) for x in like]


def _sum_gradients(parameters: Sequence[nn.Parameter], earlier: Sequence[Tensor | None]) -> None:
    """Sum over all ranks of the job, added to what was there before. A parameter that no rank used keeps what it had."""
    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    chosen = [parameter for parameter, by_any in zip(parameters, used.tolist(), strict=True) if by_any]
    flat = _pack([torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in chosen])
    for of_dtype in flat:
        dist.all_reduce(of_dtype)
    for parameter, gradient in zip(chosen, _unpack(flat, chosen), strict=True):
        parameter.grad = gradient
    for parameter, before in zip(parameters, earlier, strict=True):
        if before is not None:
            parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)


def _check(model: nn.Module, micro_batches: Sequence[Batch], group: SequenceParallelGroup, states: Sequence[State] | None) -> None:
    count = len(micro_batches)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ValueError("the model's parameters are sharded (FSDP): sequence parallelism needs them whole on every rank")
    if group.rank == 0 and states is not None and len(states) != count:
        raise ValueError(f"states must have one state for each of {count} micro-batches, got {len(states)}")
    most = torch.tensor([count, -count], device=next(model.parameters()).device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group.forward)
    if count < 1 or most[0] != -most[1]:
        raise ValueError(
            f"every rank needs the same number of micro-batches, at least 1: from {-most[1]} to {most[0]}, rank {group.rank} {count}"
        )
