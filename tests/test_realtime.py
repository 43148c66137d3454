"""realtime_detect.py as a user runs it: images, videos, a real window, and what it says when it can't go on."""

import ctypes
import os
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
from conftest import command, heed_ctrl_c, run

import realtime_detect
from expressions import EMOTIONS, overlay
from expressions.classifier import write_facts
from expressions.video import Source


@pytest.fixture
def picture(tmp_path, frame):
    cv2.imwrite(str(tmp_path / "me.png"), frame)
    return tmp_path / "me.png"


@pytest.fixture(scope="module")
def film(tmp_path_factory, frame):
    """Twenty frames in which the face moves to the right."""
    path = tmp_path_factory.mktemp("film") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (640, 480))
    for index in range(20):
        writer.write(np.roll(frame, index * 3, axis=1))
    writer.release()
    return path


def test_an_image_comes_back_with_box_and_label(tmp_path, trained, picture, frame):
    result = run("realtime_detect.py", "--source", picture, "--model", trained, "--save", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    assert "1 frames, 1 faces" in result.stdout
    drawn = (cv2.imread(str(tmp_path / "out.png")) != frame).any(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert 60 < rows[0] < 200 and 300 < rows[-1] < 440 and 150 < columns[0] < 260 and 380 < columns[-1] < 480


def test_a_video_comes_back_frame_by_frame(tmp_path, trained, film):
    result = run("realtime_detect.py", "--source", film, "--model", trained, "--save", tmp_path / "out.mp4")
    assert result.returncode == 0, result.stderr
    with Source(tmp_path / "out.mp4") as source:
        assert source.rate == pytest.approx(10)
        frames = list(source)
    assert len(frames) == 20 and frames[0].shape == (480, 640, 3)
    assert "20 frames" in result.stdout


def test_the_label_drawn_is_the_likeliest_one_of_the_face(tmp_path, trained, picture, frame, monkeypatch):
    """Whatever the network says of a face stands on it: here that all faces are disgusted."""
    drawn = []
    monkeypatch.setattr(overlay, "draw", lambda frame, faces, status: drawn.extend(faces) or frame)
    certain = np.eye(7, dtype=np.float32)[EMOTIONS.index("disgust")]
    monkeypatch.setattr(
        realtime_detect.Classifier,
        "probabilities",
        lambda self, faces, mirrored, votes: np.tile(certain, (len(faces), 1)),
    )
    arguments = ["--source", str(picture), "--model", str(trained), "--save", str(tmp_path / "x.png"), "--no-window"]
    assert realtime_detect.main(arguments) == 0
    assert [(face.label, face.confidence) for face in drawn] == [("disgust", 1.0)]


def failing(case, tmp_path, trained, picture):
    """Arguments that can't work, and the words that say so."""
    broken = shutil.copy(trained, tmp_path / "broken.h5")
    if case == "unfit":
        write_facts(broken, {"labels": ["one", "two"], "scaling": "unit"})
    (tmp_path / "empty.xml").touch()
    save = ["--save", str(tmp_path / "out.png")]
    return {
        "camera": (["--source", "96", "--save", str(tmp_path / "out.avi")], "camera 96"),
        "source": (["--source", str(tmp_path / "none.mp4"), *save], "no such video"),
        "model": (["--source", str(picture), "--model", str(tmp_path / "none.h5"), *save], "no such model"),
        "unfit": (["--source", str(picture), "--model", str(broken), *save], "gives output of the shape"),
        "cascade": (["--source", str(picture), "--cascade", str(tmp_path / "none.xml"), *save], "no such cascade"),
        "empty cascade": (["--source", str(picture), "--cascade", str(tmp_path / "empty.xml"), *save], "not a Haar"),
        "ending": (["--source", str(picture), "--save", str(tmp_path / "out.txt")], "an image is written as"),
        "exists": (["--source", str(picture), "--save", str(picture)], "exists already"),
        "screen": (["--source", str(picture)], "no screen"),
        "nothing": (["--source", str(picture), "--no-window"], "goes with --save"),
        "votes": (["--source", str(picture), "--votes", *save], "has not learned from votes"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "camera",
        "source",
        "model",
        "unfit",
        "cascade",
        "empty cascade",
        "ending",
        "exists",
        "screen",
        "nothing",
        "votes",
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(case, tmp_path, trained, picture, frame, capfd, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    arguments, words = failing(case, tmp_path, trained, picture)
    if "--model" not in arguments:
        arguments += ["--model", str(trained)]
    status, error = realtime_detect.main(arguments), capfd.readouterr().err
    assert status == 2 and error.count("\n") == 1 and words in error, error
    np.testing.assert_array_equal(cv2.imread(str(picture)), frame)  # nothing was written over


def test_opencv_5_without_the_cascade_class(trained, picture, capfd, monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    assert realtime_detect.main(["--source", str(picture), "--model", str(trained)]) == 2
    assert "opencv-python<5" in capfd.readouterr().err


needs_xvfb = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Debian's packages xvfb and xdotool"
)


@pytest.fixture(scope="module")
def screen():
    """A screen of its own, on a number that Xvfb finds free."""
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x800x24"], pass_fds=[writer], stderr=subprocess.DEVNULL
    )
    os.close(writer)
    yield f":{os.read(reader, 10).decode().strip()}"
    server.terminate()
    server.wait()


def xdotool(screen, *arguments):
    return subprocess.run(
        ["xdotool", *arguments], env=os.environ | {"DISPLAY": screen}, capture_output=True, text=True, timeout=60
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
@pytest.mark.parametrize("way", ["q", "Escape", "close", "Ctrl-C"])
def test_a_real_window_closes_on_a_real_key_or_its_x(screen, trained, picture, way):
    environment = os.environ | {"DISPLAY": screen}
    process = subprocess.Popen(
        command("realtime_detect.py", "--source", picture, "--model", trained),
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
        output = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "1 frames, 1 faces" in output, output
