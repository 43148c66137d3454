"""Files as sources, files as recordings, and a real window."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, heed_ctrl_c, needs_xvfb, x_server

from expressions import UserError
from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source, expand_sources, parse_size
from expressions.window import Window

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs Debian's package ffmpeg"
)


def video_source(rate=10):
    """What a Recorder needs to know of a source."""
    return SimpleNamespace(is_image=False, live=False, fps=rate, address="")


def gray(value, size=(160, 120)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def record_video(path, times=None, rate=10):
    """A grainy video whose frame at each of `times`, in seconds, is 20 brighter than the one before."""
    source, random = video_source(rate), np.random.default_rng(0)
    with Recorder(path, source) as recorder:
        for index, seconds in enumerate(np.arange(12) / rate if times is None else times):
            image = np.clip(gray(index * 20) + random.integers(-9, 10, (120, 160, 1)), 0, 255)
            recorder.write(np.uint8(image), seconds)
    return path


def write_image(path, value=100):
    cv2.imwrite(str(path), gray(value))
    return path


def levels(path):
    with Source(path) as source:
        return [round(frame.image.mean() / 20) for frame in source]


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-v", "error", *map(str, arguments)], check=True)


def test_a_folder_and_a_pattern_become_their_images_and_videos_in_natural_order(tmp_path):
    for name in (
        "video10.MP4",
        "video2.mp4",
        "video².mp4",
        "a.png",
        "notes.txt",
        ".hidden.jpg",
        "B.webm",
        "inner/c.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [str(tmp_path / name) for name in ("a.png", "B.webm", "video2.mp4", "video10.MP4", "video².mp4")]
    assert expand_sources(str(tmp_path)) == names
    assert expand_sources(f"{tmp_path}/video*") == names[2:]
    assert expand_sources(f"{tmp_path}/*/*") == [str(tmp_path / "inner" / "c.jpg")]
    for nothing in (tmp_path / "folder.png", tmp_path / "*.txt", tmp_path / "none*"):
        with pytest.raises(UserError, match="no image or video there"):
            expand_sources(str(nothing))


def test_a_single_source_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("video[1].mp4", "7"):
        Path(name).touch()
    Path("0").mkdir()
    write_image(Path("0/me.png"))
    for word in (
        "0",
        "/dev/video0",
        "video.mp4",
        "video[1].mp4",
        "7",
        "",
        "http://host/stream?x=*",
        "rtsp://[::1]/[1]",
    ):
        assert expand_sources(word) == [word]
    assert expand_sources("./0") == ["0/me.png"]
    with pytest.raises(UserError, match="^7: not a video"):  # the file, not the camera
        Source("7")
    with pytest.raises(UserError, match="camera 0: can't be opened"):
        Source("0")


def test_a_camera_s_path_may_end_like_a_file_s(monkeypatch):
    for reader in ("_read_live", "_read_video", "_read_image"):
        monkeypatch.setattr(Source, reader, lambda self: iter([(None, 0.0)]))
    kinds = {"rtsp://host/live.mp4": "live", "rtsp://host/me.png": "live", "http://host/door": "live"}
    kinds |= {"HTTP://host/video.mp4?x=1": "video", "http://host/me.png": "still", "sftp://host/a.mkv": "video"}
    for address, kind in kinds.items():
        source = Source(address)
        assert (source.live, source.is_image) == (kind == "live", kind == "still"), address


def test_a_size_is_width_and_height():
    assert parse_size("1280x720") == parse_size("1280X720") == (1280, 720)
    for text in ("1280", "x720", "0x10", "1280x", "-1x5", "axb", "10x10x10"):
        with pytest.raises(UserError, match="--size"):
            parse_size(text)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi", ".AVI"])
def test_a_written_video_reads_back_frame_by_frame_at_its_rate(tmp_path, suffix, capfd):
    with Source(record_video(tmp_path / f"video{suffix}", rate=30000 / 1001)) as source:
        assert source.fps == pytest.approx(29.97, abs=0.001) and source.frame_count == 12
        assert not (source.is_image or source.live or source.camera)
        frames = list(source)
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx(np.arange(12) / 29.97, abs=0.001)
    assert [frame.image.mean() for frame in frames] == pytest.approx([index * 20 for index in range(12)], abs=6)
    assert source.skipped == source.missing_seconds == 0
    assert capfd.readouterr().err == ""
    assert os.listdir(tmp_path) == [f"video{suffix}"]


@needs_ffmpeg
@pytest.mark.parametrize("suffix, codec", [(".mp4", "mpeg4"), (".webm", "vp8"), (".avi", "mjpeg")])
def test_a_written_video_is_one_for_other_programs(tmp_path, suffix, codec):
    video = record_video(tmp_path / f"video{suffix}", rate=25)
    entries = "stream=codec_name,avg_frame_rate,nb_read_frames"
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "csv=p=0", video]
    result = subprocess.run(probe, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{codec},25/1,12" and result.stderr == ""


def test_a_rate_that_mpeg_4_can_t_count_is_rounded(tmp_path):
    with Source(record_video(tmp_path / "slow.mp4", rate=119.91317)) as source:
        assert source.fps == pytest.approx(119.913, abs=0.01) and len(list(source)) == 12


def test_a_video_keeps_the_times_of_its_source(tmp_path):
    # frame 1 is followed by a gap; 5 and 6 are closer than the rate allows; a source may begin later than at 0
    times = [3, 3.1, 3.6, 3.7, 3.8, 3.81, 3.9]
    assert levels(record_video(tmp_path / "video.avi", times)) == [0, 1, 1, 1, 1, 1, 2, 3, 4, 6]


def test_a_long_pause_before_a_camera_is_left_out(tmp_path):
    """Filled, ten minutes would have to be encoded at once."""
    source = video_source()
    source.live = True
    with Recorder(tmp_path / "video.avi", source) as recorder:
        for index, seconds in enumerate([0, 0.1, 600, 600.1, 602.1]):
            recorder.write(gray(20 * index), seconds)
    assert levels(tmp_path / "video.avi") == [0, 1, 2, 3, *[3] * 19, 4]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_phone_s_varying_rate_keeps_its_times(tmp_path, suffix):
    video, out = tmp_path / f"phone.{suffix}", tmp_path / "out.avi"
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
        assert len(list(source)) / source.fps == pytest.approx(2, abs=0.05)


@pytest.mark.faults
def test_frames_of_another_size_fit_into_the_video(tmp_path):
    source = video_source()
    with Recorder(tmp_path / "out.avi", source) as recorder:
        for index, size in enumerate((100, 50, 200)):
            recorder.write(gray(size, (size, size)), index / 10)
    with Source(tmp_path / "out.avi") as source:
        assert [frame.image.shape for frame in source] == [(100, 100, 3)] * 3


def test_a_phone_s_video_is_turned_upright(tmp_path):
    path = tmp_path / "video.mp4"
    image = gray(0)
    image[:, 80:] = 250  # bright on the right
    with Recorder(path, video_source()) as recorder:
        recorder.write(image, 0.0)
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
    path.write_bytes(data[:start] + bytes(400) + data[start + 400 :])
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
        "text.mp4": "not a video",
        "empty.webm": "not a video",
        "text.png": "not an image",
        "empty.jpg": "not an image",
        "half.png": "not an image",
    }.items():
        with pytest.raises(UserError, match=words):
            Source(tmp_path / name)
    with pytest.raises(UserError, match="camera 97: can't be opened"):
        Source("97")
    assert capfd.readouterr().err == ""


@pytest.mark.faults
def test_odd_names_are_read_and_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "100%d.mp4", "Käthe 图.webm", "-x.avi"):
        assert levels(record_video(Path(name))) == list(range(12))


@pytest.mark.faults
def test_says_why_a_file_can_t_be_written_and_leaves_others_alone(tmp_path):
    image = write_image(tmp_path / "me.png")
    other = write_image(tmp_path / "other.png", 50)
    (tmp_path / "folder.png").mkdir()
    with Source(image) as source:
        for name, words in {
            "out.mp4": "an image is written as .*.png",
            "other.png": "exists already",
            "no/out.png": "no folder",
            "folder.png": "exists already",
            "me.png": "is the source itself",
        }.items():
            with pytest.raises(UserError, match=words):
                Recorder(tmp_path / name, source, overwrite=name == "me.png")
        with pytest.raises(UserError, match="exists already"), Recorder(tmp_path / "new.png", source) as recorder:
            recorder.write(gray(1), 0.0)
            shutil.copy(other, tmp_path / "new.png")  # somebody else was quicker
        os.remove(tmp_path / "new.png")
        with pytest.raises(UserError, match="new.partial.png exists already"):
            Recorder(tmp_path / "new.png", source)
        shutil.copy(other, tmp_path / "new.png")
        with Recorder(other, source, overwrite=True):
            pass  # nothing came of it
    for name, value in {"me.png": 100, "other.png": 50, "new.png": 50, "new.partial.png": 1}.items():
        assert (cv2.imread(str(tmp_path / name)) == value).all()


def write_until(path, end):
    """Write a video in a program of its own that writes on and on, end it, and return its standard error."""
    code = f"""
import sys, time, types
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from expressions.inference.recorder import Recorder
source = types.SimpleNamespace(is_image=False, live=False, fps=10, address="")
random = np.random.default_rng(0)
with Recorder({str(path)!r}, source, overwrite=True) as recorder:
    for index in range(10**6):
        recorder.write(random.integers(0, 256, (120, 160, 3), np.uint8), index / 10)
        time.sleep(0.01)
        if index == 20: print("20", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: (heed_ctrl_c(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN), end is None and
                            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))),
    )  # fmt: skip
    process.stdout.readline()
    if end:
        process.send_signal(end)
    else:  # the disk is full by now
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    return process.communicate(timeout=120)[1]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
@pytest.mark.faults
def test_ctrl_c_leaves_a_whole_video(tmp_path, suffix):
    path = record_video(tmp_path / f"video{suffix}")
    write_until(path, signal.SIGINT)
    with Source(path) as source:
        assert len(list(source)) > 20 and source.missing_seconds == 0
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["kill -9", "disk full"])
@pytest.mark.faults
def test_what_could_not_be_ended_lies_beside_the_good_old_video(tmp_path, end, suffix):
    path = record_video(tmp_path / f"video{suffix}")
    error = write_until(path, end)
    assert levels(path) == list(range(12))
    assert set(os.listdir(tmp_path)) == {f"video{suffix}", f"video.partial{suffix}"}
    assert end or "could not be written whole; is the disk full?" in error
    if suffix == ".avi":  # .webm may be written seconds late, and the index of .mp4 comes last
        with Source(tmp_path / f"video.partial{suffix}") as partial:
            assert len(list(partial)) >= 5


@pytest.mark.parametrize("display", ["", ":987", "nowhere:1", "localhost:99999", "nonsense"])
@pytest.mark.faults
def test_a_window_without_a_screen(monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="no screen"):
        Window("test").__enter__()


@needs_xvfb
def test_the_keys_of_a_window(tmp_path):
    """Real keys: an arrow is none, though waitKey would call it a Q. And a large image gets a window for a screen."""
    (tmp_path / "show.py").write_text(f"""
import subprocess, sys, time
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from expressions.window import Window
picture = np.zeros((3000, 4000, 3), np.uint8)
def xdotool(*words):
    return subprocess.run(["xdotool", *words], capture_output=True, text=True, check=True).stdout.strip()
with Window("The keys") as window:
    for _ in range(20):
        window.show(picture)
        time.sleep(0.02)
    handle = xdotool("search", "--onlyvisible", "--name", "The keys").split()[0]
    print(xdotool("getwindowgeometry", "--shell", handle))
    xdotool("windowfocus", handle)
    for name in ("b", "Left", "Right", "Shift_L", "F5", "Escape", "space"):
        xdotool("key", "--window", handle, name)
        keys = []
        for _ in range(20):
            keys.append(window.show(picture))
            time.sleep(0.01)
        print("key", name, repr("".join(keys)))
""")
    with x_server("1600x1200x24") as (_, display):
        result = subprocess.run(
            [sys.executable, str(tmp_path / "show.py")], env=os.environ | {"DISPLAY": display},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    keys = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("key")]
    assert [" ".join(words) for words in keys] == [
        "b 'b'", "Left ''", "Right ''", "Shift_L ''", "F5 ''", "Escape '\\x1b'", "space ' '",
    ], result.stdout + result.stderr  # fmt: skip
    size = dict(line.split("=") for line in result.stdout.splitlines() if "=" in line)
    assert int(size["WIDTH"]) <= 1280 and int(size["HEIGHT"]) <= 900
