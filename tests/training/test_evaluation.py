"""A model file measured again, and made of the best network of a run: votes apart from labels, a model there kept."""

import errno
import re
import shutil
from argparse import Namespace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_data
from runs import words

import train
from expressions import EMOTIONS
from expressions.classifier import Classifier
from expressions.model_file import read_metadata
from expressions.training import evaluation


@pytest.mark.slow
def test_a_model_is_measured_again(trained, data_folder, tmp_path, capsys):
    figures = read_metadata(trained)["metrics"]["single view"]
    assert train.main(["--evaluate", str(trained), "--data", str(data_folder)]) == 0
    output = capsys.readouterr().out
    assert "on validation, n = 21" in output and "None of these images also stand in train." in output
    assert re.search(rf"top-1 +{figures['top1']:.1%}", output) and "true, predicted:" in output
    corrupted = read_metadata(trained)["metrics"]["as a camera sees it"]
    assert len(corrupted) == 8 and re.search(rf"\nmean +{corrupted['mean']:.1%}", output)

    foreign = shutil.copy(trained, tmp_path / "foreign.h5")
    with h5py.File(foreign, "r+") as file:
        del file.attrs["facts"]
    arguments = ["--evaluate", str(foreign), "--data", str(data_folder), "--split", "train"]
    assert train.main(arguments) == 2
    assert "--labels and --scaling" in capsys.readouterr().err
    arguments += ["--scaling", "unit", "--labels"]
    assert train.main([*arguments, ",".join(EMOTIONS)]) == 0
    assert "on train, n = 56" in capsys.readouterr().out
    assert train.main([*arguments, "anger,disgust,fear,happy,neutral,sad,surprise"]) == 2
    assert "the data set has angry too" in capsys.readouterr().err
    assert train.main(["--evaluate", str(trained), "--data", str(data_folder), "--split", "test"]) == 2
    assert "has train, validation only" in capsys.readouterr().err


def test_copies_of_training_images_are_measured_apart(trained, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    shutil.copy(data / "validation" / "sad" / "sad_1.png", data / "train" / "sad" / "copy.png")
    assert train.main(["--evaluate", str(trained), "--data", str(data)]) == 0
    assert "Without the 1 images that also stand in train, n = 20:" in capsys.readouterr().out


@pytest.mark.slow
def test_votes_are_learned_beside_the_labels(tmp_path, capsys):
    data = write_data(tmp_path / "data", {"train": 4, "validation": 3}, name="{label}_{index}.png")
    columns = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]
    rows = [",".join(["Usage", "Image name", *columns])]
    for label, column in zip(
        EMOTIONS, ["anger", "disgust", "fear", "happiness", *columns[:1], "sadness", "surprise"], strict=True
    ):
        votes = ["8" if name == column else "2" if name == "unknown" else "0" for name in columns]
        rows += [",".join(["Training", f"{label}_{index}.png", *votes]) for index in range(3)]
    (data / "fer2013new.csv").write_text("\n".join(rows) + "\n")
    targets = train.trainer.images_and_targets(train.dataset.load(data), "validation")[1]
    assert targets.shape == (21, 15)
    np.testing.assert_allclose(targets[0], [1, 0, 0, 0, 0, 0, 0, 0.8, 0, 0, 0, 0, 0, 0, 0.2], atol=1e-6)

    model = tmp_path / "model.h5"
    assert train.main(["--data", str(data), "--model", str(model), "--epochs", "1", "--batch-size", "4"]) == 0
    output = capsys.readouterr().out
    assert "Total params: 1,169,071" in output and "FER+ majority (n = 21)" in output
    assert re.search(r" votes +shown\n", output)
    classifier = Classifier.load(model)
    network = train.keras.models.load_model(model, compile=False)
    assert network.count_params() == 1_167_015  # what predicts the votes is no part of it, but of the file
    faces = train.dataset.load(data).splits["validation"].images
    votes = classifier.predict_proba(faces, votes=True)
    assert votes.shape == (21, 7) and np.allclose(votes.sum(axis=1), 1, atol=1e-5)

    # a run that goes on from it begins with what it says
    name, weights, _ = train.trainer.starting_point(
        Namespace(start=model, seed=0), train.dataset.load(data), train.NETWORKS
    )
    network = train.NETWORKS[name](15, "linear")
    network.set_weights(weights)
    logits = network.predict(faces[..., None] / 255, verbose=0)
    labels = np.log(softmax(logits[:, :7]) + 1e-12)  # the file has the probabilities
    said = softmax(labels / classifier.metadata["temperature"]), softmax(logits[:, 7:14])
    np.testing.assert_allclose(said[0], classifier.predict_proba(faces), atol=1e-4)
    np.testing.assert_allclose(said[1], votes, atol=1e-4)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_models_of_before_are_all_kept(tmp_path, capsys):
    """Under names that no file has yet, and the first of them may be one that the user gave."""
    for number, name in enumerate(("a.previous.h5", "a.previous2.h5", "a.previous3.h5")):
        (tmp_path / "a.h5").write_text(f"model {number}")
        evaluation._keep_previous(tmp_path / "a.h5", started="now")
        assert (tmp_path / name).read_text() == f"model {number}" and name in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.faults
@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_model_of_before_is_kept(tmp_path, data_folder, trained, monkeypatch, capsys):
    """It stays where it is, and the one of still before where that is."""
    model, previous = tmp_path / "model.h5", tmp_path / "model.previous.h5"
    shutil.copy(trained, model)
    previous.write_text("of still before")

    def copy(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", copy)
    assert train.main([str(word) for word in words(data_folder, model, epochs=1)]) == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert model.read_bytes() == trained.read_bytes() and previous.read_text() == "of still before"
