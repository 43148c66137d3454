"""Measure a classifier on labelled images: accuracy, F1, calibration, agreement with FER+'s taggers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from expressions import UserError
from expressions.classifier import SHOWN_VOTES, Classifier, softmax
from expressions.training.corruptions import corrupt
from expressions.training.readers import Split

CALIBRATION_BINS = 15
# how many views of a face, and the weight of the votes
VIEWS = {"single view": (1, 0), "with mirrored view": (2, 0), "votes": (1, 1), "shown": (2, SHOWN_VOTES)}
AGREEMENT = 0.6  # of the taggers: their majority label is then hardly a matter of chance


class Evaluation(NamedTuple):
    """Predictions for labelled images.

    Attributes:
        labels: Class names, in the order of the columns.
        y_true: Index of each image's class, int (n,).
        probabilities: float (n, classes); each row sums to 1.
        votes: With FER+ votes: the shares of the taggers who chose each class, float (n, classes). What is missing to 1
            are other answers.
    """

    labels: tuple[str, ...]
    y_true: np.ndarray
    probabilities: np.ndarray
    votes: np.ndarray | None = None

    def subset(self, rows: np.ndarray) -> "Evaluation":
        """The Evaluation of these rows, a boolean mask or indices."""
        return Evaluation(self.labels, *(None if array is None else array[rows] for array in self[1:]))

    @property
    def y_pred(self) -> np.ndarray:
        """Index of the most probable class, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return float((self.y_pred == self.y_true).mean())

    def confusion_matrix(self) -> np.ndarray:
        """Count the images, int (classes, classes): a row for each true class, a column for each predicted one."""
        counts = np.zeros((len(self.labels),) * 2, dtype=np.int64)
        np.add.at(counts, (self.y_true, self.y_pred), 1)
        return counts

    def per_class(self) -> pd.DataFrame:
        """Precision, recall, F1 (0 to 1) and support of each class; the recall of a class without images is NaN."""
        counts = self.confusion_matrix()
        hits, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        columns = {
            "precision": hits / np.maximum(predicted, 1),
            "recall": np.where(support > 0, hits / np.maximum(support, 1), np.nan),
            "f1": 2 * hits / np.maximum(support + predicted, 1),
            "support": support,
        }
        return pd.DataFrame(columns, index=list(self.labels))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images: each counts the same, however rare."""
        table = self.per_class()
        return float(table.loc[table["support"] > 0, "f1"].mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1, over equal bins of confidence (Guo et al. 2017, arXiv:1706.04599)."""
        confidence, correct = self.probabilities.max(axis=1), self.y_pred == self.y_true
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        distances = np.bincount(bins, weights=confidence - correct)
        return float(np.abs(distances).sum() / len(self.y_true))

    @property
    def majority_mask(self) -> np.ndarray:
        """Images for which at least six of ten taggers chose the same class, a boolean mask (n,)."""
        return self.votes.max(axis=1) >= AGREEMENT

    @property
    def majority_accuracy(self) -> float:
        """Accuracy on the images of `majority_mask`, 0 to 1, with the taggers' class as the true one."""
        return float((self.y_pred == self.votes.argmax(axis=1))[self.majority_mask].mean())

    def format_metrics(self) -> dict[str, str]:
        """Return the metrics as the user reads them: {name: text}."""
        texts = {"top-1": f"{self.accuracy:.1%}", "macro F1": f"{self.macro_f1:.3f}"}
        texts["calibration error"] = f"{self.calibration_error:.1%}"
        if self.votes is not None and self.majority_mask.any():
            texts[f"FER+ majority (n = {self.majority_mask.sum()})"] = f"{self.majority_accuracy:.1%}"
        recalls = self.per_class()["recall"].dropna()
        return texts | {f"recall {label}": f"{value:.1%}" for label, value in recalls.items()}

    def metrics(self) -> dict:
        """Return the metrics as the model file holds them, JSON values."""
        recalls = self.per_class()["recall"].dropna()
        return {
            "n": len(self.y_true),
            "top1": round(self.accuracy, 6),
            "macro_f1": round(self.macro_f1, 6),
            "calibration_error": round(self.calibration_error, 6),
            "recall": {label: round(value, 6) for label, value in recalls.items()},
        }


def evaluate(
    classifier: Classifier, split: Split, labels: Sequence[str], views: Sequence[str] = tuple(VIEWS)
) -> dict[str, Evaluation]:
    """Evaluate a Classifier on images of the classes `labels`; it may know more of them, in another order.

    Returns those of `views`: "single view", "with mirrored view" (the mean over each image and its mirror image),
    "votes" (by the votes that the classifier predicts) if classifier and split have votes, and "shown" (as the webcam
    program labels images) if the classifier has votes.
    """
    unknown = [label for label in labels if label not in classifier.labels]
    if unknown:
        raise UserError(
            f"the model knows {', '.join(classifier.labels)}, the data set has {', '.join(unknown)} too; "
            "if it has another name for it, give the data set's names with --labels"
        )
    columns = np.array([classifier.labels.index(label) for label in labels])
    votes = None
    if split.votes is not None:
        votes = np.zeros((len(split.votes), len(classifier.labels)), np.float32)
        votes[:, columns] = split.votes[:, : len(labels)]
    known = {"votes": classifier.has_votes and votes is not None, "shown": classifier.has_votes}
    y_true = columns[split.labels]
    views = {name: VIEWS[name] for name in views if known.get(name, True)}
    count = max(count for count, _ in views.values())
    logits = [classifier.predict_logits(split.images, mirrored) for mirrored in [False, True][:count]]
    return {
        name: Evaluation(classifier.labels, y_true, classifier.probabilities(logits[:count], weight), votes)
        for name, (count, weight) in views.items()
    }


def evaluate_corrupted(classifier: Classifier, split: Split, labels: Sequence[str]) -> pd.DataFrame:
    """Evaluate on the images as a camera sees them: top-1 and macro F1, 0 to 1, by corruption, and their means.

    They are of a single view; see `evaluate` and `corruptions.CORRUPTIONS`.
    """
    rows = {}
    for name, images in corrupt(split.images).items():
        evaluation = evaluate(classifier, split._replace(images=images), labels, views=("single view",))["single view"]
        rows[name] = {"top-1": evaluation.accuracy, "macro F1": evaluation.macro_f1}
    table = pd.DataFrame(rows).T
    return pd.concat([table, table.mean().to_frame("mean").T])


def compare(evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """A table of texts: a row for each metric, a column for each evaluation."""
    return pd.DataFrame({name: evaluation.format_metrics() for name, evaluation in evaluations.items()})


def format_tables(evaluations: dict[str, Evaluation]) -> str:
    """The metrics side by side, then those per class and the confusion matrix of the first evaluation."""
    first = next(iter(evaluations.values()))
    columns = pd.Index(first.labels, name="true, predicted:")
    confusion = pd.DataFrame(first.confusion_matrix(), index=list(first.labels), columns=columns)
    per_class = first.per_class().round(3).to_string(na_rep="-")
    return "\n\n".join([compare(evaluations).to_string(), per_class, confusion.to_string()])


def format_corrupted(table: pd.DataFrame) -> pd.DataFrame:
    """What `evaluate_corrupted` measured as the user reads it, a table of texts."""
    formats = {"top-1": "{:.1%}".format, "macro F1": "{:.3f}".format}
    return pd.DataFrame({name: table[name].map(text) for name, text in formats.items()})


def fit_temperature(views: Sequence[np.ndarray], y_true: np.ndarray) -> float:
    """The temperature, 0.1 to 10, that logits are divided by so that confidences match the accuracy.

    It minimises the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2) of `views`: probabilities
    at temperature 1, float (views, n, classes), whose mean over the views is the prediction.
    """
    logits = np.log(np.maximum(views, 1e-12, dtype=np.float64))

    def loss(temperature):
        probabilities = softmax(logits, temperature).mean(axis=0)
        return -np.log(probabilities[np.arange(len(y_true)), y_true]).mean()

    return float(min(np.geomspace(0.1, 10, 501).round(3), key=loss))
