"""Figures against figures worked out by hand."""

import numpy as np
import pytest

from expressions import UserError
from expressions.training import dataset, metrics

LABELS = ("cat", "dog", "emu")
TRUTH = np.array([0, 0, 0, 0, 1, 1])
PREDICTED = np.array([0, 0, 1, 2, 1, 0])


@pytest.fixture
def evaluation():
    return metrics.Evaluation(LABELS, TRUTH, np.eye(3)[PREDICTED] * 0.7 + 0.1)


def test_figures(evaluation):
    assert evaluation.accuracy == pytest.approx(3 / 6)
    assert evaluation.confusion_matrix().tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 0]]
    table = evaluation.per_class()
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert table["recall"].tolist() == pytest.approx([1 / 2, 1 / 2, np.nan], nan_ok=True)
    assert table["f1"].tolist() == pytest.approx([4 / 7, 1 / 2, 0])
    assert table["support"].tolist() == [4, 2, 0]
    assert evaluation.macro_f1 == pytest.approx((4 / 7 + 1 / 2) / 2)  # emu has no image to be measured on
    assert evaluation.metrics()["recall"] == {"cat": 0.5, "dog": 0.5}


def test_calibration_error_by_hand():
    """Four calls with confidence .9 of which three are right, two with .6 that both are."""
    confidence, right = np.array([0.9] * 4 + [0.6] * 2), np.array([1, 1, 1, 0, 1, 1], bool)
    probabilities = np.column_stack([confidence, 1 - confidence])
    evaluation = metrics.Evaluation(("yes", "no"), np.where(right, 0, 1), probabilities)
    assert evaluation.calibration_error == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


def test_agreement_with_the_majority_of_taggers(evaluation):
    votes = np.array([[0.6, 0.4, 0], [0, 0.9, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, 0], [0.2, 0.8, 0]])
    tagged = evaluation._replace(votes=votes)
    assert tagged.majority_mask.tolist() == [True, True, True, False, False, True]
    assert tagged.majority_accuracy == pytest.approx(2 / 4)  # of cat, dog, dog, dog it said cat, cat, dog, cat
    assert tagged.format_metrics()["FER+ majority (n = 4)"] == "50.0%"
    assert not any("FER+" in name for name in evaluation.format_metrics())
    fewer = tagged.subset(np.array([True, False, True, False, False, False]))
    assert fewer.accuracy == 0.5 and fewer.majority_accuracy == 1 and fewer.labels == LABELS


@pytest.mark.slow
def test_the_temperature_that_was_put_in_is_found_again():
    random = np.random.default_rng(0)
    logits = random.normal(size=(8000, 7)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (probabilities.cumsum(axis=1) > random.random((len(logits), 1))).argmax(axis=1)
    sharpened = probabilities**2.5
    sharpened /= sharpened.sum(axis=1, keepdims=True)
    found = metrics.fit_temperature([sharpened], truth)
    assert found == pytest.approx(2.5, rel=0.03) and metrics.fit_temperature([sharpened, sharpened], truth) == found


def test_a_classifier_that_knows_more_labels_in_another_order():
    class Known:
        labels, has_votes = ("contempt", "dog", "cat"), False

        def predict_logits(self, images, mirrored):
            return np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1]])

        def probabilities(self, views, votes):
            return views[0]

    split = dataset.Split(np.zeros((2, 48, 48), np.uint8), np.array([0, 1]), np.array([[1, 0, 0], [0.4, 0.6, 0]]))
    evaluation = metrics.evaluate(Known(), split, ("cat", "dog"))["single view"]
    assert evaluation.y_true.tolist() == [2, 1] and evaluation.y_pred.tolist() == [2, 0]
    assert evaluation.majority_accuracy == 0.5 and evaluation.macro_f1 == 0.5
    with pytest.raises(UserError, match="the data set has emu too"):
        metrics.evaluate(Known(), split, ("cat", "emu"))
