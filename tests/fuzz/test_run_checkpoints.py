"""Checkpoints of runs from strangers: a run goes on with them and its next step is finite, or a UserError names the file."""

import copy
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from domains.text.data import END
from domains.text.model import TextConfig, TitansForCausalLM
from domains.text.train import train
from tests.fuzz.strategies import FEWER, LEAVES, TOKENS, VALUES, dumps, mutated_bytes, mutated_text, mutated_values
from tests.titans_seq.training.small import SMALL, TINY
from titans_seq import UserError
from titans_seq.distributed.checkpoint import INDEX_NAME, load_sharded, read_model, save_sharded
from titans_seq.training import TrainingConfig
from titans_seq.training.checkpoints import checkpoints_of, read_checkpoint
from titans_seq.training.documents import TokenDocuments
from titans_seq.training.loaders import DocumentStream, WindowStream
from titans_seq.training.module import CHECKPOINT_KEY, TrainingModule
from titans_seq.training.optimizer import make_optimizer
from titans_seq.training.restore import set_random_state, unpack_rows

CONFIG = TrainingConfig.from_dict(TINY.to_dict() | {"max_steps": 3, "batch_size": 2, "segment_length": 8, "validate_every": 100})
MODEL = TextConfig(titans=SMALL)


class Run(NamedTuple):
    """A run's last checkpoint, as it is on disk and as it is read, where all its parts are; and where to write a damaged one."""

    content: bytes
    checkpoint: dict[str, Any]
    places: list["Place"]
    path: Path

    def __repr__(self) -> str:
        """Without the content, which a report of a failing case would print."""
        return f"Run({self.path.name})"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.txt").write_text("ship sea wind land " * 20)
    train([folder / "a.txt"], folder / "run", MODEL, CONFIG, progress=False)
    path = checkpoints_of(folder / "run" / "checkpoints")[-1]
    checkpoint = read_checkpoint(path)
    return Run(path.read_bytes(), checkpoint, places(checkpoint), folder / "step-00000003.ckpt")


def refused(path: Path, read: Callable[[], Any]) -> bool:
    """Whether `read` ends with a UserError that names the file."""
    try:
        read()
    except UserError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 2000
        str(error).encode()
        return True
    return False


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@FEWER
@given(data=st.data())
def test_bytes(run: Run, data: st.DataObject) -> None:
    """Damage is found, or changes nothing that is read."""
    content = data.draw(mutated_bytes(run.content) | mutated_bytes(run.content[::-1], 9000).map(lambda x: x[::-1]) | st.binary(max_size=50))
    run.path.write_bytes(content)
    found: list[Any] = []
    if not refused(run.path, lambda: found.append(read_checkpoint(run.path))):
        assert same(found[0], run.checkpoint)


@FEWER
@given(data=st.data())
def test_archives_with_right_checksums(run: Run, data: st.DataObject) -> None:
    """Parts damaged, missing, twice, renamed or compressed: a UserError, or plain values and tensors under the name of this package."""
    with zipfile.ZipFile(io.BytesIO(run.content)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickled = next(i for i, (name, _) in enumerate(parts) if name.endswith("data.pkl"))
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    for _ in range(data.draw(st.integers(1, 2))):
        i = data.draw(st.just(pickled) | st.integers(0, len(parts) - 1))
        i = min(i, len(parts) - 1)
        name, content = parts[i]
        what = data.draw(st.sampled_from(["damaged", "damaged", "missing", "twice", "renamed", "empty", "other"]))
        if what == "missing" and len(parts) > 1:
            del parts[i]
            continue
        if what == "twice":
            parts.append((name, data.draw(mutated_bytes(content))))
        changed = {"damaged": lambda c=content: data.draw(mutated_bytes(c)), "empty": lambda: b"", "other": lambda: parts[0][1]}
        names = [
            "archive/constants.pkl",
            "archive/data/0",
            "../out",
            "/data.pkl",
            "archive/byteorder",
            "x",
            "archive/.data/serialization_id",
        ]
        parts[i] = (data.draw(st.sampled_from(names)) if what == "renamed" else name, changed.get(what, lambda c=content: c)())
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice
        for name, content in parts:
            archive.writestr(name, content)
    run.path.write_bytes(buffer.getvalue())
    found: list[Any] = []
    if not refused(run.path, lambda: found.append(read_checkpoint(run.path))):
        assert found[0][CHECKPOINT_KEY]["format"] == 1


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
    "inf": lambda x: torch.full_like(x, float("inf")) if x.is_floating_point() else x,
    "negative": lambda x: -x.abs() - 1 if x.is_floating_point() or x.dtype == torch.int64 else x,
    "huge": lambda x: torch.full_like(x, torch.iinfo(x.dtype).max) if x.dtype in (torch.uint8, torch.int64) else x,
    "zero": torch.zeros_like,
    "a bomb": lambda x: x.new_zeros(1).expand(2**40),
    "flat": lambda x: x.flatten(),
    "one more": lambda x: x[None],
    "none": lambda x: x[:0] if x.dim() else x[None][:0],
    **{str(dtype): (lambda x, dtype=dtype: x if x.is_complex() else x.to(dtype)) for dtype in (torch.float16, torch.float64, torch.int64)},
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse() if x.dim() else x,
    "meta": lambda x: x.to("meta"),
}
Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> list[Place]:
    """Where every part is, without those of long lists of numbers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) and len(value) < 100 else ()
    return [*([at] if at else []), *(place for key, item in items for place in places(item, (*at, key)))]


def at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def replaced(value: Any, place: Place, new: Any) -> Any:
    """A copy with another part at `place`, none for `...`; all else is shared."""
    key, *rest = place
    part = replaced(value[key], tuple(rest), new) if rest else new
    if isinstance(value, dict):
        return {k: part if k == key else v for k, v in value.items() if k != key or part is not ...}
    return type(value)(part if i == key else item for i, item in enumerate(value) if i != key or part is not ...)


@st.composite
def mutated_checkpoints(draw: st.DrawFn, checkpoint: dict[str, Any], parts: list[Place]) -> dict[str, Any]:
    """With one part, or two, of another value, type, shape, or from another place."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(parts))
        try:
            old = at(checkpoint, place)
        except (KeyError, IndexError, TypeError):  # changed away before
            continue
        what = draw(st.sampled_from(["value", "missing", "moved", "tensor", "number"]))
        if what == "tensor" and isinstance(old, torch.Tensor) and old.layout == torch.strided and old.numel() < 2**20:
            new: Any = TENSORS[draw(st.sampled_from(sorted(TENSORS)))](old)
        elif what == "moved":
            new = old
            other = draw(st.sampled_from(parts))
            if other[: len(place)] != place and place[: len(other)] != other:
                try:
                    new = at(checkpoint, other)
                except (KeyError, IndexError, TypeError):
                    continue
        elif what == "number":
            new = draw(LEAVES | st.sampled_from([0, 1, 2, 3, 7, 624, 10**6, 2**62, 0.5, 1e-3, 1e300]))
        else:
            new = ... if what == "missing" else draw(VALUES)
        checkpoint = replaced(checkpoint, place, new)
    return checkpoint


class Going(NamedTuple):
    """What a checkpoint is loaded into."""

    trainer: pl.Trainer
    model: TitansForCausalLM
    start: dict[str, torch.Tensor]

    def __repr__(self) -> str:
        """Without the model."""
        return "Going()"


@pytest.fixture(scope="module")
def going(run: Run) -> Going:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.ckpt_path = str(run.path)
    model = TitansForCausalLM(MODEL)
    return Going(trainer, model, {name: x.clone() for name, x in model.state_dict().items()})


BATCH = {"tokens": torch.tensor([[END, *b"sea wi"]] * 2), "targets": torch.tensor([[*b"sea win"]] * 2), "mask": None, "reset": None}


def go_on(going: Going, checkpoint: dict[str, Any]) -> None:
    """As Lightning does: check, load the parts, then one step."""
    module = TrainingModule(going.model, CONFIG)
    module.trainer = going.trainer
    going.model.load_state_dict(going.start)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.load_state_dict(checkpoint["current_model_state"])
    optimizer, schedule = make_optimizer(going.model, CONFIG)
    optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer_states"][0]))  # it would write into what it is given
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    going.trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
    ours = checkpoint[CHECKPOINT_KEY]
    set_random_state(ours["random"][0])
    state = unpack_rows(ours["carried"], 0, 1, torch.device("cpu"))
    try:
        result = going.model.loss(BATCH, state)
    except ValueError as error:  # positions that no stream has
        assert "position" in str(error)
        return
    optimizer.zero_grad()
    result.loss.backward()
    torch.nn.utils.clip_grad_norm_(going.model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    assert torch.isfinite(result.loss)
    assert all(torch.isfinite(x).all() for x in going.model.parameters())


@given(data=st.data())
def test_whole_checkpoints_that_say_something_else(run: Run, going: Going, data: st.DataObject) -> None:
    checkpoint = data.draw(mutated_checkpoints(run.checkpoint, run.places), label="checkpoint")
    if not isinstance(checkpoint.get(CHECKPOINT_KEY), dict):  # read_checkpoint sees to that
        return
    refused(run.path, lambda: go_on(going, checkpoint))


def test_the_checkpoint_itself_is_gone_on_with(run: Run, going: Going) -> None:
    go_on(going, run.checkpoint)


# ---- positions in the data


NEAR = st.integers(-2, 12) | st.sampled_from(
    [[-1, 0], [0, 1], [0, 7], [1, 6], [-1, 1], [2**62, 0], [[0, 0], [1, 1]], [[0, 0]] * 3, 2**63, 0.0, True]
)


@FEWER
@given(data=st.data())
def test_positions(data: st.DataObject) -> None:
    """A source goes on and gives whole batches, or refuses."""
    documents = TokenDocuments(torch.arange(60).numpy(), torch.tensor([0, 7, 30, 31, 60]).numpy())
    source = data.draw(st.sampled_from([DocumentStream(documents, 2, 4, 6, seed=1), WindowStream(range(5), 2, seed=1)]))
    for _ in range(data.draw(st.integers(0, 9))):
        source.take()
    state = source.state_dict()
    state = data.draw(
        mutated_values(state) | st.sampled_from(places(state)).flatmap(lambda place: NEAR.map(lambda x: replaced(state, place, x)))
    )
    try:
        source.load_state_dict(state)
    except UserError as error:
        assert len(str(error)) < 2000
        return
    for _ in range(9):
        batch = source.take()
        assert len(batch["tokens"] if isinstance(source, DocumentStream) else batch) == 2


# ---- sharded


class Sharded(NamedTuple):
    """The files of a sharded checkpoint, and a folder to write damaged ones into."""

    files: dict[str, bytes]
    folder: Path


def small_model() -> tuple[TitansForCausalLM, torch.optim.Optimizer]:
    model = TitansForCausalLM(MODEL)
    return model, make_optimizer(model, CONFIG)[0]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Of one rank, its tensors cut into two files as two ranks would."""
    folder = tmp_path_factory.mktemp("sharded")
    model, optimizer = small_model()
    model.loss(BATCH).loss.backward()
    optimizer.step()
    save_sharded(folder / "made", model, optimizer, {"step": 1})
    (file,) = (folder / "made").glob("*.safetensors")
    tensors = load(file.read_bytes())
    cut = {name: (x.shape[0] + 1) // 2 if x.dim() else 0 for name, x in tensors.items()}
    first = {name: x[: cut[name]].contiguous() if x.dim() else x for name, x in tensors.items()}
    second = {name: x[cut[name] :].contiguous() for name, x in tensors.items() if x.dim() and x.shape[0] > 1}
    files = {
        "shard-00001-model-00001-of-00001.safetensors": save(first, sharding({name: [0] * x.dim() for name, x in first.items()})),
        "shard-00002-model-00001-of-00001.safetensors": save(
            second, sharding({name: [cut[name], *[0] * (x.dim() - 1)] for name, x in second.items()})
        ),
    }
    index = json.loads((folder / "made" / INDEX_NAME).read_text())
    return Sharded({**files, INDEX_NAME: json.dumps(index).encode()}, folder / "damaged")


def sharding(offsets: dict[str, Any]) -> dict[str, str]:
    return {"DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": offset} for name, offset in offsets.items()}), "format": "pt"}


def check_sharded(sharded: Sharded, files: dict[str, bytes]) -> bool:
    """Whether it was taken; the index's checksums are made right if it can be read."""
    folder = sharded.folder
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    try:
        index = json.loads(files[INDEX_NAME])
        index["files"] = {name: zlib.crc32(content) for name, content in files.items() if name != INDEX_NAME}
        files = {**files, INDEX_NAME: json.dumps(index).encode()}
    except (ValueError, TypeError, RecursionError):
        pass
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model, optimizer = small_model()
    found: list[Any] = []
    if not refused(folder, lambda: found.append(read_model(folder))):
        assert all(torch.isfinite(x).all() for x in found[0].values())
    if refused(folder, lambda: load_sharded(folder, model, optimizer)):
        return False
    assert all(torch.isfinite(x).all() for x in model.parameters())
    return True


def test_the_shards_themselves_are_taken(sharded: Sharded) -> None:
    assert check_sharded(sharded, sharded.files)


@FEWER
@given(data=st.data())
def test_shards_that_lie(sharded: Sharded, data: st.DataObject) -> None:
    """Offsets, shapes, dtypes and values that contradict one another, under the right checksums."""
    name = data.draw(st.sampled_from(sorted(set(sharded.files) - {INDEX_NAME})))
    content = sharded.files[name]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    info = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    tensors = load(content)
    key = data.draw(st.sampled_from(sorted(tensors)))
    x = tensors[key]
    what = data.draw(st.sampled_from(["offset", "offset", "sharding", "tensor", "tensor", "missing", "bytes", "no sharding", "no dtype"]))
    if what == "offset":
        info[key]["saved_offsets"] = data.draw(st.lists(st.sampled_from([0, 1, 8, 2**40, 2**62, -1, 0.0, None, "0"]), max_size=3))
    elif what == "tensor":
        kind = data.draw(st.sampled_from(sorted(set(TENSORS) - {"a bomb", "meta", "sparse", "complex"})))
        tensors[key] = TENSORS[kind](x).contiguous()
    elif what == "missing":
        del tensors[key]
    text = json.dumps(info)
    if what == "sharding":
        text = data.draw(mutated_values(info).map(dumps) | mutated_text(text) | TOKENS).encode("utf-8", "replace").decode()
    content = save(tensors, {"format": "pt"} | ({} if what == "no sharding" else {"DCP_SHARDING_INFO": text}))
    if what == "bytes":
        content = data.draw(mutated_bytes(content, length))
    if what == "no dtype":
        content = content.replace(b'"F32"', data.draw(st.sampled_from([b'"U32"', b'"I32"', b'"XXX"', b'"C64"'])), 1)
    check_sharded(sharded, {**sharded.files, name: content})


@FEWER
@given(data=st.data())
def test_an_index_that_lies(sharded: Sharded, data: st.DataObject) -> None:
    index = json.loads(sharded.files[INDEX_NAME])
    text = data.draw(mutated_values(index).map(dumps) | mutated_text(json.dumps(index)) | TOKENS | VALUES.map(dumps))
    check_sharded(sharded, {**sharded.files, INDEX_NAME: text.encode("utf-8", "surrogatepass")})
