"""train.py as a user runs it: what it leaves, how it is stopped and resumed, what it says when it can't go on."""

import contextlib
import re
import shutil
import signal
import subprocess
from argparse import Namespace

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import command, heed_ctrl_c, run, wait_for, write_data

import train
from expressions import EMOTIONS
from expressions.classifier import Classifier
from expressions.model_file import read_metadata, read_weights, write_metadata


def test_a_run_leaves_a_model_and_its_report(trained):
    folder = trained.with_suffix("")
    for name in ("curves", "confusion_matrix", "mistakes", "samples", "distribution"):
        assert cv2.imread(str(folder / f"{name}.png")) is not None, name
    assert len(pd.read_csv(folder / "history.csv")) == 2
    figures = read_metadata(trained)["metrics"]["single view"]
    assert f"top-1 | {figures['top1']:.1%}" in (folder / "README.md").read_text()
    assert trained.stat().st_size < 10e6
    left = {path.name for path in trained.parent.rglob("*")}
    assert not any("partial" in name for name in left) and not {"best.h5", "state.npz"} & left


def test_it_prints_the_data_the_network_and_the_figures(trained):
    output = (trained.parent / "output.txt").read_text()
    for words in (
        "disgust       8           3",
        "Total params: 1,167,015",
        "top-1",
        "macro F1",
        "recall angry",
        "n = 21",
    ):
        assert words in output, words


def test_what_is_measured_is_what_the_saved_file_says(trained, data_folder):
    classifier = Classifier.load(trained)
    hits = [
        classifier.labels[classifier.predict_proba([cv2.imread(str(file))])[0].argmax()] == label
        for label in EMOTIONS
        for file in (data_folder / "validation" / label).iterdir()
    ]
    assert np.mean(hits) == pytest.approx(classifier.metadata["metrics"]["single view"]["top1"], abs=1e-6)


@pytest.mark.slow
def test_a_model_is_measured_again(trained, data_folder, tmp_path, capsys):
    figures = read_metadata(trained)["metrics"]["single view"]
    assert train.main(["--evaluate", str(trained), "--data", str(data_folder)]) == 0
    output = capsys.readouterr().out
    assert "on validation, n = 21" in output and "None of these images also stand in train." in output
    assert re.search(rf"top-1 +{figures['top1']:.1%}", output) and "true, predicted:" in output

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


def start(data_folder, model, *more):
    arguments = ("--data", data_folder, "--model", model, "--batch-size", 16, "--epochs", 5, *more)
    return subprocess.Popen(
        command("train.py", *arguments, "--precision", "float32"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_model_and_a_report_and_it_can_be_resumed(tmp_path, data_folder, capsys):
    model = tmp_path / "stopped.h5"
    process = start(data_folder, model)
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
    assert train.main([*again[:-1], "1"]) == 0
    assert (tmp_path / "stopped.previous.h5").read_bytes() == before


@pytest.fixture
def heeds_ctrl_c():
    """What is started in the background by a shell, tests included, is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["train", "test"])
def test_ctrl_c_amid_a_step_stops_training_before_the_next(heeds_ctrl_c, where):
    """Keras swallows it there, as this callback does."""
    steps = []

    class Swallowing(train.callbacks.Callback):
        def after(self, kind):
            steps.append(kind)
            if kind == where:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)

        def on_train_batch_end(self, batch, logs=None):
            self.after("train")

        def on_test_batch_end(self, batch, logs=None):
            self.after("test")

    network = train.keras.Sequential([train.keras.Input((1,)), train.layers.Dense(1)])
    network.compile("sgd", "mse")
    numbers = np.ones((6, 1))
    with train.distributed.GracefulStop() as stop:
        network.fit(
            numbers,
            numbers,
            batch_size=2,
            validation_data=(numbers, numbers),
            callbacks=[Swallowing(), stop],
            verbose=0,
        )
    assert stop.stopped and steps == {"train": ["train"], "test": ["train"] * 3 + ["test"]}[where]


def test_asked_twice_a_run_stops_at_once_and_signals_get_their_handlers_back(heeds_ctrl_c, capsys):
    reached = []
    with train.distributed.GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)  # when the next step may never come
        reached.append("after the second")
    assert stop.stopped and reached == ["after the first"]
    with train.distributed.GracefulStop() as stop:
        pass
    assert not stop.stopped and signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_the_model_of_before(tmp_path, data_folder, monkeypatch, capsys):
    model = tmp_path / "model.h5"
    model.write_text("the model of before")
    (tmp_path / "model").mkdir()
    for name in ("history.csv", "distribution.png"):
        (tmp_path / "model" / name).write_text("of its run")
    monkeypatch.setattr(train, "FROM_SCRATCH", train.FROM_SCRATCH._replace(learning_rate=float("nan")))
    assert train.main(["--data", str(data_folder), "--model", str(model), "--epochs", "2", "--batch-size", "16"]) == 2
    assert "no epoch has ended well" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler  # as before training
    assert (
        model.read_text() == "the model of before" and (tmp_path / "model" / "history.csv").read_text() == "of its run"
    )


@pytest.mark.slow
def test_other_classes_make_a_model_with_those_labels(tmp_path):
    data = write_data(tmp_path / "data", {"train": 6, "validation": 2}, labels=("awake", "asleep"))
    arguments = ["--data", str(data), "--model", str(tmp_path / "sleep.h5"), "--epochs", "1", "--batch-size", "4"]
    assert train.main(arguments) == 0
    assert Classifier.load(tmp_path / "sleep.h5").labels == ("asleep", "awake")


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
    assert "Total params: 1,169,071" in output and "FER+ majority (n = 21)" in output and " votes\n" in output
    classifier = Classifier.load(model)
    network = train.keras.models.load_model(model, compile=False)
    assert network.count_params() == 1_167_015  # what predicts the votes is no part of it, but of the file
    faces = train.dataset.load(data).splits["validation"].images
    votes = classifier.predict_proba(faces, votes=True)
    assert votes.shape == (21, 7) and np.allclose(votes.sum(axis=1), 1, atol=1e-5)

    # a run that goes on from it begins with what it says
    name, weights = train.trainer.starting_point(Namespace(start=model), train.dataset.load(data), train.NETWORKS)
    network = train.NETWORKS[name](15, "linear")
    network.set_weights(weights)
    logits = network.predict(faces[..., None] / 255, verbose=0)
    said = softmax(logits[:, :7] / classifier.metadata["temperature"]), softmax(logits[:, 7:14])
    np.testing.assert_allclose(said[0], classifier.predict_proba(faces), atol=1e-4)
    np.testing.assert_allclose(said[1], votes, atol=1e-4)


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.slow
def test_a_teacher_has_a_say_in_the_labels(trained, data_folder, tmp_path, capsys):
    data = train.dataset.load(data_folder)
    targets = train.trainer.images_and_targets(data, "validation", [trained, trained])[1]
    taught = Classifier.load(trained).predict_proba(data.splits["validation"].images, flip_tta=True)
    share = train.trainer.TEACHER_SHARE
    expected = (1 - share) * np.eye(7)[data.splits["validation"].labels] + share * taught
    np.testing.assert_allclose(targets, expected, atol=1e-5)

    arguments = [
        "--data",
        str(data_folder),
        "--model",
        str(tmp_path / "pupil.h5"),
        "--epochs",
        "1",
        "--batch-size",
        "16",
    ]
    assert train.main([*arguments, "--teacher", str(trained)]) == 0
    assert "Its teachers: small.h5." in (tmp_path / "pupil" / "README.md").read_text()
    write_metadata(shutil.copy(trained, tmp_path / "other.h5"), {"labels": list("abcdefg"), "scaling": "unit"})
    assert train.main([*arguments, "--teacher", str(tmp_path / "other.h5")]) == 2
    assert "knows a, b, c, d, e, f, g, not angry" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_model_leaves_the_mean_of_its_weights(trained, data_folder, tmp_path, monkeypatch):
    """The mean of those that the epochs end with, and neither the last of them nor those that it began with."""
    seen = []
    remember = train.StochasticWeightAveraging.on_test_begin

    def on_test_begin(self, logs=None):
        seen.append(self.model.get_weights())
        remember(self, logs)

    monkeypatch.setattr(train.StochasticWeightAveraging, "on_test_begin", on_test_begin)
    # later epochs are better, so that the last mean is the model
    save = lambda self, epoch, logs=None: self.model.save(self.path)  # noqa: E731
    monkeypatch.setattr(train.AtomicModelCheckpoint, "on_epoch_end", save)
    arguments = ["--start", str(trained), "--data", str(data_folder), "--batch-size", "16", "--epochs", "3"]
    assert train.main([*arguments, "--model", str(tmp_path / "on.h5")]) == 0
    on = read_weights(tmp_path / "on.h5")[0]
    begun = read_weights(trained)[0]
    assert len(seen) == 3
    for index, name in ((0, "the first kernel"), (-2, "the last kernel")):
        mean = np.mean([weights[index] for weights in seen], axis=0)
        np.testing.assert_allclose(on[index], mean, atol=2e-3, err_msg=name)
        assert np.abs(seen[-1][index] - mean).max() > 1e-3 and np.abs(on[index] - begun[index]).max() > 1e-3
    assert read_metadata(tmp_path / "on.h5")["start"] == "small.h5"


@pytest.mark.slow
def test_a_run_goes_on_from_a_model_of_its_own_labels_and_network_alone(trained, data_folder, tmp_path, capsys):
    data = write_data(tmp_path / "data", {"train": 4, "validation": 2}, labels=("awake", "asleep"))
    assert train.main(["--start", str(trained), "--data", str(data), "--model", str(tmp_path / "new.h5")]) == 2
    assert "takes a model of train.py that knows asleep, awake" in capsys.readouterr().err
    arguments = ["--data", str(data_folder), "--model", str(tmp_path / "new.h5"), "--start", str(tmp_path / "other.h5")]
    for network, words in (("large", "is not the large network"), (["compact"], "takes a model of train.py")):
        shutil.copy(trained, tmp_path / "other.h5")
        write_metadata(tmp_path / "other.h5", read_metadata(trained) | {"network": network})
        assert train.main(arguments) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--start", str(trained), "--network", "classic"])


@pytest.mark.parametrize(
    ("option", "flags", "policy"),
    [
        ("auto", "fpu avx2 avx512f avx512_bf16", "mixed_bfloat16"),
        ("auto", "fpu amx_bf16", "mixed_bfloat16"),
        ("auto", "fpu avx512f avx512_bf16_not", "float32"),
        ("auto", None, "float32"),
        ("float32", "avx512_bf16", "float32"),
        ("bfloat16", "fpu", "mixed_bfloat16"),
    ],
)
def test_the_processor_decides_the_precision(tmp_path, monkeypatch, option, flags, policy):
    monkeypatch.setattr(train.trainer, "CPUINFO", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert train.trainer.choose_precision(option) == policy
    if option == "auto":  # a run that goes on computes as it began
        assert train.trainer.choose_precision(option, ({"settings": {"precision": "other"}}, [])) == "other"


def test_the_learning_rate_climbs_and_falls_and_keeps_what_is_taken_off_it():
    def rates(start, factor=1):
        options, rate, seen = Namespace(epochs=20, start=start), 5.0, []
        schedule = train.trainer.learning_rate_schedule(0.1, options).schedule
        for epoch in range(20):
            rate = schedule(epoch, rate * (factor if epoch == 10 else 1))
            seen.append(rate)
        return np.array(seen)

    np.testing.assert_allclose(rates(None)[:3], [0.05, 0.1, 0.1 * 18 / 19])
    np.testing.assert_allclose(np.diff(rates(None)[1:]), -0.1 / 19)
    assert rates(None)[-1] == pytest.approx(0.1 / 19) and set(rates("model.h5").tolist()) == {0.1}
    np.testing.assert_allclose(rates(None, 0.5)[10:], rates(None)[10:] / 2)


def test_the_classic_network_is_the_one_of_the_tutorials():
    classic = train.classic_network(7, "softmax")
    convolutions = [layer for layer in classic.layers if "conv" in layer.name]
    assert [(layer.filters, layer.kernel_size) for layer in convolutions] == [
        (64, (3, 3)),
        (128, (5, 5)),
        (512, (3, 3)),
        (512, (3, 3)),
    ]
    assert 4.4e6 < classic.count_params() < 4.6e6
    assert train.compact_network(7, "softmax").count_params() < classic.count_params() / 2


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--epochs 0", "--epochs: 0: takes a whole number from 1"),
        ("--batch-size 1", "--batch-size: 1: takes a whole number from 2"),
        ("--seed 5000000000", "--seed: 5000000000: takes a whole number from 0"),
        ("--seed x", "--seed: x: takes a whole number from 0"),
        ("--precision float16", "--precision: invalid choice"),
        ("--network x", "--network: invalid choice"),
        ("--split train", "--split, --labels and --scaling go with --evaluate"),
        ("--evaluate model.h5 --resume", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --epochs 3", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --precision float32", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --seed 3", "--evaluate takes only --data, --split, --labels and --scaling"),
    ],
)
def test_options_out_of_range(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(arguments.split())
    assert caught.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_show_without_a_screen_says_where_the_image_is(tmp_path, data_folder):
    result = run(
        "train.py",
        "--data",
        data_folder,
        "--model",
        tmp_path / "m.h5",
        "--epochs",
        1,
        "--batch-size",
        16,
        "--show",
        "fear",
    )
    assert result.returncode == 0 and "no screen" in result.stdout
    assert cv2.imread(str(tmp_path / "m" / "samples.png")) is not None
