"""What the keys do, without a window."""

import os
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import fill

from expressions import EMOTIONS
from expressions.inference import viewer as viewer_module
from expressions.inference.sources import Source
from expressions.inference.types import Box, Face
from expressions.inference.viewer import Viewer

RECOGNIZER = SimpleNamespace(labels=EMOTIONS, neutral_status="")


def viewer():
    """What the key s needs, without a window."""
    return Viewer(RECOGNIZER, False)


def test_the_line_of_keys_is_hidden_and_shown_again(frame):
    viewer, shown, keys = Viewer(RECOGNIZER, False), [], iter("hh ")
    viewer.window = SimpleNamespace(show=lambda photo, fps, name: shown.append(photo) or next(keys))
    for _ in range(3):
        viewer.last = None  # else the line tells how many frames a second there are
        assert viewer.show(frame, [], SimpleNamespace(is_image=False, camera=False, fps=None, name="a.mp4"))
    np.testing.assert_array_equal(shown[1], frame)
    np.testing.assert_array_equal(shown[2], shown[0])
    assert (shown[0] != frame).any()


def test_the_keys_of_images(tmp_path):
    """Space and right go on, left goes back, others do nothing; each image has its name and its own faces."""
    for value in range(3):
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((100, 200, 3), 50 * value, np.uint8))
    viewer, shown, keys = (
        Viewer(RECOGNIZER, False),
        [],
        iter(["x", "p", "", " ", "right", "left", "left", "left", *"   "]),
    )

    def show(image, fps, name):
        shown.append((int(os.path.basename(name)[0]), round(image[2, 2, 0] / 50), (image[20, 20] > 0).all()))
        return next(keys)

    viewer.window = SimpleNamespace(show=show)
    for value in range(3):
        source = Source(tmp_path / f"{value}.png")
        faces = [Face(Box(20, 20, 60, 60), "neutral", 0.5, 1, ())] if value == 1 else []
        assert viewer.show(next(iter(source)).image, faces, source)
    assert [name for name, _, _ in shown] == [0, 0, 0, 0, 1, 2, 1, 0, 0, 1, 2]
    assert all(name == value and face == (name > 0) for name, value, face in shown)
    assert next(keys, None) is None


def test_the_key_m_turns_image_and_boxes_and_back():
    viewer, shown, keys = Viewer(RECOGNIZER, True), [], iter("mm ")
    viewer.window = SimpleNamespace(show=lambda image, fps, name: shown.append(image) or next(keys))
    source = SimpleNamespace(is_image=False, camera=False, fps=None, name="a.mp4")
    for _ in range(3):
        viewer.last = None
        viewer.show(
            np.zeros((480, 640, 3), np.uint8),
            [Face(Box(400, 120, 100, 100), "neutral", 0.5, 1, (0, 0, 0, 0, 1, 0, 0))],
            source,
        )
    np.testing.assert_array_equal(shown[2], shown[0])
    box = [(image[170] == 220).all(axis=1).nonzero()[0].min() for image in shown]
    assert box[0] == pytest.approx(400, abs=3) and box[1] == pytest.approx(640 - 500, abs=3)


def test_a_closed_window_ends_at_an_image_and_at_a_video(photo, frame):
    viewer = Viewer(RECOGNIZER, False)
    viewer.window = SimpleNamespace(show=lambda *_: None)
    for source in (Source(photo), SimpleNamespace(is_image=False, camera=False, fps=None, name="a.mp4")):
        assert viewer.show(frame, [], source) is False


@pytest.mark.faults
def test_the_disk_is_full_for_the_key_s(small_disk, frame, monkeypatch, capfd):
    monkeypatch.chdir(small_disk)
    fill(small_disk, 4096)
    viewer().save(frame)
    assert "can't be written (No space left on device)" in capfd.readouterr().out and os.listdir(".") == ["filler"]


@pytest.mark.faults
def test_the_key_s_twice_in_a_second_makes_two_images(tmp_path, frame, monkeypatch):
    monkeypatch.chdir(tmp_path)
    while time.time() % 1 > 0.5:
        time.sleep(0.01)
    for value in range(3):
        viewer().save(frame + np.uint8(value))
    images = [cv2.imread(str(path)) for path in sorted(tmp_path.glob("expressions-*.png"))]
    assert sorted(int(photo[0, 0, 0]) for photo in images) == [128, 129, 130]


@pytest.mark.faults
def test_the_key_s_where_the_folder_is_gone(tmp_path, frame, monkeypatch, capfd):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    viewer().save(frame)
    assert "can't be written (No such file" in capfd.readouterr().out


def test_the_key_n_is_for_the_recognizer_and_the_line_tells_its_state(frame, monkeypatch, capsys):
    lines, keys, recognizer = [], iter("n "), SimpleNamespace(labels=EMOTIONS, neutral_status="")
    recognizer.toggle_neutral = lambda: setattr(recognizer, "neutral_status", "neutral face: on")
    monkeypatch.setattr(viewer_module, "draw_status", lambda image, line: lines.append(line))
    viewer = Viewer(recognizer, False)
    viewer.window = SimpleNamespace(show=lambda image, fps, name: next(keys))
    for _ in range(2):
        assert viewer.show(frame, [], SimpleNamespace(is_image=False, camera=True, fps=None, name="camera"))
    recognizer.toggle_neutral = lambda: setattr(recognizer, "neutral_status", "")
    viewer._toggle_neutral()
    assert capsys.readouterr().out == ""  # it says something only where it does nothing
    assert ["neutral face: on" in line for line in lines] == [False, True] and "n neutral" in lines[0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [(EMOTIONS, "no face of a camera or video is seen"), (("sad",), "the model has no class neutral")],
)
def test_the_key_n_says_why_it_does_nothing(frame, monkeypatch, capsys, labels, words):
    lines, keys, recognizer = [], iter("n "), SimpleNamespace(labels=labels, neutral_status="")
    recognizer.toggle_neutral = lambda: None
    monkeypatch.setattr(viewer_module, "draw_status", lambda image, line: lines.append(line))
    viewer = Viewer(recognizer, False)
    viewer.window = SimpleNamespace(show=lambda image, fps, name: next(keys))
    for _ in range(2):
        assert viewer.show(frame, [], SimpleNamespace(is_image=False, camera=True, fps=None, name="camera"))
    assert capsys.readouterr().out == f"No neutral face: {words}\n"
    assert {"n neutral" in line for line in lines} == {"neutral" in labels}
