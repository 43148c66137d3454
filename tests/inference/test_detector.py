"""The face detector on frames with drawn faces, and what it says when it can't work."""

import cv2
import numpy as np
import pytest
from conftest import ROOT

from expressions import EMOTIONS, UserError
from expressions.images import crop
from expressions.inference.detector import HaarDetector
from expressions.inference.tracker import Tracker
from expressions.inference.types import Detection
from expressions.training import synthetic

CASCADE = ROOT / "haarcascade_frontalface_default.xml"


@pytest.fixture(scope="module")
def detector():
    return HaarDetector(CASCADE)


def boxes(detector, gray):
    """Of the faces in a single frame, from left to right."""
    return sorted(track.box for track in Tracker(detector).update(gray, 0.0))


def iou(box, other):
    """Intersection over union of two boxes (x, y, width, height)."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (box[2] * box[3] + other[2] * other[3] - shared)


def test_finds_the_drawn_faces_of_every_expression(detector):
    random, found = np.random.default_rng(3), 0
    for emotion in EMOTIONS * 3:
        gray = np.full((480, 640), 128, np.uint8)
        gray[100:300, 250:450] = synthetic.draw_face(emotion, random, 200)
        found += any(iou(box, (250, 100, 200, 200)) > 0.6 for box in boxes(detector, gray))
    assert found >= 19, f"{found} of 21"


def test_boxes_of_a_large_frame_are_in_its_own_pixels_and_within_it(detector):
    gray = np.full((1080, 1920), 128, np.uint8)
    gray[200:800, 0:600] = synthetic.draw_face("neutral", np.random.default_rng(0), 600)
    gray[300:700, 1300:1700] = synthetic.draw_face("happy", np.random.default_rng(1), 400)
    found = boxes(detector, gray)
    assert iou(found[0], (0, 200, 600, 600)) > 0.6 and iou(found[-1], (1300, 300, 400, 400)) > 0.6
    for box in found:
        assert box.x >= 0 and box.y >= 0 and box.x + box.width <= 1920 and box.y + box.height <= 1080
        assert crop(gray, box).shape == (box.height, box.width)


def test_a_face_is_found_at_the_same_place_in_the_mirror_image(detector):
    """Looked for beside its place, so that a box that is not turned back would lie on the other side."""
    gray = np.full((480, 640), 128, np.uint8)
    gray[150:350, 250:450] = synthetic.draw_face("happy", np.random.default_rng(0), 200)
    for flip in (False, True):
        face = max(detector.detect_near(gray, Detection(380, 250, 200), flip=flip), key=lambda face: face.score)
        assert abs(face.x - 350) < 10 and abs(face.y - 250) < 20 and face.score > 2, (flip, face)


@pytest.mark.faults
def test_finds_nothing_where_nothing_is(detector):
    assert boxes(detector, np.zeros((480, 640), np.uint8)) == []
    assert boxes(detector, np.full((1, 1), 200, np.uint8)) == []


@pytest.mark.faults
def test_says_what_is_wrong_with_the_cascade(tmp_path, monkeypatch):
    (tmp_path / "empty.xml").touch()
    (tmp_path / "other.xml").write_text('<?xml version="1.0"?><opencv_storage></opencv_storage>')
    (tmp_path / "text.xml").write_text("no cascade")
    with pytest.raises(UserError, match="no such cascade file"):
        HaarDetector(tmp_path / "missing.xml")
    for name in ("empty", "other", "text"):
        with pytest.raises(UserError, match="not a Haar cascade"):
            HaarDetector(tmp_path / f"{name}.xml")
    monkeypatch.delattr(cv2, "CascadeClassifier")  # as in OpenCV 5
    with pytest.raises(UserError, match="opencv-python<5"):
        HaarDetector(CASCADE)
