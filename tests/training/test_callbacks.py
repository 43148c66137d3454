"""What stands by while a network trains: the best model, the mean of weights, and the state that a run goes on from."""

import functools
import random
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
from conftest import WITHOUT_PRIVILEGES, wait_for, write_data
from runs import begin, refused, run_without_privileges, words

import train
from expressions.model_file import read_metadata, read_weights
from expressions.training.callbacks import TrainingState


def test_the_best_model_is_replaced_by_a_better_one_alone(tmp_path):
    """Its folder may have a name that looks like a pattern, and half a file there of a run that was killed."""
    folder = tmp_path / "{epoch} {a}"
    folder.mkdir()
    checkpoint = train.AtomicModelCheckpoint(folder / "best.partial.keras")
    checkpoint.partial.write_text("half")
    network = train.keras.Sequential([train.keras.Input((1,)), train.keras.layers.Dense(1)])
    checkpoint.set_model(network)
    saved = []
    epochs = [(0.5, 2), (0.4, 1), (0.9, float("nan")), (0.5, 2), (0.5, 1), (0.5, 1.5), (0.6, 3)]
    for epoch, (accuracy, loss) in enumerate(epochs):
        network.set_weights([np.full((1, 1), epoch), np.zeros(1)])
        checkpoint.on_epoch_end(epoch, {"loss": loss, "val_accuracy": accuracy, "val_loss": loss})
        saved.append(train.keras.models.load_model(checkpoint.path, compile=False).get_weights()[0].item())
    assert saved == [0, 0, 0, 0, 4, 4, 6] and list(folder.iterdir()) == [checkpoint.path]


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
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
@pytest.mark.usefixtures("small_network")
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


KILLS, EPOCHS = 4, 16
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


@pytest.fixture(scope="module")
def whole(build_once, data_folder):
    """The model of a run that nothing happened to."""

    def train(folder):
        process = begin(*words(data_folder, folder / "model.h5", epochs=EPOCHS), **ONE_THREAD)
        assert process.wait() == 0, process.communicate()[0]

    return build_once("whole", train) / "model.h5"


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])  # eight kills in two tests, for the two processes that run tests
def test_kills_at_random_moments_change_nothing(tmp_path, data_folder, whole, seed):
    """Not a weight: on one thread all additions come in the same order."""
    model, state, moments = tmp_path / "killed.h5", tmp_path / "killed" / "state.npz", random.Random(seed)
    epochs_seen = set()
    for kill in range(KILLS):
        resume = ["--resume"] if state.exists() else []
        process = begin(*words(data_folder, model, *resume, epochs=EPOCHS), **ONE_THREAD)
        if kill % 4:  # one in four dies while it starts
            at, began = state.stat().st_mtime_ns if state.exists() else 0, time.monotonic()
            while process.poll() is None and time.monotonic() < began + 60:
                if state.exists() and state.stat().st_mtime_ns != at:
                    break
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.3))
        else:
            time.sleep(moments.uniform(0, 2))
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if state.exists():
            with np.load(state) as file:
                epochs_seen.add(str(file["state"]).split('"epochs": ')[-1].split(",")[0])
        assert not model.exists()
    assert len(epochs_seen) > 2
    last = begin(*words(data_folder, model, "--resume", epochs=EPOCHS), **ONE_THREAD)
    assert last.wait() == 0, last.communicate()[0]

    expected, resumed = (pd.read_csv(path.with_suffix("") / "history.csv") for path in (whole, model))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    weights = [read_weights(path)[0] for path in (whole, model)]
    assert all((first == second).all() for first, second in zip(*weights, strict=True))
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.faults
@pytest.mark.slow
def test_a_killed_run_that_averages_weights_resumes_as_well(tmp_path, data_folder, trained):
    start = functools.partial(begin, **ONE_THREAD)
    arguments = words(data_folder, tmp_path / "whole.h5", "--start", trained, epochs=8)
    whole = start(*arguments)
    assert whole.wait() == 0, whole.communicate()[0]
    arguments[3] = tmp_path / "killed.h5"
    process = start(*arguments)
    wait_for(lambda: (tmp_path / "killed" / "state.npz").exists(), [process])
    process.kill()
    process.communicate()
    last = start(*arguments, "--resume")
    assert last.wait() == 0, last.communicate()[0]
    expected, resumed = (pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_folder):
    """A model whose run was killed, and its data."""
    model = tmp_path_factory.mktemp("stopped") / "model.h5"
    process = begin(*words(data_folder, model, "--precision", "float32", epochs=300))
    wait_for(lambda: (model.with_suffix("") / "state.npz").exists(), [process])
    process.kill()
    process.communicate()
    return model, data_folder


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(
    "option, sentence",
    {
        "--epochs 31": "epochs was 300",
        "--batch-size 8": "batch size was 16",
        "--seed 1": "seed was 0",
        "--network classic": "network was compact",
        "--data other": "data was ",
        "--teacher": "teachers was []",
        "--precision bfloat16": "precision was float32",
    }.items(),
    ids=lambda value: value.split()[0],
)
def test_a_run_is_resumed_with_its_own_options_and_data_alone(stopped, trained, tmp_path, capsys, option, sentence):
    model, data = stopped
    option, *value = option.split()
    if option == "--data":
        value = [write_data(tmp_path / "other", {"train": 9, "validation": 3})]
    elif option == "--teacher":
        value = [trained]
    before = {path: path.read_bytes() for path in model.with_suffix("").iterdir() if path.suffix != ".lock"}
    refused(capsys, [*words(data, model, "--resume", epochs=300), option, *value], f"({sentence}")
    refused(capsys, [*words(data, model, epochs=300), option, *value], "go on with --resume")
    assert {path: path.read_bytes() for path in model.with_suffix("").iterdir()} == before


class Code:
    """When it is unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut off", "empty", "noise", "code", "one bit", "another bit"])
def test_a_damaged_state(stopped, tmp_path, capsys, damage):
    model, data = tmp_path / "model.h5", stopped[1]
    shutil.copytree(stopped[0].with_suffix(""), tmp_path / "model")
    state, proof = tmp_path / "model" / "state.npz", tmp_path / "proof"
    good = state.read_bytes()
    content = {"cut off": good[: len(good) // 2], "empty": b"", "noise": random.Random(0).randbytes(10_000)}
    for name, at in (("one bit", 8), ("another bit", 10)):  # says that it is encrypted, or packed as nobody does
        at += good.index(b"PK\1\2")  # the first entry of the list at a zip file's end
        content[name] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    if damage == "code":  # NumPy's files may hold Python's pickles, which may run anything
        np.savez(state, state=np.array([Code(proof)], dtype=object))
    else:
        state.write_bytes(content[damage])
    refused(capsys, words(data, model, "--resume", epochs=300), "state.npz: damaged")
    assert not proof.exists()


@pytest.mark.faults
def test_a_state_sets_nothing_but_what_callbacks_remember(tmp_path):
    """Not where the model is written."""
    checkpoint = train.AtomicModelCheckpoint(tmp_path / "best.keras")
    state = TrainingState(tmp_path, {}, [checkpoint], None)
    state.memory = [{"best": 0.5, "path": "another.keras"}]
    state.on_train_begin()
    assert (checkpoint.best, checkpoint.path) == (0.5, tmp_path / "best.keras")


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="needs setpriv")
def test_a_state_that_can_t_be_read_is_not_called_damaged(stopped, tmp_path):
    shutil.copytree(stopped[0].with_suffix(""), tmp_path / "model")
    (tmp_path / "model" / "state.npz").chmod(0)
    result = run_without_privileges(*words(stopped[1], tmp_path / "model.h5", "--resume", epochs=300))
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 2 and "Permission denied" in last and "damaged" not in last, result.stdout
