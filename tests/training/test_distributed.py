"""One network trained on several devices and by several processes, which are real ones and meet on this machine."""

import contextlib
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
from expressions import UserError, cli
from expressions.model_file import read_metadata, read_weights
from expressions.training import distributed
from expressions.training.augmentation import OpenCVImageDataGenerator

# no augmentation, by which processes differ; a rate that doesn't blow rounding up
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from small_train import train, use_small_network
use_small_network()
train.distributed.JOIN_TIMEOUT, train.distributed.HEARTBEAT_TIMEOUT = 60, 10
plain = train.OpenCVImageDataGenerator(rescale=train.RESCALE)
train.OpenCVImageDataGenerator = lambda **options: plain
for name in ("FROM_SCRATCH", "FINE_TUNING"):
    setattr(train, name, getattr(train, name)._replace(learning_rate=1e-2))
"""
WITHOUT_TENSORFLOW = "sys.modules['tensorflow'] = None"  # which Keras would import to seed it, and that takes seconds
LOST = r"train.py: one of the 2 processes has ended or can't be reached; .* --resume in all of them\n"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts train.py in so many processes, each with so many devices, and returns them."""
    cache, started = tmp_path_factory.mktemp("compiled"), []

    def start(*arguments, processes=1, devices=1, numbers=None, before=WITHOUT_TENSORFLOW):
        environment = os.environ | {
            "KERAS_BACKEND": "jax",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # to compile takes longer than to run
        }
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                environment[distributed.ADDRESSES] = f"127.0.0.1:{free.getsockname()[1]}"
            environment[distributed.WORLD_SIZE] = str(processes)
        command = [sys.executable, "-c", f"{PROGRAM}{before}\nsys.exit(train.main())", *map(str, arguments)]
        begun = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
                env=environment | {distributed.RANK: str(number)} if processes > 1 else environment,
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
    precision = ("--precision", "float32")
    return ["--data", data, "--model", model, "--batch-size", batch, "--epochs", epochs, *precision, *more]


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
    first, second = ended(start(*words(data_folder, tmp_path / "model.h5"), processes=2, before=""))
    assert first[0] == second[0] == 0, first[2] + second[2]
    alike(tmp_path / "model.h5", alone)
    assert "Epoch 2/2" in first[1] and "Gloo" not in first[1] and first[2] == ""
    assert second[1:] == ("", "")


@needs("jax")
@pytest.mark.slow
def test_two_devices_of_one_process_train_as_one_does(start, data_folder, alone, tmp_path):
    """From a model, and the mean of the weights of the epochs."""
    more = ("--start", alone)
    runs = [
        ended(start(*words(data_folder, tmp_path / f"{devices}.h5", *more), devices=devices))[0] for devices in (1, 2)
    ]
    assert [run[0] for run in runs] == [0, 0], runs
    alike(tmp_path / "2.h5", tmp_path / "1.h5")


@needs("jax")
@pytest.mark.slow
def test_a_run_goes_on_after_a_process_was_lost_and_stops_as_one(start, data_folder, tmp_path):
    """The second is killed, the first falls silent, the second is asked to end; yet every epoch is there, once."""
    model, epochs = tmp_path / "model.h5", 16
    history, running = (tmp_path / "model" / name for name in ("history.csv", "history.partial.csv"))
    arguments = words(data_folder, model, epochs=epochs)
    for lost, how in ((1, signal.SIGKILL), (0, signal.SIGSTOP)):
        processes = start(*arguments, processes=2)
        wait_for_epochs(processes, running, 2 if lost else 4)
        processes[lost].send_signal(how)
        began = time.monotonic()
        status, _, error = ended([processes[1 - lost]], 150)[0]
        if how == signal.SIGKILL:
            assert status == 2 and re.fullmatch(LOST, error), error
        else:  # JAX misses its signs of life, and ends the program
            assert status == -signal.SIGABRT and "another task died" in error and error.count("\n") < 25, error
        assert time.monotonic() - began < 120
        processes[lost].kill()
        if lost:
            arguments.append("--resume")
    processes = start(*arguments, processes=2)
    wait_for_epochs(processes, running, 6)
    processes[1].send_signal(signal.SIGINT)
    first, second = ended(processes)
    assert (first[0], *second) == (0, 0, "", ""), (first, second)
    seen = pd.read_csv(history)["epoch"].tolist()
    assert "Stopped." in first[1] and read_metadata(model) and 6 <= len(seen) < epochs
    assert seen == list(range(len(seen)))


def numbered(count, batch_size, shuffle=True, generator=None):
    """Batches of `count` images, each of which has its number as its target, for the process that is set."""
    images = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 1), np.uint8)
    generator = generator or OpenCVImageDataGenerator()
    return generator.flow(images, np.arange(count), batch_size=batch_size, shuffle=shuffle, seed=3)


def shares(monkeypatch, processes, devices, *images, epoch=0, **more):
    """For each of the processes the batches that it reads of an epoch."""
    monkeypatch.setattr(distributed, "device_count", lambda: devices)
    read = []
    for rank in range(processes):
        info = distributed.ProcessInfo(processes, rank, "127.0.0.1:99")
        monkeypatch.setattr(distributed, "process_info", lambda info=info: info)
        batches = numbered(*images, **more)
        batches.set_epoch(epoch)
        read.append([batches[index] for index in range(len(batches))])
    return read


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (2, 4), (3, 3), (4, 8)])
@pytest.mark.parametrize("images", [1, 23, 24, 25, 95, 96, 99])
def test_the_shares_add_up_to_the_epoch(monkeypatch, images, count, devices):
    whole = [targets for _, targets, _ in numbered(images, 24)]
    read = shares(monkeypatch, count, devices, images, 24)
    assert {len(batches) for batches in read} == {len(whole)}
    for index, batch in enumerate(whole):
        parts = [batches[index] for batches in read]
        assert len({len(part[0]) for part in parts}) == 1 and len(parts[0][0]) * count % devices == 0
        targets, weights = (np.concatenate([part[number] for part in parts]) for number in (1, 2))
        np.testing.assert_array_equal(targets[weights > 0], batch)
        assert weights.mean() == pytest.approx(1) and len(set(weights)) <= 2  # so that the mean is that of the batch
        assert len(targets) < len(batch) + devices


def test_validation_weighs_every_image_alike(monkeypatch):
    read = shares(monkeypatch, 2, 2, 53, 25, shuffle=False)
    targets, weights = (np.concatenate([batch[number] for part in read for batch in part]) for number in (1, 2))
    assert sorted(targets[weights > 0]) == list(range(53))
    assert len(set(weights[weights > 0])) == 1 and weights.mean() == pytest.approx(1)


def test_augmentation_differs_by_process_and_epoch_and_comes_again(monkeypatch):
    generator = OpenCVImageDataGenerator(rotation_range=15, zoom_range=0.1, horizontal_flip=True)
    one_face = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 1), np.uint8).repeat(8, axis=0)

    def read(processes, epoch):
        parts = []
        for rank in range(processes):
            info = distributed.ProcessInfo(processes, rank, "127.0.0.1:99")
            monkeypatch.setattr(distributed, "process_info", lambda info=info: info)
            monkeypatch.setattr(distributed, "device_count", lambda: processes)
            batches = generator.flow(one_face, np.arange(8), batch_size=8, shuffle=True, seed=3)
            batches.set_epoch(epoch)
            parts.append(batches[0][0])
        return parts

    seen = [*read(2, epoch=0), *read(2, epoch=1)]
    assert all((first != second).any() for index, first in enumerate(seen) for second in seen[:index])
    np.testing.assert_array_equal(read(2, epoch=0), seen[:2])


def test_on_one_device_every_image_counts_alike():
    assert all((weights == 1).all() and len(weights) in (1, 2) for _, _, weights in numbered(5, 2))
    assert distributed.broadcast(lambda: b"mine") == b"mine"


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
    for name, value in zip(("ADDRESSES", "WORLD_SIZE", "RANK"), (address, count, number), strict=True):
        monkeypatch.setenv(getattr(distributed, name), value)
    monkeypatch.setattr(train.keras.config, "backend", lambda: "tensorflow")
    assert train.main(["--data", str(data_folder)]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_batch_that_cant_be_divided(monkeypatch):
    monkeypatch.setattr(distributed, "device_count", lambda: 3)
    with pytest.raises(UserError, match="--batch-size 64: can't be divided among 3 devices; give 63"):
        distributed.check_batch_size(64)
    distributed.check_batch_size(63)
    assert len(numbered(128, 64)) == 2  # validation's size is nobody's choice


def test_a_process_of_another_run_is_told_so(monkeypatch):
    monkeypatch.setattr(distributed, "broadcast", lambda content: b'{"seed": 1, "data": "a", "start": null}')
    distributed.check_same_settings({"seed": 1, "data": "a", "start": None})
    with pytest.raises(UserError, match=r"\(seed is 1 there, data is a there\)"):
        distributed.check_same_settings({"seed": 0, "data": "b", "start": None})


@needs("jax")
@pytest.mark.slow
def test_nobody_answers(start, data_folder, tmp_path):
    arguments = words(data_folder, tmp_path / "model.h5")
    for number in (0, 1):  # the first waits in vain as well
        wait = "train.distributed.JOIN_TIMEOUT = 2"
        [(status, _, error)] = ended(start(*arguments, processes=2, numbers=[number], before=wait), 60)
        assert status == 2 and re.fullmatch(
            r"train.py: KERAS_DISTRIBUTION_JOB_ADDRESSES 127.0.0.1:\d+: 2 processes have not come .*\n", error
        ), error


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


@pytest.mark.faults
def test_a_terminal_that_is_closed_asks_once(heeds_ctrl_c):
    """The system sends SIGHUP, and so does the shell, at any time after it."""
    before = signal.signal(signal.SIGHUP, cli.interrupt_once)
    try:
        with train.distributed.GracefulStop() as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested and not stop.stopped and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


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
