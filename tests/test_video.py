"""Frames in and out of real files."""

import time

import cv2
import numpy as np
import pytest

from expressions import UserError
from expressions.video import Recording, Source, Window


def write_video(path, frames=12, rate=10, size=(160, 120)):
    with Source(write_image(path.with_suffix(".png"))) as image:
        image.still, image.rate = False, rate
        with Recording(path, image) as recording:
            for index in range(frames):
                recording.write(np.full((size[1], size[0], 3), index * 20, np.uint8))
    return path


def write_image(path, value=100):
    cv2.imwrite(str(path), np.full((120, 160, 3), value, np.uint8))
    return path


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".avi"])
def test_a_written_video_reads_back_frame_by_frame_at_its_rate(tmp_path, ending):
    with Source(write_video(tmp_path / f"film{ending}")) as source:
        assert source.rate == pytest.approx(10) and not source.still
        means = [frame.mean() for frame in source]
    assert len(means) == 12
    assert means == pytest.approx([index * 20 for index in range(12)], abs=6)


def test_frames_of_another_size_fit_into_the_video(tmp_path):
    with Source(write_video(tmp_path / "film.avi")) as source, Recording(tmp_path / "out.avi", source) as recording:
        for size in (100, 50, 200):
            recording.write(np.full((size, size, 3), size, np.uint8))
    with Source(tmp_path / "out.avi") as source:
        assert [frame.shape for frame in source] == [(100, 100, 3)] * 3


def test_an_image_is_one_frame(tmp_path):
    with Source(write_image(tmp_path / "me.jpg")) as source:
        assert source.still and [frame.shape for frame in source] == [(120, 160, 3)]
        with Recording(tmp_path / "out.png", source) as recording:
            recording.write(np.full((9, 9, 3), 7, np.uint8))
    assert (cv2.imread(str(tmp_path / "out.png")) == 7).all()


def test_says_why_a_source_can_t_be_opened(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    for name, words in {
        "missing.mp4": "no such video or image",
        "text.mp4": "not a video",
        "text.png": "not an image",
        "empty.jpg": "not an image",
        "97": "camera 97: can't be opened",
    }.items():
        with pytest.raises(UserError, match=words):
            Source(name if name.isdigit() else tmp_path / name)


def test_says_why_a_file_can_t_be_written_and_leaves_others_alone(tmp_path):
    image = write_image(tmp_path / "me.png")
    with Source(image) as source:
        for name, words in {"out.mp4": "written as", "me.png": "exists already", "no/out.png": "no folder"}.items():
            with pytest.raises(UserError, match=words):
                Recording(tmp_path / name, source)
    assert (cv2.imread(str(image)) == 100).all()


class Camera:
    """Stands in for a camera, which gives five frames, one every 0.2 seconds, and is then unplugged."""

    def __init__(self, *_):
        self.left = 5

    def isOpened(self):
        return True

    def read(self):
        time.sleep(0.2)
        self.left -= 1
        return self.left >= 0, np.full((48, 64, 3), 50 * self.left, np.uint8) if self.left >= 0 else None

    def release(self):
        pass


def test_a_camera_s_video_lasts_as_long_as_it_took_and_an_unplugged_camera_is_reported(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", Camera)
        with Source(0) as source, Recording(tmp_path / "out.avi", source) as recording:
            with pytest.raises(UserError, match="camera 0: gives no more pictures"):
                for frame in source:
                    recording.write(frame)
    with Source(tmp_path / "out.avi") as source:
        assert len(list(source)) / source.rate == pytest.approx(0.8, abs=0.2)


@pytest.mark.parametrize("display", ["", ":987", "nowhere:1", "nonsense"])
def test_a_window_without_a_screen(monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="no screen"):
        Window("test").__enter__()
