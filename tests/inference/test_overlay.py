"""The drawing: on a copy, in the right place, legible everywhere."""

import numpy as np
import pytest

from expressions import EMOTIONS, UNCERTAIN
from expressions.inference import overlay
from expressions.inference.types import Box, Face


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (1080, 1920), (120, 160)])
def test_draws_on_a_copy_at_any_size(size):
    height, width = size
    frame = np.full((height, width, 3), 90, np.uint8)
    box = Box(width // 4, height // 3, width // 4, height // 3)
    image = overlay.draw(frame, [Face(box, "happy", 0.93, 1, ())])
    assert (frame == 90).all() and image.shape == frame.shape
    assert (image == overlay.COLOURS["happy"]).all(axis=2).any()
    inside = image[box.y + box.height // 2, box.x + box.width // 2]
    assert (inside == 90).all()  # the face itself stays visible


def test_no_face_changes_nothing():
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    np.testing.assert_array_equal(overlay.draw(frame, []), frame)


@pytest.mark.parametrize("box", [Box(0, 0, 80, 80), Box(560, 0, 80, 80), Box(300, 400, 80, 80)])
def test_a_label_at_the_edge_stays_in_the_image(box):
    """As many pixels of the plate are seen at the edge as in the middle of the frame."""
    frame = np.zeros((480, 640, 3), np.uint8)

    def plate(at):
        image = overlay.draw(frame, [Face(at, "surprise", 1.0, 1, ())])
        return (image == overlay.COLOURS["surprise"]).all(axis=2).sum()

    assert plate(box) > 0.9 * plate(Box(280, 200, 80, 80))


def test_a_label_of_another_data_set_is_drawn_too():
    image = overlay.draw(np.zeros((200, 200, 3), np.uint8), [Face(Box(50, 80, 60, 60), "tired", 0.5, 1, ())])
    assert (image == overlay.OTHER_COLOUR).all(axis=2).any()


def test_bars_are_as_long_as_expressions_are_likely():
    frame = np.zeros((480, 640, 3), np.uint8)
    face = Face(Box(100, 200, 120, 120), UNCERTAIN, 0.5, 1, (0.5, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0))
    image = overlay.draw(frame, [face], EMOTIONS)
    longest = {
        label: (image == overlay.COLOURS[label]).all(axis=2).sum(axis=1).max() for label in ("angry", "happy", "fear")
    }
    assert longest["angry"] == pytest.approx(2 * longest["happy"], abs=2) and longest["fear"] <= 1
    assert longest["happy"] > 5


def test_bars_cover_no_other_face_and_no_other_bars():
    """Four faces side by side, with no room between them: each has its own bars, on its chin."""
    frame = np.full((480, 960, 3), 200, np.uint8)
    row = [Face(Box(10 + 235 * i, 150, 230, 230), "happy", 1.0, i, (0, 0, 0, 1.0, 0, 0, 0)) for i in range(4)]
    dark = (overlay.draw(frame, row, EMOTIONS) == 50).all(axis=2)  # what lies under bars
    for face in row:
        x, y, width, height = face.box
        inside = dark[y : y + height, x : x + width]
        assert inside[height // 2 :].mean() > 0.1 and not inside[: height // 3].any()
    alone = overlay.draw(frame, row[:1], EMOTIONS)
    assert (alone[:, 245:] == 50).any() and not (alone[150:380, 15:235] == 50).any()  # beside it, where there is room


def test_number_and_confidence_are_written_and_an_uncertain_face_has_none():
    """Told by the width of the plate."""

    def width(**values):
        face = Face(Box(200, 200, 50, 50), "happy", 0.5, 1, ())._replace(**values)
        image = overlay.draw(np.zeros((480, 640, 3), np.uint8), [face])
        return (image[185:195] > 0).any(axis=(0, 2)).sum()

    assert width(track_id=33) > width(track_id=3) and width(label=UNCERTAIN) < width(label="unnerving")


@pytest.mark.parametrize("size", [(240, 320), (1080, 1920)])
def test_the_line_of_keys_stands_whole_in_the_lower_left_corner(size):
    image = np.zeros((*size, 3), np.uint8)
    overlay.draw_status(image, "25 frames/s   q quit  s save  p pause  b bars  m mirror  h hide")
    drawn = (image > 0).any(axis=2)
    assert drawn[-1, 0] and not drawn[: size[0] // 2].any() and not drawn[:, -1].any() and drawn.any(axis=0).sum() > 200


@pytest.mark.faults
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), pytest.param((4320, 7680), marks=pytest.mark.slow)])
def test_any_box_is_drawn_on_any_frame(size):
    """Boxes that lie outside, or that are larger than the frame, on frames with no room for a word."""
    for box in (Box(0, 0, 1, 1), Box(-50, -40, 100, 100), Box(size[1] - 5, 0, 300, 300), Box(-9, 0, 10**6, 10**6)):
        image = overlay.draw(np.zeros((*size, 3), np.uint8), [Face(box, "happy", 1.0, 1, np.full(7, 1 / 7))], EMOTIONS)
        overlay.draw_status(image, "25 frames/s   q quit")
        assert image.shape == (*size, 3)
