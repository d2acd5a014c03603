"""Models on disk: a folder with config.json and model.safetensors. Nothing is ever unpickled."""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from titans_seq import strict_json
from titans_seq.config import Config
from titans_seq.errors import UserError
from titans_seq.files import REAL, read_safetensors, write_safetensors

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class Pretrained(nn.Module):
    """Base of models that are made from one `config` and saved as a folder."""

    model_type: ClassVar[str]
    config_class: ClassVar[type[Config]]
    config: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder` (made if it is not there). Each file appears whole or not at all.

        Raises:
            UserError: `folder` is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; save_pretrained needs the path of a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        header = {"model_type": self.model_type, "titans_seq_version": version("titans-seq")}
        text = json.dumps(header | {"config": self.config.to_dict()}, indent=2)
        tensors = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".titans-seq-") as temporary:
            write_safetensors(Path(temporary) / WEIGHTS_NAME, tensors)
            (Path(temporary) / CONFIG_NAME).write_text(text + "\n")
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                os.replace(Path(temporary) / name, folder / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read what `save_pretrained` wrote, in the dtype that it was saved in; the model is in evaluation mode.

        Raises:
            UserError: a file is missing, damaged, of another kind of model, or does not fit the configuration.
        """
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: no such file. {cls.__name__}.from_pretrained needs a folder that save_pretrained wrote.")
        config = cls._read_config(folder / CONFIG_NAME)
        try:
            with torch.device("meta"):  # without memory: the file may claim any size
                model = cls(config)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(f"{folder / CONFIG_NAME}: a model of these sizes cannot be made ({error}).") from error
        tensors, _ = read_safetensors(folder / WEIGHTS_NAME, device)
        dtypes = {x.dtype for x in tensors.values()}
        if len(dtypes) > 1 or not dtypes <= {*REAL}:
            found, allowed = (", ".join(map(str, some)) for some in (sorted(dtypes, key=str), REAL))
            raise UserError(f"{folder / WEIGHTS_NAME}: holds tensors of {found}; all must be of one dtype of {allowed}.")
        try:
            model.load_state_dict(tensors, assign=True)  # dtype and device as read
        except RuntimeError as error:
            raise UserError(f"{folder / WEIGHTS_NAME} does not fit {folder / CONFIG_NAME}: {error}") from error
        return model.eval()

    @classmethod
    def _read_config(cls, path: Path) -> Config:
        try:
            values = strict_json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not a JSON file ({error}).") from error
        kind = values.get("model_type") if isinstance(values, dict) else None
        if kind != cls.model_type:
            raise UserError(f"{path}: model_type is {kind!r}, {cls.__name__} needs {cls.model_type!r}.")
        try:
            return cls.config_class.from_dict(values.get("config"))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
