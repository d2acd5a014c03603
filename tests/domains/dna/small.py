"""A small model whose chances are not all alike, and what it finds of a text in one pass, by hand."""

import torch

from domains.dna.data.alphabet import BASES, encode
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.presets import debug
from titans_seq.config import Variant

COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")


def make_model(variant: Variant = "mag") -> TitansForDNA:
    torch.manual_seed(0)
    model = TitansForDNA(debug(variant))
    torch.nn.init.normal_(model.head.weight)
    return model


def turned(text: str) -> str:
    """The reverse complement."""
    return text.translate(COMPLEMENT)[::-1]


def tokens_of(text: str) -> torch.Tensor:
    """BEGIN and the codes of a text, (1, 1 + T) int64."""
    return torch.cat([torch.tensor([BEGIN]), torch.from_numpy(encode(text).copy()).long()])[None]


@torch.no_grad()
def log_likelihood(model: TitansForDNA, context: str, text: str) -> float:
    """log p(text | BEGIN, context), one pass over both; no base may be N."""
    logits, _ = model.eval()(tokens_of(context + text)[:, :-1])
    told = logits[0].log_softmax(-1)[len(context) :]
    return sum(float(told[t, BASES.index(letter)]) for t, letter in enumerate(text.upper()))
