"""The drawing: on a copy, in the right place, legible everywhere."""

import numpy as np
import pytest

from expressions import overlay
from expressions.faces import Box, Face


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (1080, 1920), (120, 160)])
def test_draws_on_a_copy_at_any_size(size):
    height, width = size
    frame = np.full((height, width, 3), 90, np.uint8)
    box = Box(width // 4, height // 3, width // 4, height // 3)
    picture = overlay.draw(frame, [Face(box, "happy", 0.93)], "25 frames/s")
    assert (frame == 90).all() and picture.shape == frame.shape
    assert (picture == overlay.COLOURS["happy"]).all(axis=2).any()
    inside = picture[box.y + box.height // 2, box.x + box.width // 2]
    assert (inside == 90).all()  # the face itself stays visible


def test_no_face_and_no_status_change_nothing():
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    np.testing.assert_array_equal(overlay.draw(frame, []), frame)


@pytest.mark.parametrize("box", [Box(0, 0, 80, 80), Box(560, 0, 80, 80), Box(300, 400, 80, 80)])
def test_a_label_at_the_edge_stays_in_the_picture(box):
    """As many pixels of the plate are seen at the edge as in the middle of the frame."""
    frame = np.zeros((480, 640, 3), np.uint8)

    def plate(at):
        picture = overlay.draw(frame, [Face(at, "surprise", 1.0)])
        return (picture == overlay.COLOURS["surprise"]).all(axis=2).sum()

    assert plate(box) > 0.9 * plate(Box(280, 200, 80, 80))


def test_a_label_of_another_data_set_is_drawn_too():
    picture = overlay.draw(np.zeros((200, 200, 3), np.uint8), [Face(Box(50, 80, 60, 60), "tired", 0.5)])
    assert (picture == overlay.OTHER_COLOUR).all(axis=2).any()
