"""How well bases are predicted, and scores of classification. Shapes: W sequences, K classes."""

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

from titans_seq.training.trainable import BITS, Metric

BITS_PER_BASE = Metric("bits per base", BITS)
"""Mean bits that a model needs for a base A, C, G or T; 2 is what a base takes as it is. Lower is better."""
SCORES = ("accuracy", "mcc", "f1", "auroc", "auprc")


def classification_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Accuracy, Matthews' correlation, F1 (mean over classes), areas under the ROC and the precision-recall curve, of all W at once.

    The areas are those of class 1 where there are two classes, else means over each class against the others; a class that has no
    sequence, or all of them, has no area and is left out: None where none is left.

    Args:
        labels: (W,) integers below K.
        probabilities: (W, K), or any scores that are larger for likelier classes.
    """
    predicted = probabilities.argmax(axis=1)
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    marks = [(labels == c, probabilities[:, c]) for c in classes if 0 < (labels == c).sum() < len(labels)]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "mcc": float(matthews_corrcoef(labels, predicted)) if len({*labels.tolist(), *predicted.tolist()}) > 1 else 0.0,
        "f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "auroc": float(np.mean([roc_auc_score(*pair) for pair in marks])) if marks else None,
        "auprc": float(np.mean([average_precision_score(*pair) for pair in marks])) if marks else None,
    }
