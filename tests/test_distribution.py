"""One network trained on several devices and by several processes, which are real ones and meet on this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, heed_ctrl_c, needs, wait_for

import train
from expressions import UserError
from expressions.model_file import read_metadata, read_weights
from expressions.training import distributed

# A network that is soon compiled; no augmentation, by which processes differ; a rate that doesn't blow rounding up.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train
train.distributed.PATIENCE, train.distributed.SILENCE = 60, 10
train.fastest_policy = lambda: "float32"
train.generators = lambda recipe: (train.ImageDataGenerator(rescale=train.RESCALE),) * 2
for name in ("FROM_SCRATCH", "FINE_TUNING"):
    setattr(train, name, getattr(train, name)._replace(learning_rate=1e-2))

def small_network(outputs, activation):
    convolutions = [*train.convolution(8, pooled=True), *train.convolution(16, pooled=True)]
    pooled = train.layers.GlobalAveragePooling2D(), train.layers.Dropout(0.3)
    last = train.layers.Dense(outputs, activation)
    return train.keras.Sequential([train.keras.Input((48, 48, 1)), *convolutions, *pooled, last])

train.NETWORKS["compact"] = small_network
"""
LOST = r"train.py: one of the 2 processes has ended or can't be reached; .* --resume in all of them\n"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts train.py in so many processes, each with so many devices, and returns them."""
    cache, started = tmp_path_factory.mktemp("compiled"), []

    def start(*arguments, processes=1, devices=1, numbers=None, before=""):
        environment = os.environ | {
            "KERAS_BACKEND": "jax",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                environment[distributed.ADDRESSES] = f"127.0.0.1:{free.getsockname()[1]}"
            environment[distributed.COUNT] = str(processes)
        command = [sys.executable, "-c", PROGRAM + before + "sys.exit(train.main())", *map(str, arguments)]
        begun = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
                env=environment | {distributed.NUMBER: str(number)} if processes > 1 else environment,
            )
            for number in (numbers or range(processes))
        ]  # fmt: skip
        started.extend(begun)
        return begun

    yield start
    for process in started:
        process.kill()


def ended(processes, seconds=240):
    """(status, stdout, stderr) of each, once all have ended."""
    printed = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *words) for process, words in zip(processes, printed, strict=True)]


def words(data, model, *more, epochs=2, batch=16):
    return ["--data", data, "--model", model, "--batch-size", batch, "--epochs", epochs, *more]


def wait_for_epochs(processes, history, count):
    wait_for(lambda: history.exists() and history.read_text().count("\n") > count, processes)


@pytest.fixture(scope="module")
def alone(start, data_folder, tmp_path_factory):
    """The model of a run on one device."""
    model = tmp_path_factory.mktemp("alone") / "model.h5"
    [(status, _, error)] = ended(start(*words(data_folder, model)))
    assert status == 0, error
    return model


def alike(model, other):
    """Whether two runs trained alike, in all that they tell of their epochs and in every weight."""
    histories = [pd.read_csv(path.with_suffix("") / "history.csv").drop(columns="seconds") for path in (model, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=False, rtol=2e-3)
    weights = [read_weights(path)[0] for path in (model, other)]
    for first, second in zip(*weights, strict=True):
        np.testing.assert_allclose(first, second, atol=2e-3)


@needs("jax")
@pytest.mark.slow
def test_two_processes_train_as_one_does(start, data_folder, alone, tmp_path):
    first, second = ended(start(*words(data_folder, tmp_path / "model.h5"), processes=2))
    assert first[0] == second[0] == 0, first[2] + second[2]
    alike(tmp_path / "model.h5", alone)
    assert "Epoch 2/2" in first[1] and "Gloo" not in first[1] and first[2] == ""
    assert second[1:] == ("", "")


@needs("jax")
@pytest.mark.slow
def test_two_devices_of_one_process_train_as_one_does(start, data_folder, alone, tmp_path):
    """From a model, with a teacher, and the mean of the weights of the epochs."""
    more = ("--start", alone, "--teacher", alone)
    runs = [
        ended(start(*words(data_folder, tmp_path / f"{devices}.h5", *more), devices=devices))[0] for devices in (1, 2)
    ]
    assert [run[0] for run in runs] == [0, 0], runs
    alike(tmp_path / "2.h5", tmp_path / "1.h5")


@needs("jax")
@pytest.mark.slow
def test_a_run_goes_on_after_a_process_was_lost_and_stops_as_one(start, data_folder, tmp_path):
    """The second is killed, the first falls silent, the second is asked to end; yet every epoch is there, once."""
    model, epochs = tmp_path / "model.h5", 25
    history, running = (tmp_path / "model" / name for name in ("history.csv", "history.partial.csv"))
    arguments = words(data_folder, model, epochs=epochs)
    for lost, how in ((1, signal.SIGKILL), (0, signal.SIGSTOP)):
        processes = start(*arguments, processes=2)
        wait_for_epochs(processes, running, 2 if lost else 6)
        processes[lost].send_signal(how)
        began = time.monotonic()
        status, _, error = ended([processes[1 - lost]], 150)[0]
        assert status == 2 and re.fullmatch(LOST, error), error
        assert time.monotonic() - began < 120
        processes[lost].kill()
        if lost:
            arguments.append("--resume")
    processes = start(*arguments, processes=2)
    wait_for_epochs(processes, running, 10)
    processes[1].send_signal(signal.SIGINT)
    first, second = ended(processes)
    assert (first[0], *second) == (0, 0, "", ""), (first, second)
    assert "Stopped." in first[1] and read_metadata(model) and len(pd.read_csv(history)) < epochs
    assert [run[0] for run in ended(start(*arguments, processes=2))] == [0, 0]
    assert pd.read_csv(history)["epoch"].tolist() == list(range(epochs))


def shares(monkeypatch, images, count, devices, epoch=0):
    """For each of `count` processes the batches that it reads of an epoch."""
    monkeypatch.setattr(distributed, "devices", lambda: devices)
    read = []
    for number in range(count):
        monkeypatch.setattr(distributed, "place", lambda number=number: (count, number, None))
        share = distributed.shared(images)
        np.random.seed([3, epoch])  # as Backup does
        share.on_epoch_end()
        read.append([share[index] for index in range(len(share))])
    return read


def numbered(count, batch_size, shuffle=True, generator=None):
    """An iterator over `count` images, each of which has its number as its target."""
    generator = generator or train.ImageDataGenerator()
    images = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 1)).astype(np.float32)
    return generator.flow(images, np.arange(count), batch_size=batch_size, shuffle=shuffle)


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (2, 4), (3, 3), (4, 8)])
@pytest.mark.parametrize("images", [1, 23, 24, 25, 95, 96, 99])
def test_the_shares_add_up_to_the_epoch(monkeypatch, images, count, devices):
    iterator = numbered(images, 24)
    np.random.seed([3, 0])
    iterator.on_epoch_end()
    whole = [iterator[index][1] for index in range(len(iterator))]
    read = shares(monkeypatch, iterator, count, devices)
    assert {len(batches) for batches in read} == {len(whole)}
    for index, batch in enumerate(whole):
        parts = [batches[index] for batches in read]
        assert len({len(part[0]) for part in parts}) == 1 and len(parts[0][0]) * count % devices == 0
        targets, weights = (np.concatenate([part[number] for part in parts]) for number in (1, 2))
        np.testing.assert_array_equal(targets[weights > 0], batch)
        assert weights.mean() == pytest.approx(1) and len(set(weights)) <= 2  # so that the mean is that of the batch
        assert len(targets) < len(batch) + devices


def test_validation_weighs_every_image_alike(monkeypatch):
    read = shares(monkeypatch, numbered(53, 25, shuffle=False), 2, 2)
    targets, weights = (np.concatenate([batch[number] for part in read for batch in part]) for number in (1, 2))
    assert sorted(targets[weights > 0]) == list(range(53))
    assert len(set(weights[weights > 0])) == 1 and weights.mean() == pytest.approx(1)


def test_augmentation_differs_by_process_and_epoch_and_comes_again(monkeypatch):
    generator = train.generators(train.FROM_SCRATCH)[0]
    images = numbered(1, 2, generator=generator)
    images.x, images.y, images.n = np.repeat(images.x, 8, axis=0), np.arange(8), 8
    images.batch_size = 8
    read = {epoch: shares(monkeypatch, images, 2, 2, epoch) for epoch in (0, 1)}
    again = shares(monkeypatch, images, 2, 2)
    seen = [part[0][0] for epoch in (0, 1) for part in read[epoch]]
    assert all((first != second).any() for index, first in enumerate(seen) for second in seen[:index])
    for part, same in zip(read[0], again, strict=True):
        np.testing.assert_array_equal(part[0][0], same[0][0])
    # the first process draws what one alone does, for its images
    np.random.seed([3, 0])
    images.on_epoch_end()
    np.testing.assert_array_equal(images[0][0][:4], read[0][0][0][0])


def test_on_one_device_nothing_changes(monkeypatch):
    monkeypatch.setattr(distributed, "devices", lambda: 1)
    images = numbered(5, 2)
    assert distributed.shared(images, "--batch-size") is images
    assert distributed.of_first(lambda: b"mine") == b"mine"


@pytest.mark.parametrize(
    ("address", "count", "number", "words"),
    [
        ("127.0.0.1:99", "2", "", "KERAS_DISTRIBUTION_PROCESS_ID; set all three"),
        ("", "2", "0", "KERAS_DISTRIBUTION_JOB_ADDRESSES; set all three"),
        ("127.0.0.1:99", "two", "0", "such as 2"),
        ("127.0.0.1:99", "0", "0", "such as 2"),
        ("127.0.0.1:99", "2", "2", "from 0 to 1"),
        ("127.0.0.1:99", "2", "-1", "from 0 to 1"),
        ("127.0.0.1", "2", "0", "host:port"),
        ("a:1,b:1,c:1", "2", "0", "those of all 2"),
        ("127.0.0.1:99", "2", "0", "set KERAS_BACKEND=jax"),
    ],
)
def test_what_the_environment_can_get_wrong(monkeypatch, capsys, data_folder, address, count, number, words):
    for name, value in zip(("ADDRESSES", "COUNT", "NUMBER"), (address, count, number), strict=True):
        monkeypatch.setenv(getattr(distributed, name), value)
    monkeypatch.setattr(train.keras.config, "backend", lambda: "tensorflow")
    assert train.main(["--data", str(data_folder)]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_batch_that_cant_be_divided(monkeypatch):
    monkeypatch.setattr(distributed, "devices", lambda: 3)
    with pytest.raises(UserError, match="--batch-size 64: can't be divided among 3 devices; give 63"):
        distributed.shared(numbered(5, 64), "--batch-size")
    assert len(distributed.shared(numbered(128, 64))) == 2  # validation's size is nobody's choice


def test_a_process_of_another_run_is_told_so(monkeypatch):
    monkeypatch.setattr(distributed, "of_first", lambda content: b'{"seed": 1, "data": "a", "start": null}')
    distributed.agree({"seed": 1, "data": "a", "start": None})
    with pytest.raises(UserError, match=r"\(seed is 1 there, data is a there\)"):
        distributed.agree({"seed": 0, "data": "b", "start": None})


@needs("jax")
@pytest.mark.slow
def test_nobody_answers(start, data_folder, tmp_path):
    arguments = words(data_folder, tmp_path / "model.h5")
    for number in (0, 1):  # the first waits in vain as well
        wait = "train.distributed.PATIENCE = 2; "
        [(status, _, error)] = ended(start(*arguments, processes=2, numbers=[number], before=wait), 60)
        assert status == 2 and re.fullmatch(
            r"train.py: KERAS_DISTRIBUTION_JOB_ADDRESSES 127.0.0.1:\d+: 2 processes have not come .*\n", error
        ), error
