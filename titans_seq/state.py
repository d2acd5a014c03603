"""What a model carries from one call to the next: dataclasses of tensors with one set of operations.

Every state of the package (memory, convolution, attention cache, block, backbone) derives from `State`. Its fields are tensors whose
first dimension is the batch, other states, tuples of these, plain integers or None.
"""

import json
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from titans_seq import strict_json
from titans_seq.config import LARGEST
from titans_seq.display import html_table, size
from titans_seq.errors import UserError
from titans_seq.files import REAL, read_safetensors, write_safetensors

_METADATA_KEY = "titans_seq_state"
_OWNER_KEY = "titans_seq_owner"


class OtherModelError(UserError):
    """A state is of another model than the one that is to go on from it.

    owner: `Pretrained.identity` of the model that it is of; None if the file does not say.
    """

    def __init__(self, path: str | Path, owner: str | None, expected: str) -> None:
        whose = "a model that it does not name" if owner is None else f"another model ({owner})"
        super().__init__(
            f"{path}: is a state of {whose}, not of this one ({expected}). Only the model that read, with the same weights, can go on from "
            "it: load that one, or read the text again with this one."
        )
        self.owner = owner


class State:
    """Base class of all carried states: frozen dataclasses of batch-first tensors, nested states, tuples, integers and None."""

    _registry: ClassVar[dict[str, type["State"]]] = {}

    def __init_subclass__(cls) -> None:
        State._registry[cls.__name__] = cls

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same state with `function` applied to every tensor in it."""
        return replace(self, **{f.name: _map(getattr(self, f.name), function) for f in fields(self)})  # type: ignore[arg-type, type-var]

    def detach(self) -> Self:
        """Cut from the autograd graph (truncated back-propagation through time)."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """A copy that shares no storage: fork a stream."""
        return self.map(Tensor.clone)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast as `Tensor.to`; integer tensors (positions) keep their dtype."""

        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)  # as nn.Module.to
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else None, non_blocking))

    def select(self, rows: Tensor) -> Self:
        """Rows `rows` (N,) int64 of the batch, in that order; a row may be taken more than once (beam search)."""
        return self.map(lambda x: x.index_select(0, rows))

    @classmethod
    def cat(cls, states: Sequence[Self]) -> Self:
        """The rows of all states in one batch, in order.

        Raises:
            ValueError: there is none, or they are of different models.
        """
        if not states:
            raise ValueError("states must hold at least one state")
        outlines = [state.map(lambda x: (x.shape[1:], x.dtype)) for state in states]  # type: ignore[arg-type, return-value]
        for number, outline in enumerate(outlines):
            if outline != outlines[0]:
                raise ValueError(f"states are of different models: number {number} is not of the form of the first")
        parts = zip(*(state.tensors() for state in states), strict=True)
        return states[0].map(lambda x: torch.cat(next(parts)))

    def where(self, rows: Tensor, other: Self) -> Self:
        """Row by row of the batch: this state where `rows` (B,) bool is True, `other` (of the same structure) elsewhere."""
        others = iter(other.tensors())
        return self.map(lambda x: torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, next(others)))

    def tensors(self) -> list[Tensor]:
        """Every tensor of this state, nested ones included."""
        found: list[Tensor] = []

        def collect(x: Tensor) -> Tensor:
            found.append(x)
            return x

        self.map(collect)
        return found

    def _repr_html_(self) -> str:
        """In a notebook: every tensor with its shape and size."""
        tensors: dict[str, Tensor] = {}
        flatten(self, "", tensors)
        rows = [(name.lstrip("."), tuple(x.shape), str(x.dtype).removeprefix("torch."), size(x.nbytes)) for name, x in tensors.items()]
        title = f"{type(self).__name__}, {size(self.nbytes)} for {self.batch_size} {'row' if self.batch_size == 1 else 'rows'}"
        return html_table(title, rows, ("tensor", "shape", "dtype", "size"))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors of this state take."""
        return sum(x.numel() * x.element_size() for x in self.tensors())

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return self.tensors()[0].shape[0]

    def save(self, path: str | Path, owner: str | None = None) -> None:
        """Write to a safetensors file, whole or not at all; the structure goes into the file's metadata as JSON.

        owner: what model the state is of (`Pretrained.identity`), for `load` to compare.
        """
        tensors: dict[str, Tensor] = {}
        structure = flatten(self, "state", tensors)
        metadata = {_METADATA_KEY: json.dumps(structure)} | ({} if owner is None else {_OWNER_KEY: owner})
        write_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", owner: str | None = None) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged, no state file, holds another kind of state, or (`OtherModelError`) was not saved with
                this `owner`.
        """
        tensors, metadata = read_safetensors(path, device)
        if _METADATA_KEY not in metadata:
            raise UserError(f"{path}: a safetensors file, but not of a state; expected one that {cls.__name__}.save wrote.")
        if owner is not None and metadata.get(_OWNER_KEY) != owner:
            raise OtherModelError(path, metadata.get(_OWNER_KEY), owner)
        try:
            state = unflatten(strict_json.loads(metadata[_METADATA_KEY]), tensors)
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise UserError(f"{path}: damaged, or written by another version of titans_seq ({error}).") from error
        if not isinstance(state, cls):
            raise UserError(f"{path}: holds a {type(state).__name__}, expected a {cls.__name__}.")
        dtypes = sorted({str(x.dtype) for x in state.tensors()} - {str(dtype) for dtype in (*REAL, torch.int32, torch.int64)})
        if dtypes:
            raise UserError(f"{path}: damaged, no state holds {', '.join(dtypes)}.")
        rows = {x.shape[0] if x.dim() else None for x in state.tensors()}
        if tensors or len(rows) != 1 or None in rows:
            left = f"tensors that are no part of it: {', '.join(tensors)}" if tensors else f"tensors of batches of {rows}"
            raise UserError(f"{path}: damaged, the state has {left}.")
        return state


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, State):
        return value.map(function)
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    return value


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Structure of `value` as JSON; its tensors go into `tensors` under dotted names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, State):
        content = {f.name: flatten(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)}  # type: ignore[arg-type]
        return {"state": type(value).__name__, "fields": content}
    if isinstance(value, tuple):
        return {"tuple": [flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def unflatten(structure: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """Inverse of `flatten`; takes what it uses out of `tensors`."""
    if "tensor" in structure:
        return tensors.pop(structure["tensor"])
    if "state" in structure:
        if structure["state"] not in State._registry:
            raise ValueError(f"unknown state {structure['state']!r}")
        kind = State._registry[structure["state"]]
        content = {name: unflatten(value, tensors) for name, value in structure["fields"].items()}
        hints = typing.get_type_hints(kind)
        for name, value in content.items():
            if not _is_of(value, hints[name]):
                raise ValueError(f"{kind.__name__}.{name} is not {hints[name]}")
        return kind(**content)
    if "tuple" in structure:
        return tuple(unflatten(item, tensors) for item in structure["tuple"])
    return structure["value"]


def _is_of(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that a state's field is annotated with."""
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(item, typing.get_args(hint)[0]) for item in value)
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, option) for option in typing.get_args(hint))
    return type(value) is int and 0 <= value <= LARGEST if hint is int else isinstance(value, hint)
