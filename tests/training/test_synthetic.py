"""The drawn faces: reproducible, varied, and told apart by their expression."""

import numpy as np
import pytest

from expressions import EMOTIONS
from expressions.training import synthetic


def test_the_seed_decides_every_pixel():
    images, labels = synthetic.draw_faces(3, seed=5)
    again, _ = synthetic.draw_faces(3, seed=5)
    other, _ = synthetic.draw_faces(3, seed=6)
    assert images.shape == (21, 48, 48) and images.dtype == np.uint8
    assert labels.tolist() == sorted(list(range(7)) * 3)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)
    assert len({image.tobytes() for image in images}) == 21


def test_faces_vary_in_light():
    images, _ = synthetic.draw_faces(20, seed=0)
    means = images.mean(axis=(1, 2))
    assert means.std() > 15 and 40 < means.mean() < 200


@pytest.mark.slow
def test_the_expression_shows_in_the_middle_of_the_face():
    """The mean faces of two drawings of the same expression are closer than those of any two expressions."""
    first, labels = synthetic.draw_faces(150, seed=1)
    second, _ = synthetic.draw_faces(150, seed=2)
    means = [
        np.stack([normal(images[labels == index].mean(axis=0)) for index in range(7)]) for images in (first, second)
    ]
    distance = ((means[0][:, None] - means[1][None]) ** 2).mean(axis=(2, 3))
    assert distance.argmin(axis=1).tolist() == list(range(len(EMOTIONS)))


def normal(image):
    """Brows, eyes and mouth alone, with light and contrast taken out."""
    part = image[10:44, 8:40]
    return (part - part.mean()) / part.std()
