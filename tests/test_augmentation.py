"""OpenCV's warp does what ImageDataGenerator's parameters say; what is made ahead is the same."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from expressions.training import synthetic
from expressions.training.augmentation import Ahead, OpenCVImageDataGenerator, erase

REST = {"theta": 0, "tx": 0, "ty": 0, "zx": 1, "zy": 1, "flip_horizontal": False}


@pytest.fixture
def face():
    return synthetic.draw_face("fear", np.random.default_rng(2)).astype(np.float32)[..., None]


def warp(image, **parameters):
    return OpenCVImageDataGenerator().apply_transform(image, REST | parameters)


def test_nothing_to_do_leaves_the_image_as_it_is(face):
    np.testing.assert_array_equal(warp(face), face)


def test_flip(face):
    np.testing.assert_allclose(warp(face, flip_horizontal=True), face[:, ::-1], atol=1e-3)


def test_shift_repeats_the_border(face):
    np.testing.assert_allclose(warp(face, tx=3)[:, :-3], face[:, 3:], atol=1e-3)
    np.testing.assert_allclose(warp(face, ty=-5)[5:], face[:-5], atol=1e-3)
    np.testing.assert_allclose(warp(face, ty=-5)[:5], np.repeat(face[:1], 5, axis=0), atol=1e-3)


def test_rotation_by_a_right_angle(face):
    np.testing.assert_allclose(warp(face, theta=90), np.rot90(face), atol=1e-3)


def test_zoom_in_shows_the_middle_larger(face):
    zoomed = warp(face, zx=0.5, zy=0.5)
    np.testing.assert_allclose(zoomed[::2, ::2][:, :, 0].mean(), face[12:36, 12:36].mean(), atol=4)
    assert abs(zoomed.mean() - face.mean()) > 1


def test_everything_at_once_in_keras_s_order(face):
    """Flipped, zoomed, shifted and turned by a right angle: worked out with NumPy on a pixel grid."""
    both = warp(face, theta=90, tx=4, ty=-2, flip_horizontal=True)
    by_hand = np.rot90(face)  # the turn comes first in the source, so the shift runs along the turned axes
    by_hand = np.roll(by_hand, (2, -4), axis=(0, 1))[:, ::-1]
    np.testing.assert_allclose(both[6:-6, 6:-6], by_hand[6:-6, 6:-6], atol=1e-3)


@pytest.mark.parametrize("option", [{"shear_range": 5}, {"vertical_flip": True}, {"fill_mode": "wrap"}])
def test_options_that_it_does_not_know_are_refused(face, option):
    with pytest.raises(ValueError, match="rotation, shift, zoom"):
        for _ in range(50):
            OpenCVImageDataGenerator(**option).random_transform(face)


def test_options_bound_the_warp_and_numpy_s_seed_decides_it(face):
    generator = OpenCVImageDataGenerator(
        rescale=1 / 255, rotation_range=10, width_shift_range=0.1, zoom_range=0.1, horizontal_flip=True
    )
    images = np.repeat(face[None], 32, axis=0)
    np.random.seed(4)
    first = next(generator.flow(images, batch_size=32, shuffle=False))
    np.random.seed(4)
    again = next(generator.flow(images, batch_size=32, shuffle=False))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (32, 48, 48, 1) and first.dtype == np.float32
    assert 0 <= first.min() and first.max() <= 1
    assert len({image.tobytes() for image in first}) == 32


def test_erasing_takes_one_rectangle_of_half_the_images():
    np.random.seed(0)
    erased = 0
    for _ in range(400):
        image = erase(np.full((48, 48, 1), -1, np.float32), 0.5)
        rows, columns = np.nonzero(image[:, :, 0] != -1)
        if not rows.size:
            continue
        erased += 1
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert rows.size == height * width and 0.015 * 48**2 <= rows.size <= 0.22 * 48**2
        assert image.max() <= 255 and image[rows, columns].min() >= 0 and image[rows, columns].std() > 10
    assert 160 < erased < 240


class Drawn(keras.utils.PyDataset):
    """Batches of random numbers; the one of the number `bad` fails."""

    def __init__(self, bad=None):
        super().__init__()
        self.bad = bad

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == self.bad:
            raise OSError("no such batch")
        return np.random.random(3)


def test_batches_made_ahead_are_drawn_in_their_order():
    np.random.seed(3)
    expected = [Drawn()[index] for index in range(6)]
    ahead = Ahead(Drawn())
    for _ in range(2):  # epochs
        np.random.seed(3)
        with ThreadPoolExecutor(2) as threads:  # the later one of two asks first
            futures = {index: threads.submit(ahead.__getitem__, index) for index in (1, 0, 3, 2, 5, 4)}
        np.testing.assert_array_equal([futures[index].result() for index in range(6)], expected)


def test_a_batch_that_fails_does_not_hold_up_the_others():
    ahead = Ahead(Drawn(bad=1))
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(ahead.__getitem__, index) for index in range(6)]
    assert [future.exception(timeout=10) is not None for future in futures] == [False, True, *[False] * 4]
