"""From an image of any size and kind to the network's input."""

import numpy as np
import pytest

from expressions.images import preprocess_face


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 1), (48, 48, 3), (48, 48, 4), (7, 200), (300, 310, 3), (1, 1)])
def test_preprocess_face_takes_any_image(shape):
    pixels = preprocess_face(np.full(shape, 77, np.uint8))
    assert pixels.shape == (48, 48) and pixels.dtype == np.uint8
    assert (pixels == 77).all()


def test_preprocess_face_averages_when_it_shrinks():
    checkers = (np.indices((480, 480)).sum(axis=0) % 2 * 200).astype(np.uint8)
    assert (preprocess_face(checkers) == 100).all()
