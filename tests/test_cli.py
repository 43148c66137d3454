"""Where a script's output goes nowhere: closed pipes, full disks, terminals without the letters of a name; and scripts
that can't begin."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cv2
import pytest
from conftest import (
    ENVIRONMENT,
    ROOT,
    SMALL_TRAIN,
    command,
    heed_ctrl_c,
    one_line,
    read_rows,
    wait_for,
    write_data,
    write_video,
)

from expressions import UserError, cli
from expressions.inference.sources import Source
from expressions.model_file import read_metadata


def shell(line, folder, **environment):
    """Run a line of bash with the scripts as $DETECT and $TRAIN; returns its status, output and errors."""
    scripts = {"DETECT": " ".join(command("realtime_detect.py")), "TRAIN": " ".join(command(SMALL_TRAIN))}
    environment = ENVIRONMENT | scripts | environment
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=100
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    "line, said",
    [
        ("$DETECT $ARGUMENTS | true; exit ${PIPESTATUS[0]}", (141, "", "")),
        pytest.param("$DETECT $ARGUMENTS 2>&1 | true; exit ${PIPESTATUS[0]}", (141, "", ""), marks=pytest.mark.slow),
        pytest.param(
            "$DETECT --source none.mp4 --csv b.csv 2>&1 | true; exit ${PIPESTATUS[0]}",
            (141, "", ""),
            marks=pytest.mark.slow,
        ),
        ("$DETECT $ARGUMENTS >&-", (0, "", "")),
        pytest.param("$DETECT $ARGUMENTS >&- 2>&-", (0, "", ""), marks=pytest.mark.slow),
    ],
    ids=["pipe closed", "both pipes closed", "pipe of errors closed", "standard output closed", "both closed"],
)
def test_nobody_listens(tmp_path, trained, video, line, said):
    arguments = f"--source {video} --model {trained} --csv seen.csv --save out.avi"
    assert shell(line, tmp_path, ARGUMENTS=arguments) == said
    if "none" not in line:
        assert len(read_rows(tmp_path / "seen.csv")) == 20
        with Source(tmp_path / "out.avi") as saved:
            assert len(list(saved)) == 20


@pytest.mark.faults
@pytest.mark.slow
def test_head_gets_its_line(tmp_path, trained, video):
    for name in ("a", "b", "c"):
        shutil.copy(video, tmp_path / f"{name}.avi")
    line = f"PYTHONUNBUFFERED=1 $DETECT --source '*.avi' --model {trained} --csv seen.csv | head -1"
    status, said, error = shell(line, tmp_path)
    assert said.startswith("a.avi: 20 frames") and said.count("\n") == 1 and error == ""


@pytest.mark.faults
def test_standard_output_on_a_full_disk(tmp_path, trained, video):
    result = shell(f"$DETECT --source {video} --model {trained} --csv seen.csv > /dev/full", tmp_path)
    assert one_line(result, "No space left on device") and len(read_rows(tmp_path / "seen.csv")) == 20


@pytest.mark.faults
def test_a_terminal_without_the_letters_of_a_name(tmp_path, trained, video):
    shutil.copy(video, tmp_path / "Käthe 图.avi")
    line = f"$DETECT --source 'Käthe 图.avi' --model {trained} --csv seen.csv"
    status, said, error = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert (status, error) == (0, "") and said.startswith(r"K\xe4the \u56fe.avi: 20 frames")


@pytest.mark.faults
@pytest.mark.slow
def test_nobody_reads_what_training_prints(tmp_path, data_folder):
    line = f"set -o pipefail; $TRAIN --data {data_folder} --model model.h5 --batch-size 16 --epochs 40 | head -1"
    status, said, error = shell(line, tmp_path)
    assert (said.count("\n"), error) == (1, "")
    assert status in (1, 141)  # 1 where it is Rich, by which Keras prints its table, that notices


@pytest.mark.faults
@pytest.mark.slow
def test_training_at_a_terminal_that_is_closed_from_the_start(tmp_path, data_folder):
    line = f"$TRAIN --data {data_folder} --model model.h5 --batch-size 16 --epochs 1 >&- 2>&-"
    assert shell(line, tmp_path) == (0, "", "") and (tmp_path / "model.h5").exists()


@pytest.mark.faults
@pytest.mark.slow
def test_training_at_a_terminal_without_the_letters_of_a_class(tmp_path):
    write_data(tmp_path / "data", {"train": 2, "validation": 1}, labels=("froh", "m\u00fcde"))
    line = "LC_ALL=C $TRAIN --data data --model model.h5 --batch-size 16 --epochs 1"
    status, said, error = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert status == 0 and "m\\xfcde" in said, error


@contextlib.contextmanager
def terminal():
    """A terminal of its own for a program: its file, and a function that closes it as a window of it does."""
    pytest.importorskip("termios")  # not on Windows
    ours, its = os.openpty()
    yield its, lambda: os.close(ours)
    os.close(its)


def begin(its, words):
    """Start a command at a terminal, and let nobody read what it prints there."""
    import fcntl
    import termios

    def at_terminal():
        heed_ctrl_c()
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    return subprocess.Popen(words, stdin=its, stdout=its, stderr=its, preexec_fn=at_terminal, env=ENVIRONMENT)


def close(process, close_terminal):
    """Close the terminal; the shell that a program was started from sends it SIGHUP as well."""
    close_terminal()
    for seconds in (0.002, 0.02, 0.2):
        time.sleep(seconds)
        process.send_signal(signal.SIGHUP)
    return process.wait(200)


@pytest.mark.faults
def test_what_is_printed_at_a_closed_terminal_goes_nowhere(monkeypatch):
    with terminal() as (its, close_terminal):
        streams = {name: open(os.dup(its), "w") for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)

        def work(_):
            print("before")
            close_terminal()
            for stream in (sys.stdout, sys.stderr):
                print("after", file=stream, flush=True)
            os.write(sys.stdout.fileno(), b"a library")
            raise UserError("something else")

        assert cli.run("a.py", work) == 2


@pytest.mark.faults
@pytest.mark.slow
def test_a_terminal_that_is_closed_while_a_video_is_labelled(tmp_path, trained, frame):
    video = write_video(tmp_path / "long.avi", [frame] * 2000)
    table, timeline, saved = tmp_path / "seen.csv", tmp_path / "timeline.png", tmp_path / "saved.avi"
    results = "--csv", table, "--summary", timeline, "--save", saved
    with terminal() as (its, close_terminal):
        process = begin(its, command("realtime_detect.py", "--source", video, "--model", trained, *results))
        wait_for(lambda: table.exists() and table.stat().st_size > 5000, [process])
        assert close(process, close_terminal) == 0
    seen = len(read_rows(table))
    assert 20 < seen < 2000 and cv2.imread(str(timeline)) is not None
    with Source(saved) as frames:
        assert abs(len(list(frames)) - seen) <= 1


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("is_hung_up", [True, False], ids=["SIGHUP", "no signal"])
def test_a_terminal_that_is_closed_while_training(tmp_path, data_folder, is_hung_up):
    """A program that was disowned gets no signal, and goes on to its end."""
    model, epochs = tmp_path / "model.h5", 5000 if is_hung_up else 8
    words = command(SMALL_TRAIN, "--data", data_folder, "--model", model, "--batch-size", 16, "--epochs", epochs)
    with terminal() as (its, close_terminal):
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), its)
        process = begin(its, words) if is_hung_up else subprocess.Popen(words, **streams, env=ENVIRONMENT)
        wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
        if is_hung_up:
            assert close(process, close_terminal) == 0
        else:
            close_terminal()
            assert process.wait(200) == 0
    rows = read_rows(tmp_path / "model" / "history.csv")
    assert read_metadata(model) and (tmp_path / "model" / "README.md").exists()
    assert len(rows) < 5000 if is_hung_up else len(rows) == 8


@pytest.mark.faults
@pytest.mark.parametrize("stream", [io.StringIO(), SimpleNamespace(write=len, flush=lambda: None)])
@pytest.mark.parametrize("error, status", [(None, 0), (BrokenPipeError, 141)])
def test_output_to_something_that_is_no_file_in_a_thread(monkeypatch, stream, error, status):
    """As in notebooks, IDLE and Spyder: streams without `reconfigure` and `fileno`, threads without signals."""

    def work(arguments):
        if error:
            raise error

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(cli.run("test", work)))
    thread.start()
    thread.join()
    assert statuses == [status]


@pytest.mark.faults
@pytest.mark.parametrize("script", ["train.py", "realtime_detect.py"])
def test_without_the_packages_a_script_says_so_in_one_line(script):
    words = [sys.executable, "-S", str(ROOT / script)]  # -S: as if the environment weren't activated
    result = subprocess.run(words, capture_output=True, text=True)
    assert one_line((result.returncode, "", result.stderr), f"{script}: No module named", "pip install -r")


@pytest.mark.faults
@pytest.mark.parametrize("script, module", [("train.py", "keras"), ("realtime_detect.py", "cv2")])
@pytest.mark.parametrize(
    "line, status, said",
    [
        (f"import os; os.kill(os.getpid(), {signal.SIGINT:d})", 130, ""),
        ("raise ImportError('libGL.so.1: cannot open')", 2, "{}: libGL.so.1: cannot open; README.md names"),
        ("raise SystemError", 1, "Traceback"),
    ],
    ids=["Ctrl-C", "library of the system", "anything else"],
)
def test_a_script_ends_well_while_it_loads_its_packages(tmp_path, script, module, line, status, said):
    (tmp_path / f"{module}.py").write_text(line)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    streams = {"capture_output": True, "text": True, "preexec_fn": heed_ctrl_c if os.name == "posix" else None}
    result = subprocess.run(command(script), **streams, env=environment)
    assert result.returncode == status and result.stderr.startswith(said.format(script)), result.stderr
    assert result.stderr.count("\n") == (status == 2) or status == 1


def test_a_program_that_imports_a_script_gets_exceptions(monkeypatch):
    hook = sys.excepthook
    cli.begin("realtime_detect")
    assert sys.excepthook is hook


@pytest.mark.faults
def test_a_package_that_only_some_runs_need_is_missing(capsys):
    def work(arguments):
        import package_that_nobody_has  # noqa: F401

    assert cli.run("test", work) == 2
    said = capsys.readouterr().err
    assert "No module named 'package_that_nobody_has'; activate" in said and said.count("\n") == 1
