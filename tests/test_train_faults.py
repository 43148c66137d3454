"""What happens to a training run: killed, out of room, out of memory, refused, interfered with."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WITHOUT_PRIVILEGES, command, heed_ctrl_c, wait_for, write_data

import train
from expressions import UserError
from expressions.model_file import read_metadata, read_weights
from expressions.training.trainer import out_of_memory_as_user_error, run_directory

pytestmark = [pytest.mark.faults, pytest.mark.slow]

KILLS = 20
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def words(data, model, *more, epochs=2):
    return ["--data", data, "--model", model, "--batch-size", 16, "--epochs", epochs, *more]


def run(*arguments, before=(), prepare=None):
    """Run train.py to its end; what it printed stands in stdout."""
    return subprocess.run(
        [*before, *command("train.py", *arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=prepare, timeout=300,
    )  # fmt: skip


def begin(*arguments, **environment):
    """Start train.py."""
    return subprocess.Popen(
        command("train.py", *arguments), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=heed_ctrl_c, env=os.environ | environment,
    )  # fmt: skip


def refused(capsys, arguments, sentence):
    assert train.main([str(word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said


def test_twenty_kills_at_random_moments_change_nothing(tmp_path, data_folder):
    """Not a weight: on one thread all additions come in the same order."""
    whole = begin(*words(data_folder, tmp_path / "whole.h5", epochs=20), **ONE_THREAD)
    model, state, moments = tmp_path / "killed.h5", tmp_path / "killed" / "state.npz", random.Random(0)
    assert whole.wait() == 0, whole.communicate()[0]
    epochs_seen = set()
    for kill in range(KILLS):
        resume = ["--resume"] if state.exists() else []
        process = begin(*words(data_folder, model, *resume, epochs=20), **ONE_THREAD)
        if kill % 4:  # one in four dies while it starts
            at, began = state.stat().st_mtime_ns if state.exists() else 0, time.monotonic()
            while process.poll() is None and time.monotonic() < began + 60:
                if state.exists() and state.stat().st_mtime_ns != at:
                    break
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.3))
        else:
            time.sleep(moments.uniform(0, 4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if state.exists():
            with np.load(state) as file:
                epochs_seen.add(str(file["state"]).split('"epochs": ')[-1].split(",")[0])
        assert not model.exists() or read_metadata(model)  # at no moment half a file
    assert len(epochs_seen) > 5
    last = begin(*words(data_folder, model, "--resume", epochs=20), **ONE_THREAD)
    assert last.wait() == 0, last.communicate()[0]

    expected, resumed = (pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed"))
    assert resumed["epoch"].tolist() == list(range(20))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    weights = [read_weights(tmp_path / name)[0] for name in ("whole.h5", "killed.h5")]
    assert all((first == second).all() for first, second in zip(*weights, strict=True))
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_killed_run_that_averages_weights_resumes_as_well(tmp_path, data_folder, trained):
    arguments = words(data_folder, tmp_path / "whole.h5", "--start", trained, epochs=5)
    whole = begin(*arguments, **ONE_THREAD)
    assert whole.wait() == 0, whole.communicate()[0]
    arguments[3] = tmp_path / "killed.h5"
    process = begin(*arguments, **ONE_THREAD)
    wait_for(lambda: (tmp_path / "killed" / "state.npz").exists(), [process])
    process.kill()
    process.communicate()
    last = begin(*arguments, "--resume", **ONE_THREAD)
    assert last.wait() == 0, last.communicate()[0]
    expected, resumed = (pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_run_that_is_asked_to_end_leaves_a_model_and_can_be_resumed(tmp_path, data_folder, asked):
    process = begin(*words(data_folder, tmp_path / "model.h5", epochs=200))
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    process.send_signal(asked)
    printed = process.communicate()[0]
    assert process.returncode == 0 and "Stopped." in printed and "Traceback" not in printed, printed
    assert read_metadata(tmp_path / "model.h5") and (tmp_path / "model" / "state.npz").exists()


# where it fills up: in the best model, in the state, in the model that ships
@pytest.mark.parametrize("small_disk", [4, 15, 25], indirect=True)
def test_a_full_disk_leaves_the_model_of_before(small_disk, data_folder, trained):
    model = small_disk / "model.h5"
    shutil.copy(trained, model)
    before = model.read_bytes()
    result = run(*words(data_folder, model, epochs=1))
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("train.py: no space left on the disk"), result.stdout
    assert "Traceback" not in result.stdout and model.read_bytes() == before


@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="needs setpriv")
@pytest.mark.parametrize("where", ["the folder", "the folder of the report"])
def test_a_folder_that_can_t_be_written_to(tmp_path, data_folder, where):
    model = tmp_path / "out" / "model.h5"
    closed = model.parent if where == "the folder" else model.with_suffix("")
    closed.mkdir(parents=True)
    closed.chmod(0o500)
    result = run(*words(data_folder, model), before=WITHOUT_PRIVILEGES)
    closed.chmod(0o700)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("train.py: ") and "Permission denied" in last, result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize("gone", ["the report's folder", "the history", "the best model"])
def test_what_is_removed_during_a_run(tmp_path, data_folder, gone):
    """Says so in a line, or does without; a resumed run puts it right."""
    model = tmp_path / "model.h5"
    process = begin(*words(data_folder, model, epochs=15))
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    if gone == "the report's folder":
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
    else:
        (tmp_path / "model" / {"the history": "history.partial.csv", "the best model": "best.h5"}[gone]).unlink()
    printed = process.communicate()[0]
    assert process.returncode in (0, 2) and "Traceback" not in printed, printed
    if process.returncode:
        assert printed.strip().splitlines()[-1].startswith("train.py: ") and not model.exists()
    else:
        assert read_metadata(model) and (tmp_path / "model" / "README.md").exists()


def test_two_runs_of_one_model(tmp_path, data_folder, capsys):
    arguments = words(data_folder, tmp_path / "model.h5", epochs=200)
    process = begin(*arguments)
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    refused(capsys, [*arguments, "--resume"], "another program is writing it")
    process.kill()
    process.communicate()
    assert train.main([str(word) for word in words(data_folder, tmp_path / "other.h5", epochs=1)]) == 0
    refused(capsys, arguments, "go on with --resume")  # the lock of a killed run is none


@pytest.mark.parametrize(
    "option, sentence",
    {
        "--epochs 31": "epochs was 30",
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
    refused(capsys, [*words(data, model, "--resume", epochs=30), option, *value], f"({sentence}")
    refused(capsys, [*words(data, model, epochs=30), option, *value], "go on with --resume")
    assert {path: path.read_bytes() for path in model.with_suffix("").iterdir()} == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_folder):
    """A model whose run was killed, and its data."""
    model = tmp_path_factory.mktemp("stopped") / "model.h5"
    process = begin(*words(data_folder, model, "--precision", "float32", epochs=30))
    wait_for(lambda: (model.with_suffix("") / "state.npz").exists(), [process])
    process.kill()
    process.communicate()
    return model, data_folder


@pytest.mark.parametrize("damage", ["cut off", "empty", "noise", "code", "one bit", "another bit"])
def test_a_damaged_state(stopped, tmp_path, capsys, damage):
    model, data = tmp_path / "model.h5", stopped[1]
    shutil.copytree(stopped[0].with_suffix(""), tmp_path / "model")
    state, proof = tmp_path / "model" / "state.npz", tmp_path / "proof"
    good = state.read_bytes()
    content = {"cut off": good[:100_000], "empty": b"", "noise": random.Random(0).randbytes(10_000)}
    for name, at in (("one bit", 8), ("another bit", 10)):  # says that it is encrypted, or packed as nobody does
        at += good.index(b"PK\1\2")  # the first entry of the list at a zip file's end
        content[name] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    if damage == "code":  # NumPy's files may hold Python's pickles, which may run anything
        np.savez(state, state=np.array([Code(proof)], dtype=object))
    else:
        state.write_bytes(content[damage])
    refused(capsys, words(data, model, "--resume", epochs=30), "state.npz: damaged")
    assert not proof.exists()


@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="needs setpriv")
def test_a_state_that_can_t_be_read_is_not_called_damaged(stopped, tmp_path):
    shutil.copytree(stopped[0].with_suffix(""), tmp_path / "model")
    (tmp_path / "model" / "state.npz").chmod(0)
    result = run(*words(stopped[1], tmp_path / "model.h5", "--resume", epochs=30), before=WITHOUT_PRIVILEGES)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 2 and "Permission denied" in last and "damaged" not in last, result.stdout


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


def test_names_with_points_are_names_of_their_own(tmp_path):
    mine = tmp_path / "v1.lock"
    mine.write_text("mine")
    with run_directory(tmp_path / "v1.0.h5") as first, run_directory(tmp_path / "v1.1.h5") as second:
        assert (first.name, second.name) == ("v1.0", "v1.1")
    assert mine.read_text() == "mine" and not list(first.iterdir())


class Code:
    """When it is unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_batch_larger_than_the_data_is_all_of_them(tmp_path, data_folder):
    model = tmp_path / "model.h5"
    assert train.main(["--data", str(data_folder), "--model", str(model), "--epochs", "1", "--batch-size", "5000"]) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: of 8 GB"), ValueError("CUDA out of memory. Tried to")]
)
def test_a_batch_that_memory_can_t_hold(error):
    """Each backend says it in its own way."""
    words = "--batch-size 8000: no memory for so many images; give less"
    with pytest.raises(UserError, match=words), out_of_memory_as_user_error(8000):
        raise error


@pytest.mark.parametrize("error", [OSError("out of memory.h5: is a folder"), ValueError("shapes (2,) and (3,)")])
def test_other_errors_of_a_step_stay_what_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))), out_of_memory_as_user_error(8000):
        raise error


@pytest.mark.parametrize("case", ["a folder", "another ending", "a file for the report", "a folder of other files"])
def test_a_place_that_is_none_for_a_model(tmp_path, data_folder, capsys, case):
    model = tmp_path / ("model.keras" if case == "another ending" else "model.h5")
    if case == "a folder":
        model.mkdir()
    elif case == "a file for the report":
        model.with_suffix("").write_text("mine")
    elif case == "a folder of other files":
        model.with_suffix("").mkdir()
        (model.with_suffix("") / "thesis.txt").write_text("mine")
    refused(capsys, words(data_folder, model), f"--model {model}")
    assert not (tmp_path / "model").is_file() or (tmp_path / "model").read_text() == "mine"


def shell(line, *arguments):
    words = ["bash", "-o", "pipefail", "-c", line, "bash", *command("train.py", *arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_nobody_reads_what_is_printed(tmp_path, data_folder):
    result = shell('"$@" | head -1', *words(data_folder, tmp_path / "model.h5", epochs=40))
    assert (result.stdout.count("\n"), result.stderr) == (1, "")
    assert result.returncode in (1, 141)  # 1 where it is Rich, by which Keras prints its table, that notices


def test_a_terminal_that_is_closed_from_the_start(tmp_path, data_folder):
    result = shell('"$@" >&- 2>&-', *words(data_folder, tmp_path / "model.h5", epochs=1))
    assert result.returncode == 0 and (tmp_path / "model.h5").exists()


def test_a_terminal_without_the_letters_of_a_name(tmp_path):
    data = write_data(tmp_path / "data", {"train": 2, "validation": 1}, labels=("froh", "m\u00fcde"))
    result = shell('LC_ALL=C PYTHONIOENCODING=ascii "$@"', *words(data, tmp_path / "model.h5", epochs=1))
    assert result.returncode == 0 and "m\\xfcde" in result.stdout, result.stderr
