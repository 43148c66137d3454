"""Images and videos as they are written: at their rate, whole, and never over anything else."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from conftest import (
    ROOT,
    VIDEO_SUFFIXES,
    fill,
    heed_ctrl_c,
    one_line,
    slow_but,
    write_video,
)
from samples import FRAMES, gray, levels, needs_ffmpeg, record_video, video_source, write_image

from expressions import UserError
from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source


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
@pytest.mark.parametrize("suffix, codec", [(".mp4", "h264"), (".webm", "vp8"), (".avi", "mjpeg")])
def test_a_written_video_is_one_for_other_programs(tmp_path, suffix, codec):
    video = record_video(tmp_path / f"video{suffix}", rate=25)
    entries = "stream=codec_name,avg_frame_rate,nb_read_frames"
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "csv=p=0", video]
    result = subprocess.run(probe, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{codec},25/1,12" and result.stderr == ""


def test_a_rate_that_mpeg_4_can_t_count_is_rounded(tmp_path):
    with Source(record_video(tmp_path / "slow.mp4", rate=119.91317)) as source:
        assert source.fps == pytest.approx(119.913, abs=0.01) and len(list(source)) == 12


TIMES = [3, 3.1, 3.6, 3.7, 3.8, 3.801, 3.9, 900]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_a_video_keeps_the_times_of_its_source(tmp_path, suffix):
    """A gap is as long as it was, and takes no space; frames may be closer than the rate. It begins at 0."""
    path = record_video(tmp_path / f"video{suffix}", TIMES)
    shown = [index for index in range(len(TIMES)) if suffix != ".avi" or index != 5]  # has one rate alone
    with av.open(str(path)) as video:
        frames = list(video.decode(video=0))
        assert float(video.duration / 1e6) == pytest.approx(897.1, abs=0.2)
    assert [frame.time for frame in frames] == pytest.approx([TIMES[index] - 3 for index in shown], abs=0.001)
    means = [frame.to_ndarray(format="gray").mean() / 20 for frame in frames]
    assert [round(mean) for mean in means] == shown and path.stat().st_size < 600_000


def test_what_an_avi_lacks_is_told(tmp_path):
    for suffix, lacking in {".avi": ", without 3 frames, which", ".mp4": ""}.items():
        with Recorder(tmp_path / f"out{suffix}", video_source()) as recorder:
            for index in range(6):
                recorder.write(gray(20 * index), index / 20)
        assert recorder.lacking.startswith(lacking) and bool(recorder.lacking) == bool(lacking)


@pytest.mark.faults
def test_a_gap_that_an_avi_can_t_have(tmp_path):
    """Ten minutes at 500 frames a second."""
    for suffix in VIDEO_SUFFIXES:
        path = tmp_path / f"video{suffix}"
        if suffix == ".avi":
            with pytest.raises(UserError, match="can't show a frame for so long, take .mp4"):
                record_video(path, [0, 599], rate=500)
        else:
            assert record_video(path, [0, 599], rate=500).stat().st_size < 100_000


def test_a_long_pause_before_a_camera_is_left_out(tmp_path):
    source = video_source()
    source.live = True
    with Recorder(tmp_path / "video.mp4", source) as recorder:
        for index, seconds in enumerate([0, 0.1, 600, 600.1, 602.1]):
            recorder.write(gray(20 * index), seconds)
    with av.open(str(tmp_path / "video.mp4")) as video:
        assert [frame.time for frame in video.decode(video=0)] == pytest.approx([0, 0.1, 0.2, 0.3, 2.3])


@pytest.mark.faults
def test_frames_of_another_size_fit_into_the_video(tmp_path):
    source = video_source()
    with Recorder(tmp_path / "out.avi", source) as recorder:
        for index, size in enumerate((100, 50, 200)):
            recorder.write(gray(size, (size, size)), index / 10)
    with Source(tmp_path / "out.avi") as source:
        assert [frame.image.shape for frame in source] == [(100, 100, 3)] * 3


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
            f"{'x' * 250}.png": "can't be written .*too long",
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
                            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))),
    )  # fmt: skip
    process.stdout.readline()
    if end:
        process.send_signal(end)
    else:  # the disk is full by now
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    return process.communicate(timeout=120)[1]


@pytest.mark.parametrize("suffix", slow_but(VIDEO_SUFFIXES, ".avi"))
@pytest.mark.faults
def test_ctrl_c_leaves_a_whole_video(tmp_path, suffix):
    path = record_video(tmp_path / f"video{suffix}")
    write_until(path, signal.SIGINT)
    with Source(path) as source:
        assert len(list(source)) > 20 and source.missing_seconds == 0
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", slow_but(VIDEO_SUFFIXES, ".mp4"))
@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["kill -9", "disk full"])
@pytest.mark.faults
def test_what_could_not_be_ended_lies_beside_the_good_old_video_and_plays(tmp_path, end, suffix):
    path = record_video(tmp_path / f"video{suffix}")
    error = write_until(path, end)
    assert levels(path) == list(range(12))
    assert set(os.listdir(tmp_path)) == {f"video{suffix}", f"video.partial{suffix}"}
    assert end or "can't be written (File too large); what there is lies in" in error
    with Source(tmp_path / f"video.partial{suffix}") as partial:
        assert len(list(partial)) >= 5  # of 20; the last second of them may be lost


@pytest.mark.faults
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("size", [(1, 1), (500, 1), (1, 500), (161, 121)])
def test_an_odd_size_is_filled_up(tmp_path, size, suffix):
    image = gray(100, size)
    image[-1, -1] = 200
    with Recorder(tmp_path / f"out{suffix}", video_source()) as recorder:
        recorder.write(image, 0.0)
    with Source(tmp_path / f"out{suffix}") as source:
        (frame,) = source
    assert frame.image.shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert frame.image[-1, -1] == pytest.approx(np.full(3, 200), abs=30)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_a_video_of_8k(detect, tmp_path, suffix):
    source, saved = write_video(tmp_path / "source.avi", [FRAMES["8K"]] * 2), tmp_path / f"saved{suffix}"
    assert detect("--source", source, "--save", saved)[::2] == (0, "") and saved.exists()


@pytest.mark.faults
def test_a_video_that_is_too_wide_for_its_codec(tmp_path):
    refused = pytest.raises(UserError, match="20000x2 pixels can't be written in this format")
    with refused, Recorder(tmp_path / "out.webm", video_source()) as recorder:
        recorder.write(gray(0, (20000, 2)), 0.0)
    assert os.listdir(tmp_path) == []


@pytest.mark.faults
@pytest.mark.parametrize("suffix", slow_but(VIDEO_SUFFIXES, ".mp4"))
def test_the_disk_is_full_for_a_video(detect, tmp_path, small_disk, suffix):
    """What there is can be played; the old one is as it was."""
    random = np.random.default_rng(0)
    fill(small_disk, 3 * 2**18)
    source = write_video(tmp_path / "long.avi", [random.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(120)])
    save = small_disk / f"video{suffix}"
    save.write_text("precious")
    result = detect("--source", source, "--save", save, "--overwrite")
    partial = small_disk / f"video.partial{suffix}"
    assert one_line(result, f"--save {save}", "No space left on device", str(partial))
    assert save.read_text() == "precious"
    with Source(partial) as video:
        assert len(list(video)) > 5


@pytest.mark.faults
@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_the_disk_is_full_at_the_end_of_a_video(tmp_path, small_disk, suffix):
    """The index, which comes last, has no place; the frames can be played without it."""
    path = record_video(tmp_path / f"video{suffix}")
    fill(small_disk, path.stat().st_size - 4096)  # a page less
    with pytest.raises(UserError, match="No space left on device"):
        record_video(small_disk / path.name)
    with Source(small_disk / f"video.partial{suffix}") as video:
        assert len(list(video)) > 5


@pytest.mark.faults
def test_the_disk_is_full_for_an_image(detect, tmp_path, photo, small_disk):
    fill(small_disk, 4096)
    (small_disk / "out.png").write_text("precious")
    result = detect("--source", photo, "--save", small_disk / "out.png", "--overwrite")
    assert one_line(result, "out.png", "No space left")
    assert (small_disk / "out.png").read_text() == "precious" and len(os.listdir(small_disk)) == 2


@pytest.mark.faults
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


@pytest.mark.faults
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


@pytest.mark.faults
def test_a_video_that_is_removed_while_it_is_written(tmp_path, frame):
    source = SimpleNamespace(is_image=False, live=False, fps=10, address="")
    refused = pytest.raises(UserError, match="was removed while it was written")
    with refused, Recorder(tmp_path / "out.mp4", source) as recorder:
        recorder.write(frame, 0.0)
        os.remove(recorder.partial)
