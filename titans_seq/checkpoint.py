"""Models on disk and on the hub: config.json, model.safetensors and README.md. Nothing is ever unpickled."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from titans_seq import strict_json
from titans_seq.card import Card, render_card
from titans_seq.config import Config
from titans_seq.domain import find_plugins, import_object
from titans_seq.errors import UserError
from titans_seq.files import REAL, read_safetensors, write_safetensors
from titans_seq.hub import TOKENIZER_NAME, HubOptions, locate, upload
from titans_seq.outline import model_html

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
ALL_FILES = (*FILES, TOKENIZER_NAME)
"""And what some models have besides."""

FORMAT = 1
"""Version of the files' layout. A change that older code would misread raises it."""

_SHARED_KEY = "titans_seq_shared"


@dataclass(frozen=True)
class Header:
    """What config.json says: the type of model, the version of titans_seq that wrote it (None if unsaid), and the configuration."""

    path: Path
    model_type: str
    version: str | None
    config: Any


class Pretrained(nn.Module):
    """Base of models that are made from one `config`, and saved as a folder.

    A sub-class names its `model_type` and `config_class`, is made by `cls(config)`, and can then be found by `load_model`.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type[Config]]
    config: Any
    _classes: ClassVar[dict[str, type["Pretrained"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "model_type" in cls.__dict__:
            Pretrained._classes[cls.model_type] = cls

    def save_pretrained(self, folder: str | Path, *, card: Card | None = None) -> None:
        """Write config.json, model.safetensors and README.md into `folder`, made if it is not there. Each file appears whole or not at all.

        Tensors that modules share are written once. `card` tells README.md about the run; the file is written anew each time.

        Raises:
            UserError: `folder` is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; save_pretrained needs the path of a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        ours = version("titans-seq")
        header = {"model_type": self.model_type, "titans_seq_version": ours, "format": FORMAT, "config": self.config.to_dict()}
        parameters = sum(parameter.numel() for parameter in self.parameters())
        text = render_card(card or Card(), model_type=self.model_type, version=ours, parameters=parameters)
        tensors, shared = _distinct(self.state_dict(keep_vars=True))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".titans-seq-") as temporary:
            metadata = {"format": "pt"} | ({_SHARED_KEY: json.dumps(shared)} if shared else {})  # of several keys the order is random
            write_safetensors(Path(temporary) / WEIGHTS_NAME, tensors, metadata)
            (Path(temporary) / CONFIG_NAME).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
            (Path(temporary) / CARD_NAME).write_text(text, encoding="utf-8")
            self._save_more(Path(temporary))
            for name in ALL_FILES:
                if (Path(temporary) / name).is_file():
                    os.replace(Path(temporary) / name, folder / name)

    def _save_more(self, folder: Path) -> None:
        """Write what the model has besides, into a new folder: files of `ALL_FILES`."""

    def _load_more(self, folder: Path) -> None:
        """Read what `_save_more` wrote; UserError where it does not fit the model."""

    def _repr_html_(self) -> str:
        """In a notebook: parameters by part, what a stream carries, the configuration."""
        return model_html(self, self.config)

    def identity(self) -> str:
        """A hash of type, configuration and weights: two models that have the same one do the same."""
        found = hashlib.blake2b(json.dumps([self.model_type, self.config.to_dict()], sort_keys=True).encode(), digest_size=16)
        for name, x in sorted(self.state_dict().items()):
            found.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def push_to_hub(
        self,
        name: str,
        *,
        card: Card | None = None,
        private: bool = False,
        message: str = "Upload model",
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes as the model "owner/name" (made if it is not there) in one commit, and give its address.

        Raises:
            UserError: not a name, no right to write (see `hf auth login`), or no connection.
        """
        with tempfile.TemporaryDirectory(prefix="titans-seq-") as folder:
            self.save_pretrained(folder, card=card)
            return upload(Path(folder), name, ALL_FILES, private=private, message=message, token=token, endpoint=endpoint)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, device: str | torch.device = "cpu", **hub: Unpack[HubOptions]) -> Self:
        """Read what `save_pretrained` wrote, in the dtype that it was saved in; the model is in evaluation mode.

        Args:
            name_or_folder: a folder, or "owner/name" of a model on the Hugging Face hub, whose files are downloaded and kept.
            device: to put the tensors on; "meta" gives a model of shapes and dtypes, without values.
            hub: revision, token, cache_dir, endpoint, local_files_only, see `titans_seq.hub.HubOptions`.

        Raises:
            UserError: no such model, a file is missing, damaged, of another kind of model, or does not fit the configuration.
        """
        folder = locate(name_or_folder, ALL_FILES, **hub)
        header = read_header(folder)
        if header.model_type != cls.model_type:
            raise UserError(
                f"{header.path}: model_type is {header.model_type!r}, {cls.__name__} needs {cls.model_type!r}. "
                f"`titans-seq info {folder}` says what it is."
            )
        tensors, metadata = read_safetensors(folder / WEIGHTS_NAME, device)
        dtypes = {x.dtype for x in tensors.values()}
        if len(dtypes) > 1 or not dtypes <= {*REAL}:
            found, allowed = (", ".join(map(str, some)) for some in (sorted(dtypes, key=str), REAL))
            raise UserError(f"{folder / WEIGHTS_NAME}: holds tensors of {found}; all must be of one dtype of {allowed}.")
        shared = _read_shared(folder / WEIGHTS_NAME, metadata, tensors)
        model = cls._fill(header, tensors | {name: tensors[kept] for name, kept in shared.items()}, folder / WEIGHTS_NAME)
        for name, kept in shared.items():
            _share(model, name, kept)
        model._load_more(folder)
        return model.eval()

    @classmethod
    def _fill(cls, header: Header, tensors: dict[str, Tensor], path: Path) -> Self:
        """The model with `tensors` as its parameters and buffers: made without memory or random numbers where that leaves nothing unset."""
        try:
            config = cls.config_class.from_dict(header.config)
            with torch.device("meta"):  # without memory: the file may claim any size
                model = cls(config)
        except ValueError as error:
            raise UserError(f"{header.path}: {error}") from error
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(f"{header.path}: a model of these sizes cannot be made ({error}).") from error
        try:
            model.load_state_dict(tensors, assign=True)  # dtype and device as read
        except RuntimeError as error:
            raise UserError(f"{path} does not fit {header.path}: {error}") from error
        tensors_read = not any(x.is_meta for x in tensors.values())
        if tensors_read and any(x.is_meta for x in (*model.parameters(), *model.buffers())):  # a buffer that is not saved
            model = cls(config)
            model.load_state_dict(tensors, assign=True)
        return model


def load_model(name_or_folder: str | Path, device: str | torch.device = "cpu", **hub: Unpack[HubOptions]) -> Pretrained:
    """Read a saved model of whatever type its config.json names: the backbone's, an imported domain's, or an installed one's.

    Arguments and errors are those of `Pretrained.from_pretrained`; an unknown type is a UserError as well.
    """
    folder = locate(name_or_folder, ALL_FILES, **hub)
    return model_class(read_header(folder)).from_pretrained(folder, device)


def read_header(folder: Path) -> Header:
    """What config.json in `folder` says, not yet checked against a class.

    Raises:
        UserError: a file of the model is missing, or config.json is damaged, not ours, or in a newer format than this version reads.
    """
    if not folder.exists():
        raise UserError(
            f"{folder}: no such folder. Give one that a training or save_pretrained wrote (of a run RUN it is RUN/model), or the name of a "
            "model on the hub, owner/name."
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; a model is a folder. Give one that a training or save_pretrained wrote.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            if (folder / "model" / name).is_file():
                raise UserError(f"{folder}: is the folder of a run; its model is {folder / 'model'}.")
            raise UserError(
                f"{folder / name}: no such file. Give a folder that save_pretrained wrote, or the name of a model on the hub, owner/name."
            )
    path = folder / CONFIG_NAME
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise UserError(f"{path}: not a model of titans_seq: model_type is {kind!r}, expected a name.")
    wrote = values.get("titans_seq_version")
    given = values.get("format", 1)
    if type(given) is not int or given < 1:
        raise UserError(f"{path}: format must be a whole number from 1, got {given!r}.")
    if given > FORMAT:
        raise UserError(
            f"{path}: format {given}, written by titans_seq {wrote}; this is {version('titans-seq')}, which reads formats up to {FORMAT}. "
            "Upgrade: pip install --upgrade titans-seq."
        )
    return Header(path, values["model_type"], wrote if isinstance(wrote, str) else None, values.get("config"))


def model_class(header: Header) -> type[Pretrained]:
    """The class of a saved model, imported from its domain where that has not happened yet.

    Raises:
        UserError: no installed package has such a model, or its module cannot be imported.
    """
    import titans_seq.backbone  # noqa: F401 - registers itself

    kind = header.model_type
    if kind in Pretrained._classes:
        return Pretrained._classes[kind]
    paths = {name: path for plugin in find_plugins() for name, path in plugin.domain.models.items()}
    if kind not in paths:
        broken = "".join(f" Package {plugin.package} could not be asked: {plugin.problem}." for plugin in find_plugins() if plugin.problem)
        known = ", ".join(sorted({*paths, *Pretrained._classes}))
        raise UserError(f"{header.path}: no installed package has the model_type {kind!r}; known: {known}.{broken}")
    try:
        found = import_object(paths[kind])
    except ImportError as error:
        raise UserError(f"{header.path}: model_type {kind!r} is {paths[kind]}, which cannot be imported ({error}).") from error
    if not (isinstance(found, type) and issubclass(found, Pretrained)):
        raise UserError(f"{header.path}: model_type {kind!r} is {paths[kind]}, which is no sub-class of Pretrained.")
    return found


def _distinct(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, in storage of its own; and for the other names of a tensor the one that it is kept under."""
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    shared: dict[str, str] = {}
    storages: set[int] = set()
    for name, x in state.items():
        if id(x) in names:
            shared[name] = names[id(x)]
            continue
        names[id(x)] = name
        tensor = x.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor  # a view of another one
        storages.add(storage)
    return tensors, shared


def _read_shared(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, str]:
    try:
        shared = strict_json.loads(metadata.get(_SHARED_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"{path}: damaged: the names of shared tensors are no JSON ({error}).") from error
    if not isinstance(shared, dict) or not all(isinstance(kept, str) and kept in tensors for kept in shared.values()):
        raise UserError(f"{path}: damaged: it shares tensors that it does not hold.")
    return shared


def _share(model: nn.Module, name: str, kept: str) -> None:
    """Make the tensor `name` of a model that of the name `kept`, one object."""
    source, _, kept_name = kept.rpartition(".")
    target, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(target), own_name, getattr(model.get_submodule(source), kept_name))
