"""How well bases are predicted, and scores of classes, labels and profiles. Shapes: W sequences, K classes, V labels.

scikit-learn and scipy are imported by the scores that need them: every command on DNA imports this, and they take a second.
"""

import numpy as np

from titans_seq.training.trainable import BITS, Metric

BITS_PER_BASE = Metric("bits per base", BITS)
OF_A_GUESS = 1.95
"""Bits a base from which on a model knows next to nothing: 2 are those of a guess."""
"""Mean bits that a model needs for a base A, C, G or T; 2 is what a base takes as it is. Lower is better."""
SCORES = ("accuracy", "mcc", "f1", "auroc", "auprc")
PROFILE_SCORES = ("pearson", "spearman", "r2", "mse")
_BINS, _STEPS = 8192, 256
"""Of the log-odds: as many bins, so many a unit; what lies beyond +- 16 is in the last ones."""


def classification_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Accuracy, Matthews' correlation, F1 (mean over classes), areas under the ROC and the precision-recall curve, of all W at once.

    The areas are those of class 1 where there are two classes, else means over each class against the others; a class that has no
    sequence, or all of them, has no area and is left out: None where none is left.

    Args:
        labels: (W,) integers below K.
        probabilities: (W, K), or any scores that are larger for likelier classes.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

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


class LabelCounts:
    """Labels beside what a model says of them, counted as they come, in memory that does not grow.

    labels: V; label 0 is none of the classes. The areas are those of log-odds in steps of 1/256: two probabilities that differ by less
    than 0.4 % of their odds may count as equal.
    """

    def __init__(self, labels: int) -> None:
        self.labels = labels
        self.confusion = np.zeros((labels, labels), np.int64)
        """[label, label that was said], how often."""
        self._odds = np.zeros((labels, 2, _BINS), np.int64)  # of each label: where it is not and where it is, by log-odds

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Count labels (M,) and probabilities (M, V)."""
        from scipy.special import logit

        pairs = labels.astype(np.int64) * self.labels + probabilities.argmax(1)
        self.confusion += np.bincount(pairs, minlength=self.labels**2).reshape(self.labels, self.labels)
        for label in range(1, self.labels):
            with np.errstate(divide="ignore"):  # a chance of 0 or 1 is in the last bin
                odds = np.clip(logit(probabilities[:, label]) * _STEPS + _BINS / 2, 0, _BINS - 1).astype(np.int64)
            self._odds[label] += np.bincount((labels == label) * _BINS + odds, minlength=2 * _BINS).reshape(2, _BINS)

    def scores(self) -> dict[str, float | None]:
        """Accuracy, and Matthews' correlation, over all labels."""
        return _label_scores(self.confusion)

    def majority_scores(self) -> dict[str, float | None]:
        """The same of one that says the most frequent label everywhere."""
        said = np.zeros_like(self.confusion)
        said[:, self.confusion.sum(1).argmax()] = self.confusion.sum(1)
        return _label_scores(said)

    def class_scores(self, label: int) -> dict[str, float | None]:
        """Of a label against all others: its share, precision, recall, f1, and the areas under the ROC and the precision-recall curve; None
        where the label is nowhere or everywhere.
        """
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

        truth, said = _pairs(self.confusion)
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth == label, said == label, average="binary", sample_weight=self.confusion.ravel(), zero_division=0.0
        )
        counts = self._odds[label]
        both = counts.sum(1).all()
        is_it, odds = np.repeat([0, 1], _BINS), np.tile(np.arange(_BINS), 2)
        areas = [f(is_it, odds, sample_weight=counts.ravel()) if both else None for f in (roc_auc_score, average_precision_score)]
        share = self.confusion[label].sum() / self.confusion.sum()
        values = (share, precision, recall, f1, *areas)
        names = ("share", "precision", "recall", "f1", "auroc", "auprc")
        return {name: None if value is None else float(value) for name, value in zip(names, values, strict=True)}


def _pairs(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, said = np.indices(confusion.shape)
    return truth.ravel(), said.ravel()


def _label_scores(confusion: np.ndarray) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    truth, said = _pairs(confusion)
    weights = confusion.ravel()
    accuracy = accuracy_score(truth, said, sample_weight=weights)
    return {"accuracy": float(accuracy), "mcc": float(matthews_corrcoef(truth, said, sample_weight=weights))}


def profile_scores(values: np.ndarray, said: np.ndarray) -> dict[str, float | None]:
    """Pearson's and Spearman's correlation, R^2 and the mean squared error of what is said of bins, (M >= 2,) each.

    A correlation is None where either is the same in all bins, to rounding, and so is R^2 where the values are.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error, r2_score

    alike = any(np.ptp(x) <= 1e-6 * np.abs(x).max() for x in (values, said))
    return {
        "pearson": None if alike else float(pearsonr(values, said).statistic),
        "spearman": None if alike else float(spearmanr(values, said).statistic),
        "r2": float(r2_score(values, said)) if np.ptp(values) else None,
        "mse": float(mean_squared_error(values, said)),
    }
