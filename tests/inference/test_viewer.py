"""What the keys do, without a window."""

import os
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import fill

from expressions import EMOTIONS
from expressions.inference.viewer import Viewer


def viewer():
    """What the key s needs, without a window."""
    return Viewer(EMOTIONS, False)


def test_the_line_of_keys_is_hidden_and_shown_again(frame):
    viewer, shown, keys = Viewer(EMOTIONS, False), [], iter("hh ")
    viewer.window = SimpleNamespace(show=lambda photo, fps: shown.append(photo) or next(keys))
    for _ in range(3):
        viewer.last = None  # else the line tells how many frames a second there are
        assert viewer.show(frame, [], SimpleNamespace(is_image=False, camera=False, fps=None))
    np.testing.assert_array_equal(shown[1], frame)
    np.testing.assert_array_equal(shown[2], shown[0])
    assert (shown[0] != frame).any()


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
