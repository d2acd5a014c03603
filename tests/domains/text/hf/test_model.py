"""transformers on our folders: the same tokens, logits, loss and files."""

import copy
import hashlib
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import domains.text.hf
from domains.text.config import TextConfig
from domains.text.hf import TitansCache, TitansTextConfig, TitansTextForCausalLM
from domains.text.model import TitansForCausalLM
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import WORDS, small
from titans_seq import UserError, load_model, presets

TEXTS = ["", "It was", WORDS, "<|end|> is text here\x00\t\n  ", "e\u0301 \U0001f6a2\U0001f3fd"]
STEP = torch.tensor([[256, *b"It was the best of times"], [256, *b"it was the worst of time"]])


def loaded(model: TitansForCausalLM) -> TitansTextForCausalLM:
    """The same weights, without files."""
    found = TitansTextForCausalLM(TitansTextConfig(config=model.config.to_dict())).eval()
    found.model.load_state_dict(model.state_dict())
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@torch.no_grad()
def test_the_auto_classes_read_our_folder_as_it_is(ours: TitansForCausalLM, folder: Path) -> None:
    """The same logits to the bit, the same tokens behind the document's begin; and nothing in the folder changes."""
    before = hashes(folder)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert config.text == ours.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (ours.config.vocabulary, 16, 2)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == ours.config.end
    assert len(tokenizer) == ours.config.vocabulary
    for text, ids in zip(TEXTS, ours.tokenizer.encode_batch(TEXTS), strict=True):
        found = tokenizer(text).input_ids
        assert found == [ours.config.end, *ids.tolist()]
        assert tokenizer.decode(found, skip_special_tokens=True) == text
        tokens = torch.tensor([found])
        assert torch.equal(model(input_ids=tokens).logits, ours(tokens)[0])
    assert hashes(folder) == before


@torch.no_grad()
def test_what_transformers_saves_is_ours_again(ours: TitansForCausalLM, folder: Path, tmp_path: Path) -> None:
    """Model and tokeniser in any order, in one folder; also from a state dict, as a trainer gives it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    orders: list[list[Any]] = [[model, tokenizer], [tokenizer, model]]
    for number, order in enumerate(orders):
        for one in order:
            one.save_pretrained(tmp_path / str(number))
        again = load_model(tmp_path / str(number))
        assert again.identity() == ours.identity()
        assert isinstance(again, TitansForCausalLM)
        assert again.tokenizer.identity == ours.tokenizer.identity
        assert AutoTokenizer.from_pretrained(tmp_path / str(number))("It was").input_ids == tokenizer("It was").input_ids
        assert AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).model.identity() == ours.identity()
    weights = {name: x + 1 for name, x in model.state_dict().items()}
    model.save_pretrained(tmp_path / "given", state_dict=weights)
    given = load_model(tmp_path / "given").state_dict()
    assert given.keys() == ours.state_dict().keys()
    assert all(torch.equal(x, ours.state_dict()[name] + 1) for name, x in given.items())
    model.save_pretrained(tmp_path / "other-rank", is_main_process=False)
    assert not (tmp_path / "other-rank").exists()


def test_a_tokenizer_alone_is_of_any_transformers(ours: TitansForCausalLM, folder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "alone")
    for kind in (PreTrainedTokenizerFast, AutoTokenizer):
        alone = kind.from_pretrained(tmp_path / "alone")
        for text, ids in zip(TEXTS, ours.tokenizer.encode_batch(TEXTS), strict=True):
            assert alone(text).input_ids == [ours.config.end, *ids.tolist()]


def test_a_new_model_begins_as_ours() -> None:
    """transformers initialises nothing anew."""
    config = small().config
    torch.manual_seed(5)
    expected = TitansForCausalLM(config)
    torch.manual_seed(5)
    assert AutoModelForCausalLM.from_config(TitansTextConfig(config=config.to_dict())).model.identity() == expected.identity()


@torch.no_grad()
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_is_as_if_absent(where: str, of_variant: TitansForCausalLM) -> None:
    """Each row as alone: logits of its tokens, and at the last place those after its last token; then a step with the mask of all."""
    model = loaded(of_variant.double()).double()
    rows, width = [STEP[0, :7], STEP[1, :11]], 15
    ids, mask = torch.full((2, width), 5), torch.zeros(2, width, dtype=torch.int64)
    for i, row in enumerate(rows):
        free = width - len(row)
        places = {"left": range(free, width), "right": range(len(row)), "inside": [*range(3), *range(free + 3, width)]}[where]
        ids[i, list(places)], mask[i, list(places)] = row, 1
    found = model(input_ids=ids, attention_mask=mask, use_cache=True)
    following = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
    after = model(input_ids=STEP[:, 12:13], attention_mask=following, cache=found.cache)
    for i, row in enumerate(rows):
        alone, state = of_variant(row[None])
        torch.testing.assert_close(found.logits[i][mask[i] == 1], alone[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.logits[i, -1], alone[0, -1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(after.logits[i], of_variant(STEP[i : i + 1, 12:13], state)[0][0], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_cache_is_the_state(of_variant: TitansForCausalLM) -> None:
    """Any split gives what one pass gives, at one size; a copy is a fork; rows are selected as states are."""
    model = loaded(of_variant)
    whole, cache, parts, sizes = of_variant(STEP)[0], TitansCache(), [], set()
    for part in STEP.split([1, 9, 1, 14], dim=1):
        output = model(input_ids=part, cache=cache)
        assert output.cache is cache
        parts.append(output.logits)
        assert cache.state is not None
        sizes.add(cache.state.nbytes)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert len(sizes) == 1
    fork = copy.copy(cache)
    first = model(input_ids=STEP[:, :1], cache=fork).logits
    assert torch.equal(model(input_ids=STEP[:, :1], cache=copy.deepcopy(cache)).logits, first)
    assert torch.equal(model(input_ids=STEP[:, :1], cache=cache, use_cache=False).logits, first)
    assert model(input_ids=STEP[:, :1], cache=cache, use_cache=False).cache is None
    with pytest.warns(FutureWarning, match="past_key_values"):  # its name before transformers 5.24
        assert torch.equal(model(input_ids=STEP[:, :1], past_key_values=copy.copy(cache)).logits, first)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    repeated = model(input_ids=STEP[:1, :1].expand(4, 1), cache=cache, logits_to_keep=1).logits
    torch.testing.assert_close(repeated[:2], first[:1].expand(2, -1, -1), rtol=1e-4, atol=1e-5)  # of four rows, where it was of two
    cache.reset()
    assert cache.batch_size == -1
    torch.testing.assert_close(model(input_ids=STEP, cache=cache, logits_to_keep=3).logits, whole[:, -3:], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(1)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_counts_what_is_there(z_loss: float) -> None:
    """That of the rows without their padding, which may be anywhere, and its gradients; -100 and first tokens do not count."""
    torch.manual_seed(0)
    ours = TitansForCausalLM(TextConfig(titans=presets.debug("mag"), z_loss=z_loss)).double()
    model = loaded(ours).double().train()
    mask = torch.ones_like(STEP)
    mask[0, :6], mask[1, 4:9], mask[1, 20:] = 0, 0, 0
    labels = STEP.clone()
    labels[0, 15] = -100
    nats, penalty, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for i in range(2):
        there = mask[i] == 1
        logits, targets = ours(STEP[i][there][None])[0][0, :-1], labels[i][there][1:]
        nats = nats + F.cross_entropy(logits, targets, reduction="sum")
        penalty = penalty + z_loss * logits.logsumexp(-1)[targets != -100].square().sum()
        count += int((targets != -100).sum())
    output = model(input_ids=STEP, attention_mask=mask, labels=labels)
    assert output.cache is None
    assert output.loss.item() == pytest.approx(nats.item() / count, rel=1e-12)
    shared = model(input_ids=STEP, attention_mask=mask, labels=labels, num_items_in_batch=7).loss
    assert shared.item() == pytest.approx(nats.item() / 7, rel=1e-12)
    found = torch.autograd.grad(output.loss, list(model.model.parameters()))
    for x, y in zip(found, torch.autograd.grad((nats + penalty) / count, list(ours.parameters())), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)


def test_training_makes_no_logits_that_nobody_asked_for() -> None:
    """The loss makes some at a time; (B, T, V) of them would take more memory than the model."""
    model = loaded(small())
    given = {"input_ids": STEP, "labels": STEP}
    assert model.train()(**given).logits is None
    assert model(**given, logits_to_keep=2).logits.shape[:2] == (2, 2)
    assert model(input_ids=STEP).logits.shape[:2] == STEP.shape
    assert model.eval()(**given).logits.shape[:2] == STEP.shape, "evaluation has them for its metrics"


def test_half_precision_is_loaded_as_asked(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=STEP).logits.dtype == torch.bfloat16
    assert {x.dtype for x in AutoModelForCausalLM.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: x for name, x in weights.items() if name != "titans.norm.weight"}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"(?s)model.safetensors does not fit .*config.json: .*Missing key.*titans.norm.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    for number in (2, "1"):
        (tmp_path / "config.json").write_text(json.dumps(header | {"format": number}))
        with pytest.raises(UserError, match=f"format {number}"):
            AutoConfig.from_pretrained(tmp_path)
    model = loaded(small())
    for arguments, message in (
        ({"attention_mask": STEP[:, :3]}, "attention_mask must be"),
        ({"labels": STEP[:, :3]}, "labels must be"),
        ({"cache": TitansCache(small().init_state(3))}, "state is of a batch of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            model(input_ids=STEP, **arguments)
    with pytest.raises(UserError, match="has 257 tokens"):
        model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "there", push_to_hub=True)


def test_a_configuration_that_the_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    deeper = replace(model.config, titans=replace(model.config.titans, num_layers=3))
    with pytest.raises(UserError, match=r"(?s)the weights do not fit the configuration: .*missing_keys.*blocks\.2\."):
        AutoModelForCausalLM.from_pretrained(tmp_path, config=TitansTextConfig(config=deeper.to_dict()))
    with pytest.raises(UserError, match="name the folder model itself"):
        AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="model", config=TitansTextConfig(config=model.config.to_dict()))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[:-9], b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{tmp_path}/model.safetensors: damaged or not a safetensors file"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path}/model.safetensors: no such file"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"dim": 16', '"dim": -1'))
    for kind in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(UserError, match=rf"{tmp_path}/config.json: TextConfig.titans.dim must be at least 1, got -1"):
            kind.from_pretrained(tmp_path)


def test_a_model_without_its_tokenizer_has_none_here_too(bpe: JsonTokenizer, tmp_path: Path) -> None:
    TitansForCausalLM(small().config.with_tokenizer(bpe), bpe).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: no such file"):
        AutoTokenizer.from_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=torch.zeros(1, 1, dtype=torch.int64))


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import versions

    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: "5.20.0")
    with pytest.raises(ImportError, match=r"needs transformers 5.24 or later: pip install 'titans-seq\[hf\]'"):
        importlib.reload(domains.text.hf)
