"""train.py as a user runs it: what it leaves, how it is stopped and resumed, what it says when it can't go on."""

import signal

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import wait_for, write_data
from model_files import load
from runs import begin, words

import train
from expressions import EMOTIONS, classifier
from expressions.classifier import Classifier
from expressions.model_file import read_metadata
from expressions.training import synthetic


def test_a_run_leaves_a_model_and_its_report(trained):
    folder = trained.with_suffix("")
    for name in ("curves", "confusion_matrix", "mistakes", "samples", "distribution"):
        assert cv2.imread(str(folder / f"{name}.png")) is not None, name
    assert len(pd.read_csv(folder / "history.csv")) == 2
    figures = read_metadata(trained)["metrics"]["single view"]
    assert f"top-1 | {figures['top1']:.1%}" in (folder / "README.md").read_text()
    assert trained.stat().st_size < 10e6
    left = {path.name for path in trained.parent.rglob("*")}
    assert not any("partial" in name for name in left) and "state.npz" not in left


def test_it_prints_the_data_the_network_and_the_figures(trained):
    output = (trained.parent / "output.txt").read_text()
    for line in (
        "disgust       8           3",
        "Total params: 1,439",
        "top-1",
        "macro F1",
        "recall angry",
        "n = 21",
    ):
        assert line in output, line


def test_what_is_measured_is_what_the_saved_file_says(trained, data_folder):
    loaded = Classifier.load(trained)
    hits = [
        loaded.labels[loaded.predict_proba([cv2.imread(str(file))])[0].argmax()] == label
        for label in EMOTIONS
        for file in (data_folder / "validation" / label).iterdir()
    ]
    assert np.mean(hits) == pytest.approx(loaded.metadata["metrics"]["single view"]["top1"], abs=1e-6)


def test_the_new_network_is_compiled_for_the_webcam_program(trained, monkeypatch):
    compiled_again = load(trained)
    monkeypatch.setattr(classifier, "run_sandboxed", None)  # what compiles
    compiled = Classifier.load(trained)
    assert compiled.metadata == compiled_again.metadata
    faces, _ = synthetic.draw_faces(2, seed=9)
    np.testing.assert_allclose(compiled.predict_proba(faces), compiled_again.predict_proba(faces), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_ctrl_c_ends_a_run_with_a_model_and_a_report_and_it_can_be_resumed(tmp_path, data_folder, capsys):
    model = tmp_path / "stopped.h5"
    process = begin(*words(data_folder, model, "--precision", "float32", epochs=5))
    history = tmp_path / "stopped" / "history.partial.csv"
    # the second epoch stands there, so the state after the first one is saved
    wait_for(lambda: history.exists() and history.read_text().count("\n") > 2, [process])
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 0 and "Stopped." in output and "Traceback" not in output, output
    assert read_metadata(model)["metrics"] and (tmp_path / "stopped" / "confusion_matrix.png").exists()

    again = ["--data", str(data_folder), "--model", str(model), "--batch-size", "16", "--epochs", "5"]
    assert train.main(again) == 2
    assert "holds a run that was stopped" in capsys.readouterr().err
    assert train.main([*again, "--resume", "--seed", "1"]) == 2
    assert "seed was 0" in capsys.readouterr().err
    assert train.main([*again, "--resume"]) == 0
    assert len(pd.read_csv(tmp_path / "stopped" / "history.csv")) == 5
    assert read_metadata(model)["precision"] == "float32"  # as the run began, whatever is the default here
    assert not list(tmp_path.rglob("*.previous.h5"))  # what the same run left earlier is no model worth keeping

    assert train.main([*again, "--resume"]) == 2
    assert "no run to resume" in capsys.readouterr().err
    before = model.read_bytes()
    others = [tmp_path / name for name in ("stopped.partial.h5", "stopped.previous.h5", "stopped/best.h5")]
    for other in others:
        other.write_text("of this name by chance")
    assert train.main([*again[:-1], "1"]) == 0
    assert (tmp_path / "stopped.previous2.h5").read_bytes() == before
    assert all(other.read_text() == "of this name by chance" for other in others)


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_other_classes_make_a_model_with_those_labels(tmp_path):
    data = write_data(tmp_path / "data", {"train": 6, "validation": 2}, labels=("awake", "asleep"))
    arguments = ["--data", str(data), "--model", str(tmp_path / "sleep.h5"), "--epochs", "1", "--batch-size", "4"]
    assert train.main(arguments) == 0
    assert Classifier.load(tmp_path / "sleep.h5").labels == ("asleep", "awake")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "{data}", "--show", "bored"], "it has angry, disgust"),
        (["--data", "{data}", "--model", "{tmp}/new.h5", "--start", "{tmp}/none.h5"], "no such model file"),
        (["--data", "{data}", "--model", "{tmp}/model.keras"], "ends in .h5"),
        (["--data", "{data}", "--model", "/proc/none/model.h5"], "can't write into the folder"),
        (["--data", "{data}", "--model", "{tmp}/model.h5", "--resume"], "no run to resume"),
        (["--data", "{data}", "--model", "{data}.h5"], "holds other files"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(tmp_path, data_folder, capsys, arguments, words):
    status = train.main([word.format(tmp=tmp_path, data=data_folder) for word in arguments])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("option", ["--start", "--teacher"])
def test_a_model_that_a_run_learns_from_is_not_written_over(trained, data_folder, capsys, option):
    before = trained.read_bytes()
    assert train.main(["--data", str(data_folder), "--model", str(trained), option, str(trained)]) == 2
    assert f"{option} {trained}: is the model to be written" in capsys.readouterr().err
    assert trained.read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_show_without_a_screen_says_where_the_image_is(tmp_path, data_folder, monkeypatch, capfd):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    arguments = words(data_folder, tmp_path / "m.h5", "--show", "fear", epochs=1)
    assert train.main([str(word) for word in arguments]) == 0
    assert "no screen" in capfd.readouterr().out
    assert cv2.imread(str(tmp_path / "m" / "samples.png")) is not None
