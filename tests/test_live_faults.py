"""What goes wrong before the live program's camera, on its disk and at its terminal; each fault made for real."""

import contextlib
import errno
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
from conftest import ROOT, WITHOUT_PRIVILEGES, command, heed_ctrl_c, read_rows, wait_for, write_video
from test_live_sources import Camera

import realtime_detect
from expressions import EMOTIONS, UserError
from expressions.inference import sources
from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source
from expressions.inference.summary import Summary
from expressions.inference.tables import Table
from expressions.inference.viewer import Viewer
from expressions.training import synthetic
from expressions.window import Window

pytestmark = pytest.mark.faults
needs_root = pytest.mark.skipif(not WITHOUT_PRIVILEGES or os.geteuid() != 0, reason="needs root, and Debian's setpriv")
# without a screen, and without what the project's modules have set in this process
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not re.match("DISPLAY|WAYLAND_DISPLAY|OPENCV_|TF_", key)
}
VIDEO_SUFFIXES = [".mp4", ".webm", ".avi"]


@pytest.fixture(autouse=True)
def in_time():
    """What hangs is a failure."""

    def out_of_time(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def detect(trained, monkeypatch, capfd):
    """Run the program in this process, without a screen. Returns its status, standard output and standard error."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        capfd.readouterr()
        status = realtime_detect.main(["--model", str(trained), *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def video(tmp_path_factory, frame):
    return write_video(tmp_path_factory.mktemp("video") / "video.avi", [frame] * 20)


def one_line(result, *words):
    """Whether a run ended with status 2 and one line on standard error that holds these words."""
    status, _, error = result
    assert status == 2 and error.count("\n") == 1 and "Traceback" not in error, result
    assert all(word in error for word in words), error
    return True


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A small PNG of one bit a pixel that unpacks to width x height."""
    packed, press = b"", zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(press.compress(row) for _ in range(height)) + press.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def gif(width, height):
    """A video of one frame, in 30 bytes, whose header says that it is so large."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def jpeg_of(width, height):
    """A JPEG whose header says that it is so large, and not more than that."""
    data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def make(path, what):
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "a link to nowhere":
        path.symlink_to(path.parent / "nowhere")
    elif what == "an endless device":
        path.symlink_to("/dev/zero")
    elif what == "more than 512 MB":
        path.touch()
        os.truncate(path, 2**29 + 2)  # which takes no room on the disk
    else:
        path.write_bytes(what)
    return path


@pytest.mark.parametrize(
    "name, what, words",
    [
        ("me.png", "a pipe", "no such video or image"),
        ("video.mp4", "a pipe", "no such video or image"),
        ("me.png", "a folder", "no image or video there"),
        ("video.mp4", "a folder", "no image or video there"),
        ("me.jpg", "a link to nowhere", "no such video or image"),
        ("me.png", "an endless device", "no such video or image"),
        ("video.avi", "an endless device", "no such video or image"),
        ("me.png", "more than 512 MB", "or too large a one"),
        ("me.png", bomb(16000, 16000), "or too large a one"),
        ("me.jpg", jpeg_of(65500, 65500), "or too large a one"),
        ("video.gif", gif(16000, 16000), "or too large a one"),
        ("video.gif", gif(65535, 65535), "or too large a one"),
        ("video.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp41\0\0\xff\xffmdat" + bytes(9000), "not a video"),
        ("video.avi", np.random.default_rng(0).bytes(10**6), "not a video"),
        ("me.webp", np.random.default_rng(0).bytes(10**6), "not an image"),
    ],
    ids=[
        "pipe as picture", "pipe as video", "folder as picture", "folder as video", "dangling link", "endless picture",
        "endless video", "picture file too large", "zip bomb", "JPEG that claims 4 gigapixels", "video of huge frames",
        "video that claims 4 gigapixels", "video without its index", "noise as video", "noise as picture",
    ],
)  # fmt: skip
def test_a_source_that_is_none(detect, tmp_path, name, what, words):
    source = make(tmp_path / name, what)
    result = detect("--source", source, "--csv", tmp_path / "seen.csv", "--summary", tmp_path / "timeline.png")
    assert one_line(result, words, str(source)) and os.listdir(tmp_path) == [name]


def test_an_image_of_huge_size_is_not_unpacked_by_the_program_itself(tmp_path, trained):
    """OpenCV hears of its bound when it is imported, so the program has to set it before."""
    make(tmp_path / "me.png", bomb(16000, 16000))
    words = command("realtime_detect.py", "--model", trained, "--source", "me.png", "--csv", "seen.csv")
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == 2 and "or too large a one" in result.stderr and os.listdir(tmp_path) == ["me.png"]


def test_a_video_of_huge_frames_is_not_unpacked(tmp_path):
    """16,000 x 16,000 pixels, which took 2.5 GB."""
    (tmp_path / "video.gif").write_bytes(gif(16000, 16000))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom expressions.inference.sources import Source\n"
        f"try: Source({str(tmp_path / 'video.gif')!r})\nfinally: print(open('/proc/self/status').read())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "too large" in result.stderr and int(re.search(r"VmHWM:\s*(\d+) kB", result.stdout)[1]) < 300_000


@needs_root
def test_what_may_not_be_read_is_skipped_named_and_counted(tmp_path, trained, photo, video):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(photo, folder / name)
    shutil.copy(video, folder / "3.avi")
    for name in ("1.png", "3.avi"):
        (folder / name).chmod(0)
    words = command("realtime_detect.py", "--source", folder, "--model", trained, "--csv", tmp_path / "seen.csv")
    result = subprocess.run([*WITHOUT_PRIVILEGES, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 2 and [line.rsplit("/", 1)[-1] for line in result.stderr.splitlines()] == [
        "1.png: can't be read (Permission denied)",
        "3.avi: can't be read (Permission denied)",
        "in: 2 of 3 sources could not be done",
    ]
    assert [row["source"] for row in read_rows(tmp_path / "seen.csv")] == [str(folder / "2.png")]


FRAMES = {
    "black": np.zeros((480, 640, 3), np.uint8),
    "white": np.full((480, 640, 3), 255, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8),
    "a pixel": np.full((1, 1, 3), 100, np.uint8),
    "a row": np.full((1, 500, 3), 100, np.uint8),
    "a column": np.full((500, 1, 3), 100, np.uint8),
    "8K": np.full((4320, 7680, 3), 100, np.uint8),
}
KINDS = [kind for kind in FRAMES if kind != "8K"]


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("8K", marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".png", ".avi"])
def test_frames_without_a_face(detect, tmp_path, kind, suffix):
    """They come back as they are, and the table has no row; nothing is said."""
    source, saved, image = tmp_path / f"source{suffix}", tmp_path / f"saved{suffix}", FRAMES[kind]
    if suffix == ".png":
        cv2.imwrite(str(source), image)
    else:
        write_video(source, [image] * 2)
    status, _, error = detect("--source", source, "--save", saved, "--csv", tmp_path / "seen.csv", "--bars")
    assert status == 0 and error == "" and read_rows(tmp_path / "seen.csv") == []
    with Source(saved) as source:
        assert [frame.image.shape for frame in source] == [image.shape] * (1 if suffix == ".png" else 2)


@pytest.mark.parametrize(
    "kind, suffix", [("a pixel", ".mp4"), ("a row", ".webm"), pytest.param("8K", ".mp4", marks=pytest.mark.slow)]
)
def test_a_video_of_a_size_that_a_codec_may_not_have(detect, tmp_path, kind, suffix):
    source, saved = write_video(tmp_path / "source.avi", [FRAMES[kind]] * 2), tmp_path / f"saved{suffix}"
    result = detect("--source", source, "--save", saved)
    if kind == "8K":
        assert result[0] == 0 and saved.exists()
    else:
        assert one_line(result, f"--save {saved}", "can't write a video of", "try .avi")
        assert os.listdir(tmp_path) == ["source.avi"]


def test_two_hundred_faces(detect, tmp_path):
    random, image = np.random.default_rng(0), np.full((1280, 1600, 3), 128, np.uint8)
    for index in range(200):
        top, left = 8 + 125 * (index // 20), 5 + 79 * (index % 20)
        image[top : top + 72, left : left + 72] = synthetic.draw_face(EMOTIONS[index % 7], random, 72)[..., None]
    large = cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)  # as the detector sees it
    cv2.imwrite(str(tmp_path / "crowd.png"), image)
    table = tmp_path / "seen.csv"
    status, said, _ = detect(
        "--source", tmp_path / "crowd.png", "--save", tmp_path / "out.png", "--csv", table, "--bars"
    )
    assert status == 0 and large.shape[1] == 640 and f"{len(read_rows(table))} faces in pictures" in said
    assert len(read_rows(table)) > 20 and cv2.imread(str(tmp_path / "out.png")).shape == image.shape


@pytest.mark.parametrize("left, top", [(-60, 120), (460, 120), (200, -50), (200, 300), (-60, -50)])
def test_a_face_that_the_border_cuts(detect, tmp_path, frame, left, top):
    """Whatever is found of it, its box and bars are drawn, in an image and in a video."""
    face, image = frame[120:360, 200:440], np.full((480, 640, 3), 128, np.uint8)
    part = image[max(0, top) : top + 240, max(0, left) : left + 240]
    part[:] = face[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    cv2.imwrite(str(tmp_path / "me.png"), image)
    write_video(tmp_path / "me.avi", [image] * 12)
    status, _, error = detect("--source", tmp_path / "me.*", "--save", tmp_path / "out", "--bars")
    assert (status, error) == (0, "") and sorted(os.listdir(tmp_path / "out")) == ["me.avi", "me.png"]


@pytest.mark.parametrize("numerator, denominator", [(0, 1), (0, 0), (90000, 1), (2**31 - 1, 1), (1, 10**6)])
def test_a_video_that_says_an_absurd_rate(detect, tmp_path, frame, numerator, denominator):
    """0, no number, a clock's ticks, more, hardly any: each frame comes, at a usual rate."""
    path, table = write_video(tmp_path / "video.avi", [frame] * 12), tmp_path / "seen.csv"
    data = bytearray(path.read_bytes())
    for start in (match.start() for match in re.finditer(b"strh", bytes(data))):
        data[start + 28 : start + 36] = struct.pack("<II", denominator, numerator)  # dwScale and dwRate
    path.write_bytes(data)
    status, _, error = detect("--source", path, "--csv", table, "--save", tmp_path / "out.mp4")
    assert (status, error) == (0, "")
    assert [row["frame"] for row in read_rows(table)] == [str(number) for number in range(12)]
    seconds = [float(row["seconds"]) for row in read_rows(table)]
    assert seconds == sorted(seconds) and seconds[-1] < 2
    with Source(tmp_path / "out.mp4") as video:
        assert len(list(video)) == 12


def test_a_video_that_tells_no_length(detect, tmp_path, frame):
    """Images in a row, as a camera's raw MJPEG comes."""
    (tmp_path / "video.avi").write_bytes(cv2.imencode(".jpg", frame)[1].tobytes() * 12)
    status, said, _ = detect("--source", tmp_path / "video.avi", "--csv", tmp_path / "seen.csv")
    assert status == 0 and "12 frames" in said and "missing" not in said and len(read_rows(tmp_path / "seen.csv")) == 12


def test_a_model_of_nan(detect, tmp_path, trained, photo):
    broken = shutil.copy(trained, tmp_path / "broken.h5")
    with h5py.File(broken, "r+") as file:

        def spoil(_, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                item[...] = np.nan

        file.visititems(spoil)
    old = tmp_path / "seen.csv"
    old.write_text("precious")
    result = detect("--model", broken, "--source", photo, "--csv", old, "--save", tmp_path / "o.png", "--overwrite")
    assert result[0] == 2 and result[2].count("\n") == 1 and "Nan" in result[2].title(), result
    assert old.read_text() == "precious" and not (tmp_path / "o.png").exists()


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


def test_the_title_of_a_window_is_printable():
    assert Window("a\nb\udce9\x1b").title == "a\\nb\\udce9\\x1b"


def test_names_of_results_that_are_no_utf_8(detect, tmp_path, photo, video):
    save, table, timeline = (
        os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + end) for end in (b".mp4", b".csv", b".png")
    )
    status, said, error = detect("--source", video, "--save", save, "--csv", table, "--summary", timeline)
    assert (status, error) == (0, "") and "caf\\udce9.mp4" in said and len(read_rows(table)) == 20
    assert os.path.getsize(save) > 1000 < os.path.getsize(timeline)


@pytest.mark.parametrize("case", ["camera", "video", "model", "folder of nothing", "screen"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_run_that_does_not_begin_leaves_old_results_and_no_new_ones(detect, tmp_path, video, case, suffix):
    old, timeline, new = tmp_path / f"old{suffix}", tmp_path / "old.png", tmp_path / "new.csv"
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no picture")
    for path in (old, timeline):
        path.write_text("precious")
    arguments = {
        "camera": ["--source", 96],
        "video": ["--source", tmp_path / "text.mp4"],
        "model": ["--source", video, "--model", tmp_path / "none.h5"],
        "folder of nothing": ["--source", tmp_path / "in"],
        "screen": ["--source", "rtsp://127.0.0.1:1/none"],
    }[case]
    status, _, error = detect(*arguments, f"--{suffix[1:]}", old, "--summary", timeline, "--overwrite")
    assert status == 2 and "Traceback" not in error
    assert old.read_text() == timeline.read_text() == "precious"
    status, _, error = detect(*arguments, "--csv", new)
    assert status == 2 and not new.exists()  # so that the next try need not overwrite it


@pytest.fixture
def camera():
    with Camera() as server:
        yield server


def test_what_was_seen_before_a_stream_was_lost_is_kept(detect, tmp_path, camera, monkeypatch):
    monkeypatch.setattr(sources, "LOST_TIMEOUT", 0.7)
    monkeypatch.setattr(sources, "STALL_TIMEOUT", 0.3)
    names = "out.mp4", "seen.csv", "timeline.png"
    save, table, timeline = (tmp_path / name for name in names)
    result = detect("--source", camera.address("stops"), "--save", save, "--csv", table, "--summary", timeline)
    assert one_line(result, "lost, and not back in 0.7 seconds") and "secret" not in "".join(result[1:])
    assert re.search(r"/stops: \d+ frames, 0 faces, .*saved to .*out.mp4", result[1])
    with Source(save) as video:
        assert len(list(video)) > 5
    assert sorted(os.listdir(tmp_path)) == sorted(names) and cv2.imread(str(timeline)) is not None


def fill(folder, leave=0):
    """Fill the disk of a folder but for so many bytes."""
    free = shutil.disk_usage(folder).free - leave
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(free // 4096):
            file.write(bytes(4096))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_disk_is_full_for_a_table(detect, tmp_path, frame, small_disk, suffix):
    """It ends with whole rows, as many as there was room for."""
    fill(small_disk, 8192)
    source, table = write_video(tmp_path / "long.avi", [frame] * 120), small_disk / f"seen{suffix}"
    result = detect("--source", source, f"--{suffix[1:]}", table, "--summary", tmp_path / "timeline.png")
    assert one_line(result, str(table), "No space left on device; rows are missing".replace(" device;", " device);"))
    text = table.read_text()
    assert text.endswith("\n") and 6000 < len(text) <= 8192
    kept = read_rows(table) if suffix == ".csv" else [json.loads(line) for line in text.splitlines()]
    assert [int(row["frame"]) for row in kept] == list(range(len(kept))) and len(kept[-1]) == 17
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None  # what was seen until then


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_the_disk_is_full_for_a_video(detect, tmp_path, small_disk, suffix):
    """It ends in time to be playable; the old one is as it was."""
    random = np.random.default_rng(0)
    fill(small_disk, 3 * 2**19)
    source = write_video(tmp_path / "long.avi", [random.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(120)])
    save = small_disk / f"video{suffix}"
    save.write_text("precious")
    result = detect("--source", source, "--save", save, "--overwrite")
    partial = small_disk / f"video.partial{suffix}"
    assert one_line(result, f"--save {save}", "the disk is full", str(partial)) and save.read_text() == "precious"
    with Source(partial) as video:
        assert len(list(video)) > 5 and video.missing_seconds == 0


def test_the_disk_is_full_for_an_image(detect, tmp_path, photo, small_disk):
    fill(small_disk, 4096)
    (small_disk / "out.png").write_text("precious")
    result = detect("--source", photo, "--save", small_disk / "out.png", "--overwrite")
    assert one_line(result, "out.png", "No space left")
    assert (small_disk / "out.png").read_text() == "precious" and len(os.listdir(small_disk)) == 2


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_disk_is_full_for_a_summary(detect, video, small_disk, suffix):
    timeline = small_disk / f"timeline{suffix}"
    timeline.write_text("precious")
    fill(small_disk, 0)
    status, said, error = detect("--source", video, "--summary", timeline, "--overwrite")
    assert one_line((status, said, error), f"--summary {timeline}", "No space left") and "person 1" in said
    assert timeline.read_text() == "precious" and len(os.listdir(small_disk)) == 2


def viewer():
    """What the key s needs, without a window."""
    return Viewer(EMOTIONS, False)


def test_the_disk_is_full_for_the_key_s(small_disk, frame, monkeypatch, capfd):
    monkeypatch.chdir(small_disk)
    fill(small_disk, 4096)
    viewer().save(frame)
    assert "can't be written (No space left on device)" in capfd.readouterr().out and os.listdir(".") == ["filler"]


def test_the_key_s_twice_in_a_second_makes_two_images(tmp_path, frame, monkeypatch):
    monkeypatch.chdir(tmp_path)
    while time.time() % 1 > 0.5:
        time.sleep(0.01)
    for value in range(3):
        viewer().save(frame + np.uint8(value))
    images = [cv2.imread(str(path)) for path in sorted(tmp_path.glob("expressions-*.png"))]
    assert sorted(int(photo[0, 0, 0]) for photo in images) == [128, 129, 130]


def test_the_key_s_where_the_folder_is_gone(tmp_path, frame, monkeypatch, capfd):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    viewer().save(frame)
    assert "can't be written (No such file" in capfd.readouterr().out


def test_a_table_on_dev_full(detect, tmp_path, video):
    table = tmp_path / "seen.csv"
    table.symlink_to("/dev/full")
    assert one_line(detect("--source", video, "--csv", table, "--overwrite"), str(table), "No space left on device")


@pytest.mark.parametrize(
    "option, name", [("csv", "a.csv"), ("jsonl", "a.jsonl"), ("save", "a.avi"), ("summary", "a.png")]
)
@needs_root
def test_no_leave_to_write(tmp_path, trained, video, option, name):
    """Told before any work is done."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    words = command("realtime_detect.py", "--source", video, "--model", trained, f"--{option}", folder / name)
    result = subprocess.run([*WITHOUT_PRIVILEGES, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert one_line((result.returncode, result.stdout, result.stderr), f"--{option} {folder / name}", "be written")
    assert result.stdout == "" and os.listdir(folder) == []


@needs_root
@pytest.mark.parametrize("name", ["seen.csv", "out.avi"])
def test_no_leave_to_write_over_a_file(tmp_path, trained, video, name):
    path = tmp_path / name
    path.write_text("precious")
    path.chmod(0o444)
    (tmp_path / "out.partial.avi").touch(mode=0o444)
    option = "--csv" if name.endswith("csv") else "--save"
    words = command("realtime_detect.py", "--source", video, "--model", trained, option, path, "--overwrite")
    result = subprocess.run([*WITHOUT_PRIVILEGES, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert one_line((result.returncode, "", result.stderr), str(path), "can't be written (Permission denied)")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_two_programs_write_the_same_table(tmp_path, suffix):
    path = tmp_path / f"seen{suffix}"
    with Table(path, EMOTIONS, overwrite=True) as table:
        table.write("first", SimpleNamespace(number=0, seconds=0.0), [])
        before = path.read_bytes()
        with pytest.raises(UserError, match="another program is writing it"):
            Table(path, EMOTIONS, overwrite=True)
        assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".csv", *VIDEO_SUFFIXES, ".png"])
def test_a_file_system_without_locks(tmp_path, frame, monkeypatch, suffix):
    fcntl = pytest.importorskip("fcntl")  # not on Windows

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / f"out{suffix}"
    if suffix == ".csv":
        with Table(path, EMOTIONS) as table:
            table.write("video", SimpleNamespace(number=0, seconds=0.0), [])
    else:
        with Recorder(path, SimpleNamespace(is_image=suffix == ".png", live=False, fps=10, address="")) as recorder:
            recorder.write(frame, 0.0)
    assert path.stat().st_size


@pytest.mark.parametrize("suffix", [*VIDEO_SUFFIXES, ".png"])
def test_two_programs_write_the_same_video_or_image(tmp_path, frame, suffix):
    source = SimpleNamespace(is_image=suffix == ".png", live=False, fps=10, address="")
    with Recorder(tmp_path / f"out{suffix}", source) as recorder:
        recorder.write(frame, 0.0)
        with pytest.raises(UserError, match="another program is writing it"):
            Recorder(tmp_path / f"out{suffix}", source)
    with Source(tmp_path / f"out{suffix}") as saved:
        assert len(list(saved)) == 1
    assert os.listdir(tmp_path) == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [*VIDEO_SUFFIXES, ".png"])
def test_a_folder_that_goes_while_a_video_is_written(tmp_path, frame, suffix):
    path = tmp_path / "here" / f"out{suffix}"
    path.parent.mkdir()
    source = SimpleNamespace(is_image=suffix == ".png", live=False, fps=10, address="")
    refused = pytest.raises(UserError, match="its folder can't be|can't be written|was removed")
    with refused as error, Recorder(path, source) as recorder:
        recorder.write(frame, 0.0)
        shutil.rmtree(path.parent)
        recorder.write(frame, 0.1)
    assert "disk" not in str(error.value)


def test_a_video_that_is_removed_while_it_is_written(tmp_path, frame):
    source = SimpleNamespace(is_image=False, live=False, fps=10, address="")
    refused = pytest.raises(UserError, match="was removed while it was written")
    with refused, Recorder(tmp_path / "out.mp4", source) as recorder:
        recorder.write(frame, 0.0)
        os.remove(recorder.partial)


@pytest.mark.parametrize(
    "options", [["--save", "me.png"], ["--summary", "me.png"], ["--save", "a.png", "--summary", "a.png"],
                ["--summary", "link.png"], ["--csv", "a.csv", "--jsonl", "same.jsonl"]],
    ids=["save the source", "summary the source", "save and summary", "link to the source", "csv and jsonl"],
)  # fmt: skip
def test_a_result_that_is_the_source_or_another_result(detect, photo, frame, monkeypatch, options):
    monkeypatch.chdir(photo.parent)
    os.symlink("me.png", "link.png")
    os.symlink("a.csv", "same.jsonl")
    assert one_line(detect("--source", "me.png", *options, "--overwrite", "--no-window"), "choose another name")
    np.testing.assert_array_equal(cv2.imread("me.png"), frame)
    assert sorted(os.listdir()) == ["link.png", "me.png", "same.jsonl"]


def test_a_saved_video_never_takes_the_place_of_another_source(detect, tmp_path, video):
    """In the folder of the sources, a.mkv would be saved as a.mkv.mp4, which is a source as well."""
    for name in ("a.mkv", "a.mkv.mp4"):
        shutil.copy(video, tmp_path / name)
    status, _, error = detect("--source", tmp_path, "--save", tmp_path, "--overwrite")
    assert status == 2 and error.count("one of the sources") == 2 and "2 of 2" in error
    assert (tmp_path / "a.mkv.mp4").read_bytes() == video.read_bytes()


def test_a_file_in_the_place_of_the_folder_for_results(detect, tmp_path, photo):
    (tmp_path / "out").write_text("precious")
    result = detect("--source", tmp_path / "*.png", "--save", tmp_path / "out")
    assert result[0] == 2 and f"--save {tmp_path / 'out'}: can't be made a folder" in result[2]
    assert (tmp_path / "out").read_text() == "precious"


def shell(line, folder, **environment):
    """Run a line of bash with the program as $DETECT; returns its status, standard output and standard error."""
    environment = ENVIRONMENT | {"DETECT": " ".join(command("realtime_detect.py"))} | environment
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=100
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    "line, said",
    [
        ("$DETECT $ARGUMENTS | true; exit ${PIPESTATUS[0]}", (141, "", "")),
        ("$DETECT $ARGUMENTS 2>&1 | true; exit ${PIPESTATUS[0]}", (141, "", "")),
        pytest.param(
            "$DETECT --source none.mp4 --csv b.csv 2>&1 | true; exit ${PIPESTATUS[0]}",
            (141, "", ""),
            marks=pytest.mark.slow,
        ),
        ("$DETECT $ARGUMENTS >&-", (0, "", "")),
        ("$DETECT $ARGUMENTS >&- 2>&-", (0, "", "")),
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


def test_head_gets_its_line(tmp_path, trained, video):
    for name in ("a", "b", "c"):
        shutil.copy(video, tmp_path / f"{name}.avi")
    line = f"PYTHONUNBUFFERED=1 $DETECT --source '*.avi' --model {trained} --csv seen.csv | head -1"
    status, said, error = shell(line, tmp_path)
    assert said.startswith("a.avi: 20 frames") and said.count("\n") == 1 and error == ""


def test_standard_output_on_a_full_disk(tmp_path, trained, video):
    result = shell(f"$DETECT --source {video} --model {trained} --csv seen.csv > /dev/full", tmp_path)
    assert one_line(result, "No space left on device") and len(read_rows(tmp_path / "seen.csv")) == 20


def test_a_terminal_without_the_letters_of_a_name(tmp_path, trained, video):
    shutil.copy(video, tmp_path / "Käthe 图.avi")
    line = f"$DETECT --source 'Käthe 图.avi' --model {trained} --csv seen.csv"
    status, said, error = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert (status, error) == (0, "") and said.startswith(r"K\xe4the \u56fe.avi: 20 frames")


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


@pytest.mark.parametrize(
    "end, suffix",
    [
        pytest.param(signal.SIGTERM, ".mp4", marks=pytest.mark.slow),
        (signal.SIGTERM, ".webm"),
        (signal.SIGTERM, ".avi"),
        (signal.SIGHUP, ".mp4"),
    ],
)
def test_a_program_that_is_ended_ends_well(tmp_path, trained, long_video, end, suffix):
    process = start(tmp_path, long_video, trained, "--save", f"out{suffix}", "--summary", "timeline.png")
    process.send_signal(end)
    said, error = process.communicate(timeout=100)
    seen = read_rows(tmp_path / "seen.csv")
    assert [int(row["frame"]) for row in seen] == list(range(len(seen))) and all(row["surprise"] for row in seen)
    assert (process.returncode, error) == (0, "") and "Stopped." in said and "person 1" in said
    with Source(tmp_path / f"out{suffix}") as saved:
        assert len(seen) - len(list(saved)) in (0, 1)  # a row comes before its frame is saved
    assert saved.missing_seconds == 0
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Debian's package xvfb")
def test_the_screen_goes_while_a_video_is_written(tmp_path, trained, long_video):
    """The X server is killed: Qt prints a line and ends the program at once. Tables are whole; what was saved of the
    video is in the partial file, which plays unless it is .mp4."""
    reader, writer = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writer)], pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    display = f":{os.read(reader, 10).decode().strip()}"
    process = start(tmp_path, long_video, trained, "--save", "out.avi", "--jsonl", "seen.jsonl", DISPLAY=display)
    server.kill()
    server.wait()
    said, error = process.communicate(timeout=30)
    assert process.returncode == 1 and error.count("\n") == 1 and "X11" in error and "saved" not in said, error
    rows = read_rows(tmp_path / "seen.csv")
    assert [int(row["frame"]) for row in rows] == list(range(len(rows))) and len(rows) >= 39
    lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(lines))) and len(rows) - len(lines) in (0, 1)
    with Source(tmp_path / "out.partial.avi") as saved:
        assert len(list(saved)) >= 5  # the last ones may not have reached the disk


def test_the_table_of_all_sources_is_gone(detect, tmp_path, video):
    """Then the other sources are left alone, and what was made of them before."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            shutil.copy(video, tmp_path / folder / f"{name}.avi")
    os.symlink("/dev/full", tmp_path / "link.csv")
    status, _, error = detect(
        "--source", tmp_path / "in", "--save", tmp_path / "out", "--csv", tmp_path / "link.csv", "--overwrite"
    )
    assert status == 2 and error.count("\n") == 2 and "1 of 2 sources" in error, error
    with Source(tmp_path / "out" / "b.avi") as other:
        assert len(list(other)) == 20


def test_a_timeline_with_a_formula_for_a_name(tmp_path):
    """matplotlib takes what stands between dollars for one, and raised where it is none."""
    summary = Summary()
    for name in ("$\\frac{$.mp4", "b\n\udce9.mp4"):
        for number in range(3):
            faces = [SimpleNamespace(track_id=1, label="happy")]
            summary.add(name, SimpleNamespace(number=number, seconds=number / 10), faces, is_image=False)
    summary.draw(tmp_path / "timeline.png", {})
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None and "b\\n\\udce9.mp4, person 1" in summary.describe()
