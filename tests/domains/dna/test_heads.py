"""Classifiers and labellers: whole models turn with the sequence, padding changes nothing, weights are taken over or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.config import DNAConfig
from domains.dna.data.alphabet import N
from domains.dna.head_config import ClassifierConfig, EncoderConfig, LabellerConfig, encoder_of
from domains.dna.heads import DNAClassifier, DNALabeller, take_over
from domains.dna.model import TitansForDNA
from domains.dna.strands import reverse_complement
from titans_seq import UserError, load_model, presets
from titans_seq.config import VARIANTS, Variant
from titans_seq.training.optimizer import parameter_groups


def encoder_config(variant: Variant, strands: str, stem_width: int = 3) -> EncoderConfig:
    return EncoderConfig(titans=presets.debug(variant), strands=strands, stem_width=stem_width)


def classifier(encoder: EncoderConfig, pooling: str = "mean") -> DNAClassifier:
    torch.manual_seed(0)
    return DNAClassifier(ClassifierConfig(encoder=encoder, classes=("a", "b", "c"), pooling=pooling)).double().eval()


def labeller(encoder: EncoderConfig) -> DNALabeller:
    torch.manual_seed(0)
    return DNALabeller(LabellerConfig(encoder=encoder, classes=("CDS", "tRNA"))).double().eval()


codes_of_batches = st.integers(1, 20).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 4), min_size=length, max_size=length), min_size=1)
)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(rows=codes_of_batches, pooling=st.sampled_from(["mean", "max"]), stem_width=st.sampled_from([0, 4]))
@torch.no_grad()
def test_both_strands_are_one_to_a_classifier_and_turn_labels(
    variant: Variant, rows: list[list[int]], pooling: str, stem_width: int
) -> None:
    codes = torch.tensor(rows)
    encoder = encoder_config(variant, "both", stem_width)
    model, labels = classifier(encoder, pooling), labeller(encoder)
    torch.testing.assert_close(model(reverse_complement(codes)), model(codes))
    torch.testing.assert_close(labels(reverse_complement(codes)), labels(codes).flip(1, 2))


@torch.no_grad()
def test_one_strand_is_read_causally_and_is_not_the_other() -> None:
    encoder = encoder_config("mag", "forward")
    codes = torch.randint(0, 4, (2, 20), generator=torch.Generator().manual_seed(1))
    changed = codes.clone()
    changed[:, 12] = 3 - changed[:, 12]
    labels = labeller(encoder)
    torch.testing.assert_close(labels(codes)[:, :12], labels(changed)[:, :12])
    assert not torch.allclose(labels(codes)[:, 12:], labels(changed)[:, 12:])
    model = classifier(encoder)
    assert not torch.allclose(model(codes), model(reverse_complement(codes)))


@pytest.mark.parametrize("strands", ["forward", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3), behind=st.integers(0, 5), pooling=st.sampled_from(["mean", "max"]))
@torch.no_grad()
def test_padding_changes_nothing(strands: str, variant: Variant, lengths: list[int], behind: int, pooling: str) -> None:
    encoder = encoder_config(variant, strands)
    model, labels = classifier(encoder, pooling), labeller(encoder)
    random = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(0, 5, (length,), generator=random) for length in lengths]
    codes = torch.randint(0, 5, (len(rows), max(lengths) + behind), generator=random)  # whatever stands at padding
    mask = torch.arange(codes.shape[1]) < torch.tensor(lengths)[:, None]
    for row, sequence in zip(codes, rows, strict=True):
        row[: len(sequence)] = sequence
    together, of_bases = model(codes, mask), labels(codes, mask)
    for i, sequence in enumerate(rows):
        torch.testing.assert_close(together[i], model(sequence[None])[0])
        torch.testing.assert_close(of_bases[i, : len(sequence)], labels(sequence[None])[0])


@pytest.mark.parametrize("strands", ["forward", "both"])
def test_the_loss_counts_sequences_and_known_bases(strands: str) -> None:
    encoder = encoder_config("lmm", strands)
    codes = torch.tensor([[0, 1, N, 3, 2], [3, 3, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    model = classifier(encoder)
    result = model.loss({"codes": codes, "mask": mask, "labels": torch.tensor([2, 0])})
    expected = -model(codes, mask).log_softmax(-1)[[0, 1], [2, 0]].mean()
    torch.testing.assert_close(result.loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert (int(result.units), result.state) == (2, None)
    model = labeller(encoder)
    labels = torch.randint(0, 3, (2, 5, 2), generator=torch.Generator().manual_seed(0))
    result = model.loss({"codes": codes, "mask": mask, "labels": labels})
    nats = -model(codes, mask).log_softmax(-1)
    number = nats.shape[2]
    places = [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1)]
    counted = [nats[row, base, strand, labels[row, base, strand]] for row, base in places for strand in range(number)]
    torch.testing.assert_close(result.loss.double(), torch.stack(counted).mean(), rtol=1e-6, atol=1e-6)
    assert int(result.units) == 6 * number
    empty = model.loss({"codes": torch.full((1, 3), N), "mask": None, "labels": torch.zeros(1, 3, 2, dtype=torch.long)})
    assert (float(empty.loss.detach()), int(empty.units)) == (0, 0)


def test_every_parameter_is_trained() -> None:
    for strands in ("forward", "both"):
        encoder = encoder_config("mag", strands)
        codes = torch.randint(0, 4, (2, 9), generator=torch.Generator().manual_seed(0))
        for model, labels in ((classifier(encoder), torch.tensor([0, 1])), (labeller(encoder), torch.zeros(2, 9, 2, dtype=torch.long))):
            model.train().loss({"codes": codes, "mask": None, "labels": labels}).loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            decaying = parameter_groups(model, 0.1)[0]["params"]
            assert any(p is model.encoder.reader.stem.weight for p in decaying)


@torch.no_grad()
def test_a_pretrained_backbone_is_taken_over(tmp_path: Path) -> None:
    pretrained = TitansForDNA(DNAConfig(titans=presets.debug("mag"))).eval()
    pretrained.save_pretrained(tmp_path)
    encoder = encoder_of(str(tmp_path))
    assert encoder.titans == pretrained.config.titans
    model = DNAClassifier(ClassifierConfig(encoder=encoder)).eval()
    take_over(model, tmp_path)
    codes = torch.randint(0, 5, (2, 11))
    seen = pretrained.titans(pretrained.embedding(torch.cat([torch.full((2, 1), 5), codes], dim=1)))[0][:, 1:]
    torch.testing.assert_close(model.encoder.reader(codes), seen)
    other = DNAClassifier(ClassifierConfig(encoder=encoder_config("lmm", "both")))
    with pytest.raises(UserError, match=r": its weights do not fit: variant is 'mag' there, 'lmm' here\. Leave the sizes"):
        take_over(other, tmp_path)


@torch.no_grad()
def test_models_are_saved_and_found_by_their_type(tmp_path: Path) -> None:
    codes = torch.randint(0, 5, (2, 11))
    for name, model in (("c", classifier(encoder_config("mac", "both"), "max")), ("l", labeller(encoder_config("mal", "forward")))):
        model.save_pretrained(tmp_path / name)
        loaded = load_model(tmp_path / name)
        assert (type(loaded), loaded.config) == (type(model), model.config)
        assert torch.equal(loaded(codes), model(codes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(stem_width=1), "stem_width must be 0, or from 2 to 1024, got 1"),
        (lambda: ClassifierConfig(classes=("a",)), "classes must be two different names or more"),
        (lambda: ClassifierConfig(classes=("a", "a")), "classes must be two different names or more"),
        (lambda: LabellerConfig(classes=()), "classes must be from 1 to 255 different names"),
        (lambda: classifier(encoder_config("lmm", "both"))(torch.zeros(3, dtype=torch.long)), r"tokens must be \(B, T\) torch.int64"),
        (lambda: classifier(encoder_config("lmm", "both"))(torch.full((1, 3), 16)), "tokens must be codes of bases"),
        (lambda: classifier(encoder_config("lmm", "both"))(torch.zeros(1, 3).long(), torch.ones(1, 4).bool()), "mask must be"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
