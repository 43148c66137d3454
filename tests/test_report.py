"""Figures against figures worked out by hand, and pictures that can be opened."""

import cv2
import numpy as np
import pandas as pd
import pytest

from expressions import EMOTIONS, dataset, report, synthetic

LABELS = ("cat", "dog", "emu")
TRUTH = np.array([0, 0, 0, 0, 1, 1])
PREDICTED = np.array([0, 0, 1, 2, 1, 0])


@pytest.fixture
def evaluation():
    return report.Evaluation(LABELS, TRUTH, np.eye(3)[PREDICTED] * 0.7 + 0.1)


def test_figures(evaluation):
    assert evaluation.top1 == pytest.approx(3 / 6)
    assert evaluation.confusion().tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 0]]
    table = evaluation.table()
    assert table["precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    assert table["recall"].tolist() == pytest.approx([1 / 2, 1 / 2, np.nan], nan_ok=True)
    assert table["f1"].tolist() == pytest.approx([4 / 7, 1 / 2, 0])
    assert table["support"].tolist() == [4, 2, 0]
    assert evaluation.macro_f1 == pytest.approx((4 / 7 + 1 / 2) / 2)  # emu has no image to be measured on
    assert evaluation.metrics()["recall"] == {"cat": 0.5, "dog": 0.5}


def test_a_report_on_disk(tmp_path):
    images, labels = synthetic.draw_faces(5, seed=0)
    split = dataset.Split(images, labels)
    data = dataset.Dataset("drawn", EMOTIONS, {"train": split, "validation": split}, ("one note",))
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(7), len(labels))
    evaluations = {"single view": report.Evaluation(data.labels, labels, probabilities)}
    history = {"epoch": [0, 1, 2], "seconds": [60, 60, 60], "learning_rate": [1e-3, 1e-3, 5e-4]}
    for name in ("accuracy", "loss", "val_accuracy", "val_loss"):
        history[name] = [0.1, 0.5, 0.4]
    pd.DataFrame(history).to_csv(tmp_path / "history.csv", index=False)
    facts = {
        "name": "my_model", "network": "compact", "parameters": 1757863, "labels": list(data.labels),
        "image_size": 48, "scale": 1 / 255, "data": "drawn", "fingerprint": "0123456789abcdef", "seed": 3,
        "batch_size": 64, "machine": "a machine", "versions": "some versions", "made": "today",
    }  # fmt: skip
    report.write_report(tmp_path, facts, data, evaluations, megabytes=7.1)
    report.draw_samples(data, "sad", tmp_path / "samples.png")
    report.draw_distribution(data, tmp_path / "distribution.png")

    for name in ("curves", "confusion_matrix", "mistakes", "samples", "distribution"):
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        assert picture is not None and picture.std() > 5, name
    card = (tmp_path / "README.md").read_text()
    assert f"{evaluations['single view'].top1:.1%}" in card and "3 epochs in 3 minutes" in card
    assert "epoch 2" in card and "one note" in card and "1,757,863" in card and "0123456789abcdef" in card
    assert not list(tmp_path.glob("*partial*"))
