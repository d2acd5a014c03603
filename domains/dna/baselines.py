"""What needs no network: the majority, length alone, and k-mer counts under logistic regression. Shapes: W sequences, K classes."""

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.tree import DecisionTreeClassifier

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.data.labelled import LabelledSequences, Task
from domains.dna.metrics import classification_scores

LEAVES = 64
MAX_BASES = 20_000_000
"""Bases of a training part that baselines are fitted on; of a larger one sequences are drawn at random."""
_STRENGTH = 10.0


def baseline_scores(task: Task, kmers: tuple[int, ...] = (4, 6)) -> dict[str, Any]:
    """Scores of each baseline, fitted on the training part, on the test (or, where there is none, the validation) part.

    Nothing of them is chosen on that part: k-mers of every size are listed.

    Returns:
        {"evaluated_on": part, "fitted_on": sequences, "scores": {baseline: `classification_scores`}}; without a part to evaluate on, scores
        are empty and evaluated_on is None.
    """
    name = next((part for part in ("test", "validation") if part in task.parts), None)
    if name is None:
        return {"evaluated_on": None, "fitted_on": 0, "scores": {}}
    train, held_out = _at_most(task.train, MAX_BASES), task.parts[name]
    counts = np.bincount(train.labels, minlength=len(task.classes))
    majority = np.broadcast_to(counts / counts.sum(), (len(held_out), len(task.classes)))
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, random_state=0).fit(train.lengths[:, None], train.labels)
    found = {"majority": majority, "length alone": _all_classes(tree, held_out.lengths[:, None], len(task.classes))}
    for k in kmers:
        model = make_pipeline(Normalizer(), LogisticRegression(C=_STRENGTH, max_iter=1000))
        model.fit(count_kmers(train, k), train.labels)
        found[f"{k}-mers, logistic regression"] = _all_classes(model, count_kmers(held_out, k), len(task.classes))
    scores = {baseline: classification_scores(held_out.labels, probabilities) for baseline, probabilities in found.items()}
    return {"evaluated_on": name, "fitted_on": len(train), "scores": scores}


def count_kmers(sequences: LabelledSequences, k: int) -> csr_array:
    """How often each of the 4^k words of k bases comes in each sequence: (W, 4^k) float32. Words with an N are not counted."""
    bases = sequences.codes & BASE_BITS
    words = len(bases) - k + 1
    if words < 1:
        return csr_array((len(sequences), 4**k), dtype=np.float32)
    word, unknown = np.zeros(words, np.int64), np.zeros(words, bool)
    for i in range(k):
        word = 4 * word + (bases[i : words + i] & 3)
        unknown |= bases[i : words + i] == N
    row = np.repeat(np.arange(len(sequences)), sequences.lengths)
    inside = (row[:words] == row[k - 1 :]) & ~unknown
    place = (row[:words][inside], word[inside])
    return csr_array((np.ones(len(place[0]), np.float32), place), shape=(len(sequences), 4**k))


def _at_most(sequences: LabelledSequences, bases: int) -> LabelledSequences:
    if sequences.lengths.sum() <= bases:
        return sequences
    order = np.random.default_rng(0).permutation(len(sequences))
    count = max(1, int(np.searchsorted(np.cumsum(sequences.lengths[order]), bases)))
    return sequences.take(np.sort(order[:count]))


def _all_classes(model: Any, features: Any, classes: int) -> np.ndarray:
    """Probabilities (W, K), 0 for classes that were not trained on."""
    probabilities = np.zeros((features.shape[0], classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities
