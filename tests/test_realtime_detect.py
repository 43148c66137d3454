"""realtime_detect.py as a user runs it: images, videos, a real window, and what it says when it can't go on."""

import contextlib
import ctypes
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import cv2
import numpy as np
import pytest
from conftest import (
    ENVIRONMENT,
    ROOT,
    command,
    heed_ctrl_c,
    needs_xvfb,
    one_line,
    read_rows,
    run,
    slow_but,
    wait_for,
    write_video,
    x_server,
)
from model_files import write_metadata

import realtime_detect
from expressions import EMOTIONS
from expressions.inference.sources import Source


def test_an_image_comes_back_with_box_and_label(tmp_path, trained, photo, frame):
    result = run("realtime_detect.py", "--source", photo, "--model", trained, "--save", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    assert "1 frames, 1 faces" in result.stdout
    drawn = (cv2.imread(str(tmp_path / "out.png")) != frame).any(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert 60 < rows[0] < 200 and 300 < rows[-1] < 440 and 150 < columns[0] < 260 and 380 < columns[-1] < 480


@pytest.mark.parametrize("model, status", [(realtime_detect.MODEL, 0), ("none.h5", 2)])
def test_the_only_source_is_closed_once(tmp_path, photo, monkeypatch, model, status):
    closed = []
    monkeypatch.setattr(Source, "__exit__", lambda self, *_: closed.append(self.address))
    options = ["--source", str(photo), "--model", str(model), "--csv", str(tmp_path / "seen.csv"), "--no-window"]
    assert realtime_detect.main(options) == status and closed == [str(photo)]


def test_a_video_comes_back_frame_by_frame(detect, tmp_path, video):
    status, said, error = detect("--source", video, "--save", tmp_path / "out.mp4")
    assert status == 0, error
    with Source(tmp_path / "out.mp4") as source:
        assert source.fps == pytest.approx(10)
        frames = list(source)
    assert len(frames) == 20 and frames[0].image.shape == (480, 640, 3)
    assert "20 frames" in said


def test_a_video_s_results(detect, tmp_path, video):
    """The table has a row for each frame, of one track, which moves to the right; the rest agrees with it."""
    names = "out.webm", "seen.csv", "seen.jsonl", "timeline.png"
    saved, table, lines, timeline = (tmp_path / name for name in names)
    outputs = "--save", saved, "--csv", table, "--jsonl", lines, "--summary", timeline
    status, said, error = detect("--source", video, "--bars", *outputs)
    assert status == 0, error
    rows = read_rows(table)
    assert [int(row["frame"]) for row in rows] == list(range(20)) and {row["track"] for row in rows} == {"1"}
    assert [float(row["seconds"]) for row in rows] == pytest.approx(np.arange(20) / 10, abs=0.002)
    middles = [int(row["x"]) + int(row["width"]) / 2 for row in rows]
    assert middles[0] == pytest.approx(320, abs=15) and middles[-1] == pytest.approx(320 + 19 * 3, abs=15)
    likeliest = [max(EMOTIONS, key=lambda label: float(row[label])) for row in rows]
    assert all(row["label"] in (label, "uncertain") for row, label in zip(rows, likeliest, strict=True))
    assert [json.loads(line)["label"] for line in lines.read_text().splitlines()] == [row["label"] for row in rows]
    assert "track 1, 1.9 s: " in said and cv2.imread(str(timeline)) is not None
    with Source(saved) as source:
        assert len(list(source)) == 20


@pytest.mark.faults
def test_a_folder_comes_back_as_a_folder_without_what_is_broken(detect, tmp_path, photo, video):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(photo, folder / "2.png")
    shutil.copy(video, folder / "10.avi")
    (folder / "3.png").write_text("no picture")
    arguments = "--source", folder, "--save", tmp_path / "out", "--csv", tmp_path / "seen.csv"
    status, _, error = detect(*arguments)
    assert status == 2 and "3.png: not a video or image" in error and "1 of 3" in error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["10.avi", "2.png"]
    rows = read_rows(tmp_path / "seen.csv")
    assert len(rows) == 21 and rows[0]["source"].endswith("2.png") and rows[-1]["source"].endswith("10.avi")
    status, _, error = detect(*arguments)  # nothing is written over unless asked
    assert status == 2 and "exists already" in error and read_rows(tmp_path / "seen.csv") == rows
    assert "3.png" in detect(*arguments, "--overwrite")[2]


@pytest.mark.faults
def test_without_litert_it_says_what_to_install(tmp_path, trained, photo, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)  # as if it were not installed
    arguments = ["--source", str(photo), "--model", str(trained), "--jsonl", str(tmp_path / "seen.jsonl")]
    assert realtime_detect.main(arguments) == 2
    said = capsys.readouterr().err
    assert "pip install ai-edge-litert" in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_run_leaves_whole_rows(tmp_path, trained, frame):
    """A video so long that it is killed in the middle."""
    path, table = write_video(tmp_path / "long.avi", [frame] * 3000), tmp_path / "seen.csv"
    arguments = "--source", path, "--model", trained, "--csv", table, "--no-window"
    process = subprocess.Popen(command("realtime_detect.py", *arguments), cwd="/")
    try:
        wait_for(lambda: table.exists() and len(read_rows(table)) > 50, [process])
    finally:
        process.kill()
        process.wait()
    rows = read_rows(table)
    assert [int(row["frame"]) for row in rows] == list(range(len(rows))) and all(row["surprise"] for row in rows)


def test_the_lines_of_python_in_the_readme_print_what_it_says():
    readme = (ROOT / "README.md").read_text()
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line.strip()]) == 4
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.stdout == output, result.stderr


def test_starts_without_tensorflow_once_the_model_is_compiled(tmp_path, trained, photo):
    """TensorFlow takes seconds; here it is replaced by something that fails."""
    first = run("realtime_detect.py", "--source", photo, "--model", trained, "--save", tmp_path / "first.png")
    assert first.returncode == 0, first.stderr
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemError('not to be imported')")
    result = subprocess.run(
        command("realtime_detect.py", "--source", photo, "--model", trained, "--save", tmp_path / "second.png"),
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd="/", timeout=120,
    )  # fmt: skip
    assert result.returncode == 0 and "Compiling" not in result.stdout and not result.stderr, result.stderr
    np.testing.assert_array_equal(*(cv2.imread(str(tmp_path / f"{name}.png")) for name in ("first", "second")))


@pytest.fixture
def webcam_only(tmp_path):
    """Run realtime_detect.py without what only requirements.txt has, in this process and its children."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [re.match("[a-z]+", line.removeprefix("pytest-"))[0] for line in lines if line[0].isalpha()]
    assert {"tensorflow", "keras", "pandas", "matplotlib", "seaborn", "pytest", "xdist"} <= set(names)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({names})")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments):
        words = command("realtime_detect.py", *arguments)
        result = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
        return result.returncode, result.stdout, result.stderr

    return run


def test_what_may_take_long_is_announced(detect, tmp_path, video):
    assert detect("--source", 96, "--save", tmp_path / "a.avi")[1] == "Opening camera 96 ...\n"
    assert f"Drawing {tmp_path / 'a.png'} ...\n" in detect("--source", video, "--summary", tmp_path / "a.png")[1]


@pytest.mark.parametrize("many", slow_but([False, True], False))
def test_the_shipped_model_needs_no_tensorflow(webcam_only, tmp_path, many):
    options = ["--workers", 2, "--csv", "results"] if many else ["--csv", "a.csv", "--save", "a.jpg", "--no-window"]
    status, said, error = webcam_only("--source", ROOT / "docs" / "portraits.jpg", *options)
    assert status == 0 and "Compiling" not in said and "2 faces" in said and (many or not error), error
    table = tmp_path / "results" / "portraits.jpg.csv" if many else tmp_path / "a.csv"
    assert [row["label"] for row in read_rows(table)] == ["happy", "neutral"] and not (tmp_path / "cache").exists()


@pytest.mark.faults
def test_what_needs_more_than_the_webcam_does_says_so(webcam_only, video, sound):
    advice = "--summary: Matplotlib, which draws it, is not installed; run: pip install matplotlib"
    assert one_line(webcam_only("--source", video, "--summary", "a.png"), advice)
    missing = "TensorFlow, which compiles models, is missing: pip install -r requirements.txt"
    assert one_line(webcam_only("--source", video, "--model", sound, "--csv", "a.csv"), str(sound), missing)


def test_an_installed_package_has_all_that_it_needs(tmp_path):
    """As `pip install .` lays it out, by the table in pyproject.toml."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name, place in ({name: name for name in wheel["only-include"]} | wheel["force-include"]).items():
        target = tmp_path / "site" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    code = "import sys, realtime_detect; sys.exit(realtime_detect.main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "--source", ROOT / "docs" / "portraits.jpg", "--csv", "a.csv"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert result.returncode == 0 and not result.stderr and len(read_rows(tmp_path / "a.csv")) == 2, result.stderr
    assert not (tmp_path / "cache").exists()


def failing(case, tmp_path, trained, photo):
    """Arguments that can't work, and the words that say so."""
    broken = shutil.copy(trained, tmp_path / "broken.h5")
    if case == "unfit":
        write_metadata(broken, {"labels": ["one", "two"], "scaling": "unit"})
    for name, text in (("empty.xml", ""), ("old.png", ""), ("old.csv", "old")):
        (tmp_path / name).write_text(text)
    save = ["--save", str(tmp_path / "out.png")]
    return {
        "camera": (["--source", "96", "--save", str(tmp_path / "out.avi")], "camera 96"),
        # what is missing is told before the model is loaded, which may take a while
        "camera first": (["--source", "96", *save, "--model", str(tmp_path / "none.h5")], "camera 96"),
        "screen first": (["--source", str(photo), "--model", str(tmp_path / "none.h5")], "no screen"),
        "source": (["--source", str(tmp_path / "none.mp4"), *save], "no such video"),
        "model": (["--source", str(photo), "--model", str(tmp_path / "none.h5"), *save], "no such model"),
        "unfit": (["--source", str(photo), "--model", str(broken), *save], "gives output of the shape"),
        "cascade": (["--source", str(photo), "--detector", str(tmp_path / "none.xml"), *save], "no such cascade"),
        "empty cascade": (["--source", str(photo), "--detector", str(tmp_path / "empty.xml"), *save], "not a Haar"),
        "ending": (["--source", str(photo), "--save", str(tmp_path / "out.txt")], "an image is written as"),
        "exists": (["--source", str(photo), "--save", str(tmp_path / "old.png")], "exists already"),
        "screen": (["--source", str(photo)], "no screen"),
        "nothing": (["--source", str(photo), "--no-window"], "goes with --save"),
        "detector": (["--source", str(photo), "--detector", "dlib", *save], "give haar, yunet, or a file"),
        "size": (["--source", "0", "--size", "big", *save], "not a size"),
        "size of a picture": (["--source", str(photo), "--size", "5x5", *save], "goes with a camera"),
        "bars": (["--source", str(photo), "--bars", "--csv", str(tmp_path / "x.csv")], "goes with a window"),
        "pictures' timeline": (
            ["--source", str(photo), "--summary", str(tmp_path / "x.png"), "--no-window"],
            "needs a video or camera",
        ),
        "table": (["--source", str(photo), "--csv", str(tmp_path / "old.csv"), "--no-window"], "exists already"),
        "timeline": (["--source", str(photo), "--summary", str(photo), "--no-window"], "exists already"),
        "table's ending": (["--source", str(photo), "--csv", str(tmp_path / "seen.txt")], "has to end in .csv"),
        "timeline's ending": (["--source", str(photo), "--summary", str(tmp_path / "x.txt")], "has to end in .png"),
        "folder": (["--source", str(photo), "--summary", str(tmp_path / "no" / "x.png")], "there is no folder"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "camera",
        "camera first",
        "screen first",
        "source",
        "model",
        pytest.param("unfit", marks=pytest.mark.slow),
        "cascade",
        "empty cascade",
        "ending",
        "exists",
        "screen",
        "nothing",
        "detector",
        "size",
        "size of a picture",
        "bars",
        "pictures' timeline",
        "table",
        "timeline",
        "table's ending",
        "timeline's ending",
        "folder",
    ],
)
@pytest.mark.faults
def test_what_a_user_can_get_wrong_is_one_line(case, tmp_path, trained, photo, frame, capfd, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    arguments, words = failing(case, tmp_path, trained, photo)
    if "--model" not in arguments:
        arguments += ["--model", str(trained)]
    status, error = realtime_detect.main(arguments), capfd.readouterr().err
    assert status == 2 and error.count("\n") == 1 and words in error, error
    np.testing.assert_array_equal(cv2.imread(str(photo)), frame)  # nothing was written over


@pytest.fixture(scope="module")
def screen():
    with x_server() as (_, display):
        yield display


def xdotool(screen, *arguments):
    return subprocess.run(
        ["xdotool", *arguments], env=os.environ | {"DISPLAY": screen}, capture_output=True, text=True, timeout=120
    )


def ask_to_close(screen, window):
    """What a window manager does when the X of a window is clicked: send it WM_DELETE_WINDOW (ICCCM 4.2.8.1)."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    display = ctypes.c_void_p(x11.XOpenDisplay(screen.encode()))
    protocols, delete = (x11.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))

    class ClientMessage(ctypes.Structure):
        _fields_ = [
            ("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int),
            ("display", ctypes.c_void_p), ("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong),
            ("format", ctypes.c_int), ("data", ctypes.c_long * 5), ("rest", ctypes.c_byte * 128),
        ]  # fmt: skip

    message = ClientMessage(33, 0, 1, display, window, protocols, 32, (delete, 0, 0, 0, 0))
    x11.XSendEvent(display, ctypes.c_ulong(window), 0, 0, ctypes.byref(message))
    x11.XCloseDisplay(display)


@needs_xvfb
@pytest.mark.slow
def test_the_keys_of_a_real_window(screen, trained, video, tmp_path):
    """Pause, bars, mirror, the line of keys hidden; each image saved differs as it should from the one before."""
    process = subprocess.Popen(
        command("realtime_detect.py", "--source", video, "--model", trained),
        env=os.environ | {"DISPLAY": screen}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        window = xdotool(screen, "search", "--sync", "--onlyvisible", "--name", "Expressions").stdout.split()[0]
        xdotool(screen, "windowfocus", window)
        saved = []
        for keys in ("p", "b", "m", "h"):
            xdotool(screen, "key", "--window", window, keys)
            time.sleep(1.2)  # names of images tell seconds apart
            xdotool(screen, "key", "--window", window, "s")
            count = len(saved) + 1
            wait_for(lambda count=count: len(list(tmp_path.glob("expressions-*.png"))) == count, [process])
            saved = sorted(tmp_path.glob("expressions-*.png"))
        xdotool(screen, "key", "--window", window, "q")
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "frames" in output, output
    paused, bars, mirrored, hidden = (cv2.imread(str(path)) for path in saved)
    assert (paused != bars).mean() > 0.005
    np.testing.assert_array_equal(hidden, mirrored)  # a saved image never has the line of keys
    plain, turned = cv2.imread(str(saved[0])), mirrored[:, ::-1]  # without bars; and with them, turned back
    assert np.isclose(plain, turned, atol=3).mean() > 0.95 > np.isclose(plain, mirrored, atol=3).mean()


@needs_xvfb
@pytest.mark.parametrize("way", slow_but(["q", "Escape", "close", "Ctrl-C"], "q"))
@pytest.mark.faults
def test_a_real_window_closes_on_a_real_key_or_its_x(screen, trained, photo, way):
    environment = os.environ | {"DISPLAY": screen}
    process = subprocess.Popen(
        command("realtime_detect.py", "--source", photo, "--model", trained),
        env=environment, cwd="/", preexec_fn=heed_ctrl_c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    found = xdotool(screen, "search", "--sync", "--onlyvisible", "--name", "Expressions")
    window = found.stdout.split()[0]
    time.sleep(1)
    assert process.poll() is None  # it waits for the user
    if way == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    elif way == "close":
        ask_to_close(screen, int(window))
    else:
        xdotool(screen, "windowfocus", window)
        xdotool(screen, "key", "--window", window, way)
    try:
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "1 frames, 1 faces" in output, output


ODD_NAMES = {
    "line end": b"two\nlines", "command to the terminal": b"\x1b[31mred\x1b]0;title\x07", "no UTF-8": b"caf\xe9",
    "dollars": b"a$b$ c$^{$", "quotes and commas": b'",;\'=1+1"', "other letters": "图 ‮".encode(),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory, trained, video, frame):
    """A run over a video and an image of each odd name, at a terminal; everything is written. Returns the folder, and
    what the terminal got."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "in").mkdir()
    cv2.imwrite(str(folder / "me.png"), frame)
    for name in ODD_NAMES.values():
        shutil.copy(video, os.fsencode(folder / "in") + b"/" + name + b".avi")
        shutil.copy(folder / "me.png", os.fsencode(folder / "in") + b"/" + name + b".png")
    terminal, end = pty.openpty()
    words = command(
        "realtime_detect.py", "--source", "in", "--model", trained, "--save", "out", "--csv", "seen.csv",
        "--jsonl", "seen.jsonl", "--summary", "timeline.png",
    )  # fmt: skip
    process = subprocess.Popen(words, stdin=end, stdout=end, stderr=end, cwd=folder, env=ENVIRONMENT)
    os.close(end)
    said = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other side has closed
        while part := os.read(terminal, 2**16):
            said += part
    os.close(terminal)
    assert process.wait() == 0, said
    return folder, said


@pytest.mark.faults
@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_an_odd_name(odd, name):
    folder, said = odd
    for suffix in (b".avi", b".png"):
        assert os.path.getsize(os.fsencode(folder / "out") + b"/" + name + suffix) > 1000
    written = f"in/{os.fsdecode(name).encode(errors='backslashreplace').decode()}"
    assert [row["source"] for row in read_rows(folder / "seen.csv")].count(f"{written}.avi") == 20
    lines = [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines].count(f"{written}.png") == 1 and len(lines) == 21 * len(ODD_NAMES)
    assert b"\x1b[31m" not in said and b"title\x07" not in said and b"two\r\n" not in said and b"two\\nlines" in said
    assert cv2.imread(str(folder / "timeline.png")) is not None


@pytest.fixture(scope="module")
def long_video(tmp_path_factory, frame):
    return write_video(tmp_path_factory.mktemp("long") / "long.avi", [frame] * 2000)


def start(folder, video, trained, *options, **environment):
    words = command("realtime_detect.py", "--source", video, "--model", trained, "--csv", "seen.csv", *options)
    process = subprocess.Popen(
        words, cwd=folder, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    table = folder / "seen.csv"
    wait_for(lambda: table.exists() and table.read_bytes().count(b"\n") >= 40, [process])
    return process


@pytest.mark.faults
@pytest.mark.parametrize(
    "end, suffix",
    [
        pytest.param(signal.SIGTERM, ".mp4", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ".webm", marks=pytest.mark.slow),
        (signal.SIGTERM, ".avi"),
        pytest.param(signal.SIGHUP, ".mp4", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_is_ended_ends_well(tmp_path, trained, long_video, end, suffix):
    process = start(tmp_path, long_video, trained, "--save", f"out{suffix}", "--summary", "timeline.png")
    process.send_signal(end)
    said, error = process.communicate(timeout=100)
    seen = read_rows(tmp_path / "seen.csv")
    assert [int(row["frame"]) for row in seen] == list(range(len(seen))) and all(row["surprise"] for row in seen)
    assert (process.returncode, error) == (0, "") and "Stopped." in said and "track 1" in said
    with Source(tmp_path / f"out{suffix}") as saved:
        assert len(seen) - len(list(saved)) in (0, 1)  # a row comes before its frame is saved
    assert saved.missing_seconds == 0
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None


@pytest.mark.faults
@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Debian's package xvfb")
@pytest.mark.slow
def test_the_screen_goes_while_a_video_is_written(tmp_path, trained, long_video):
    """The X server is killed: Qt prints a line and ends the program at once. Tables are whole; what was saved of the
    video is in the partial file, which plays."""
    reader, writer = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writer)], pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    display = f":{os.read(reader, 10).decode().strip()}"
    process = start(tmp_path, long_video, trained, "--save", "out.mp4", "--jsonl", "seen.jsonl", DISPLAY=display)
    server.kill()
    server.wait()
    said, error = process.communicate(timeout=30)
    assert process.returncode == 1 and error.count("\n") == 1 and "X11" in error and "saved" not in said, error
    rows = read_rows(tmp_path / "seen.csv")
    assert [int(row["frame"]) for row in rows] == list(range(len(rows))) and len(rows) >= 39
    lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(lines))) and len(rows) - len(lines) in (0, 1)
    with Source(tmp_path / "out.partial.mp4") as saved:
        assert len(list(saved)) >= len(rows) - 15  # of ten a second; the last second may be lost
