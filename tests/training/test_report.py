"""The report of a run, with images that can be opened."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import slow_but

from expressions import EMOTIONS
from expressions.training import dataset, metrics, report, synthetic


@pytest.mark.slow
def test_a_report_on_disk(tmp_path):
    images, labels = synthetic.draw_faces(5, seed=0)
    split = dataset.Split(images, labels)
    data = dataset.Dataset("drawn", EMOTIONS, {"train": split, "validation": split}, ("one note",))
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(7), len(labels))
    evaluations = {"single view": metrics.Evaluation(data.labels, labels, probabilities)}
    history = {"epoch": [0, 1, 2], "seconds": [60, 60, 60], "learning_rate": [1e-3, 1e-3, 5e-4]}
    for name in ("accuracy", "loss", "val_accuracy", "val_loss"):
        history[name] = [0.1, 0.5, 0.4]
    pd.DataFrame(history).to_csv(tmp_path / "history.csv", index=False)
    facts = {
        "name": "my_model", "network": "compact", "parameters": 1757863, "labels": list(data.labels),
        "scaling": "unit", "temperature": 1.234, "data": "dr\udce4wn", "fingerprint": "0123456789abcdef", "seed": 3,
        "batch_size": 64, "start": None, "fold": None, "teachers": ["first.h5", "second.h5"], "precision": "float32",
        "machine": "a machine", "versions": "some versions",
    }  # fmt: skip
    corrupted = pd.DataFrame({"top-1": [0.25, 0.25], "macro F1": [0.125, 0.125]}, index=["half contrast", "mean"])
    report.write_report(tmp_path, facts, data, evaluations, corrupted, megabytes=7.1)
    report.plot_samples(data, "sad", tmp_path / "sad.png")
    report.plot_samples(data, None, tmp_path / "samples.png")
    report.plot_distribution(data, tmp_path / "distribution.png")

    for name in ("curves", "confusion_matrix", "mistakes", "samples", "sad", "distribution"):
        image = cv2.imread(str(tmp_path / f"{name}.png"))
        assert image is not None and image.std() > 5, name
    card = (tmp_path / "README.md").read_text()
    assert f"{evaluations['single view'].accuracy:.1%}" in card and "3 epochs in 3 minutes" in card
    assert "dr\\udce4wn" in card  # a folder whose name is in Latin-1
    assert "epoch 2" in card and "one note" in card and "1,757,863" in card and "0123456789abcdef" in card
    assert "first.h5, second.h5" in card and "| half contrast | 25.0% | 0.125 |" in card
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize(
    ("count", "rows"), [(0, 0), (1, 1), (8, 1), (9, 2), (100, report.GRID[0])], ids=lambda value: str(value)
)
def test_a_grid_has_the_rows_that_it_needs(tmp_path, monkeypatch, count, rows):
    """And none that is empty, of mistakes and of training images."""
    heights = []
    monkeypatch.setattr(report, "_save", lambda figure, path: heights.append(figure.get_figheight()))
    images, labels = np.zeros((100, 48, 48), np.uint8), np.zeros(100, int)
    probabilities = np.eye(2)[(np.arange(100) < count).astype(int)]
    report.plot_top_losses(images, metrics.Evaluation(("a", "b"), labels, probabilities), tmp_path / "mistakes.png")
    if count:
        split = dataset.Split(images[:count], labels[:count])
        report.plot_samples(dataset.Dataset("few", ("a", "b"), {"train": split}), "a", tmp_path / "samples.png")
    assert np.allclose(heights, 1.5 * rows + 0.4)


@pytest.mark.faults
@pytest.mark.parametrize(
    "label", slow_but(["$x$ {0} %s", "a|b", "all", "悲しい", "\x1b[31m", "l" * 100], "$x$ {0} %s"), ids=range(6)
)
def test_a_class_of_any_name_gets_its_report(tmp_path, label):
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in (label, "happy"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                image = random.integers(0, 256, (48, 48), dtype=np.uint8)
                cv2.imencode(".png", image)[1].tofile(tmp_path / split / name / f"{index}.png")
    data = dataset.load(tmp_path)
    shown = next(each for each in data.labels if each != "happy")
    assert shown.isprintable() and data.counts().iloc[-1].tolist() == [6, 6]
    truth = data.splits["validation"].labels
    evaluation = metrics.Evaluation(data.labels, truth, np.eye(2)[1 - truth])
    report.plot_distribution(data, tmp_path / "distribution.png")
    report.plot_samples(data, shown, tmp_path / "samples.png")
    report.plot_confusion_matrix(evaluation, tmp_path / "confusion.png")
    report.plot_top_losses(data.splits["validation"].images, evaluation, tmp_path / "mistakes.png")
    assert report.to_markdown(data.counts()).count("|") == 4 * 5
