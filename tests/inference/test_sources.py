"""Files as sources: what is read of images and videos, and those that are none."""

import os
import re
import shutil
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import (
    ENVIRONMENT,
    ROOT,
    WITHOUT_PRIVILEGES,
    command,
    large_png,
    needs_root,
    one_line,
    read_rows,
    write_video,
)
from samples import ffmpeg, gray, needs_ffmpeg, record_video, write_image, write_scene

from expressions import UserError
from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_phone_s_varying_rate_keeps_its_times(tmp_path, suffix):
    video, out = tmp_path / f"phone.{suffix}", tmp_path / "out.mp4"
    dropped = "select=not(between(n\\,5\\,14))"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=2", "-vf", dropped, "-vsync", "vfr", video)
    with Source(video) as source, Recorder(out, source) as recorder:
        seconds = []
        for frame in source:
            seconds.append(frame.seconds)
            recorder.write(frame.image, frame.seconds)
    expected = [index / 25 for index in range(50) if not 5 <= index <= 14]
    assert seconds == pytest.approx(expected, abs=0.002) and source.missing_seconds == 0
    with Source(out) as source:
        assert [frame.seconds for frame in source] == pytest.approx(expected, abs=0.002)


def test_a_phone_s_video_is_turned_upright(tmp_path):
    path = tmp_path / "video.mp4"
    image = gray(0)
    image[:, 80:] = 250  # bright on the right
    write_video(path, [image], codec="mp4v")
    unit, one = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    plain = unit + bytes(12) + unit + bytes(12) + one  # the track's matrix, ISO/IEC 14496-12, 8.3.2
    turned = bytes(4) + unit + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(16) + one  # clockwise
    head, track = path.read_bytes().split(b"tkhd")
    assert plain in track
    path.write_bytes(head + b"tkhd" + track.replace(plain, turned, 1))
    with Source(path) as source:
        (frame,) = source
    assert frame.image.shape == (160, 120, 3)
    assert frame.image[:70].mean() < 20 and frame.image[90:].mean() > 230  # its right is below now


@pytest.mark.faults
def test_a_broken_frame_in_a_video_is_skipped_and_counted(tmp_path):
    path = record_video(tmp_path / "video.avi")
    data = path.read_bytes()
    start = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)][4]  # of the fifth JPEG
    path.write_bytes(data[:start] + bytes(1500) + data[start + 1500 :])  # all its headers
    with Source(path) as source:
        frames = list(source)
    assert [round(frame.image.mean() / 20) for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert frames[4].number == 4 and frames[4].seconds == pytest.approx(0.5)
    assert source.skipped == 1 and source.missing_seconds == 0


@pytest.mark.parametrize("suffix", [".avi", ".webm"])
@pytest.mark.faults
def test_a_video_that_was_cut_off_plays_to_where_it_is_whole(tmp_path, suffix, capfd):
    path = record_video(tmp_path / f"video{suffix}", rate=2)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with Source(path) as source:
        frames = list(source)
    assert 3 <= len(frames) <= 9 and source.frame_count == 12
    assert source.missing_seconds == pytest.approx((12 - len(frames)) / 2, abs=0.1)
    assert capfd.readouterr().err == ""


def test_an_image_is_one_frame(tmp_path):
    with Source(write_image(tmp_path / "me.jpg")) as source:
        assert source.is_image and source.fps is None
        (frame,) = source
        assert frame.image.shape == (120, 160, 3) and frame[1:] == (0, 0.0)
        with Recorder(tmp_path / "out.png", source) as recorder:
            recorder.write(gray(3), 0.0)
            recorder.write(gray(7), 0.0)
    assert (cv2.imread(str(tmp_path / "out.png")) == 7).all()
    assert sorted(os.listdir(tmp_path)) == ["me.jpg", "out.png"]


@pytest.mark.parametrize("kind", ["gray", "16 bit", "16 bit colour", "alpha", "16 bit alpha", "alpha in webp", "tiff"])
def test_any_kind_of_image_comes_as_bgr_bytes(tmp_path, kind):
    colour = np.zeros((4, 5, 3), np.uint8) + np.uint8([200, 100, 50])
    expected = (200, 100, 50)
    if "alpha" in kind:  # 0, 1/5 and all of it seen
        colour = np.dstack([colour, np.repeat(np.uint8([[0, 51, 255, 255, 255]]), 4, axis=0)])
    if kind in ("gray", "16 bit"):
        colour, expected = colour[:, :, 1], (100, 100, 100)
    if "16" in kind or kind == "tiff":
        colour = colour * np.uint16(257)
    path = tmp_path / ("Käthe 图.webp" if "webp" in kind else f"Käthe 图.{'tiff' if kind == 'tiff' else 'png'}")
    path.write_bytes(cv2.imencode(path.suffix, colour, [cv2.IMWRITE_WEBP_QUALITY, 101])[1])
    with Source(path) as source:
        (frame,) = source
    assert frame.image.shape == (4, 5, 3) and frame.image.dtype == np.uint8
    assert frame.image[0, 4].tolist() == list(expected)
    if "alpha" in kind:
        assert frame.image[0, 0].tolist() == [255, 255, 255] and frame.image[0, 1].tolist() == [244, 224, 214]


def test_a_phone_s_photo_is_turned_upright(tmp_path):
    image = gray(0)
    image[:, 80:] = 250  # bright on the right
    data = cv2.imencode(".jpg", image)[1].tobytes()
    # Exif 2.3: one entry, the orientation (0x0112), 6: to be turned clockwise
    entry = bytes.fromhex("0112 0003 00000001 0006 0000")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    with Source(path) as source:
        (frame,) = source
    assert frame.image.shape == (160, 120, 3)
    assert frame.image[:70].mean() < 10 and frame.image[90:].mean() > 240


@pytest.mark.faults
def test_says_why_a_source_can_t_be_opened(tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "empty.webm").touch()
    (tmp_path / "half.png").write_bytes(write_image(tmp_path / "whole.png").read_bytes()[:60])
    for name, words in {
        "missing.mp4": "no such video or image",
        ".": "no such video or image",
        "text.mp4": "not a video or image",
        "empty.webm": "not a video or image",
        "text.png": "not a video or image",
        "empty.jpg": "not a video or image",
        "half.png": "not an image",
    }.items():
        with pytest.raises(UserError, match=words):
            Source(tmp_path / name)
    with pytest.raises(UserError, match="camera 97: can't be opened"):
        Source("97")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name, codec", [("video.avi", "MJPG"), ("video.mp4", "mp4v"), ("video.webm", "VP80")])
def test_a_video_entered_in_its_middle_gives_the_same_frames(tmp_path, name, codec):
    path = write_scene(tmp_path / name, 12, codec)
    with Source(path) as source:
        frames = [(frame.seconds, frame.image.tobytes()) for frame in source]
    for start in (2, 7.5, 11.95, 13):
        with Source(path, start=start) as source:
            rest = [(frame.seconds, frame.image.tobytes()) for frame in source]
        assert rest == [(seconds, image) for seconds, image in frames if seconds >= start]


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


@pytest.mark.faults
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
        ("me.png", large_png(16000, 16000, 1), "or too large a one"),
        ("me.jpg", jpeg_of(65500, 65500), "or too large a one"),
        ("video.gif", gif(16000, 16000), "or too large a one"),
        ("video.gif", gif(65535, 65535), "or too large a one"),
        ("video.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp41\0\0\xff\xffmdat" + bytes(9000), "not a video or image"),
        ("video.avi", np.random.default_rng(0).bytes(10**6), "not a video or image"),
        ("me.webp", np.random.default_rng(0).bytes(10**6), "not a video or image"),
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


@pytest.mark.faults
def test_an_image_of_huge_size_is_not_unpacked_by_the_program_itself(tmp_path, trained):
    """OpenCV hears of its bound when it is imported, so the program has to set it before."""
    make(tmp_path / "me.png", large_png(16000, 16000, 1))
    words = command("realtime_detect.py", "--model", trained, "--source", "me.png", "--csv", "seen.csv")
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == 2 and "or too large a one" in result.stderr and os.listdir(tmp_path) == ["me.png"]


@pytest.mark.faults
def test_a_video_of_huge_frames_is_not_unpacked(tmp_path):
    """16,000 x 16,000 pixels, which took 2.5 GB."""
    (tmp_path / "video.gif").write_bytes(gif(16000, 16000))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom expressions.inference.sources import Source\n"
        f"try: Source({str(tmp_path / 'video.gif')!r})\nfinally: print(open('/proc/self/status').read())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "too large" in result.stderr and int(re.search(r"VmHWM:\s*(\d+) kB", result.stdout)[1]) < 300_000


@pytest.mark.faults
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


@pytest.mark.faults
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


@pytest.mark.faults
def test_a_video_that_tells_no_length(detect, tmp_path, frame):
    """Images in a row, as a camera's raw MJPEG comes."""
    (tmp_path / "video.avi").write_bytes(cv2.imencode(".jpg", frame)[1].tobytes() * 12)
    status, said, _ = detect("--source", tmp_path / "video.avi", "--csv", tmp_path / "seen.csv")
    assert status == 0 and "12 frames" in said and "missing" not in said and len(read_rows(tmp_path / "seen.csv")) == 12
