"""OpenCV's warp does what ImageDataGenerator's parameters say; random numbers follow from seed, epoch and batch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expressions.training import synthetic
from expressions.training.augmentation import GROUP, OpenCVImageDataGenerator, random_erasing, random_photometry

REST = {"theta": 0, "tx": 0, "ty": 0, "zx": 1, "zy": 1, "flip_horizontal": False}
GRAY_LEVELS = 1.01  # a warp rounds to one of them


@pytest.fixture
def face():
    return synthetic.draw_face("fear", np.random.default_rng(2))[..., None]


def warp(image, **parameters):
    drawn = {name: np.array([value]) for name, value in (REST | parameters).items()}
    return OpenCVImageDataGenerator().apply_transform(image[None], drawn)[0].astype(float)


def test_nothing_to_do_leaves_the_image_as_it_is(face):
    np.testing.assert_array_equal(warp(face), face)


def test_flip(face):
    np.testing.assert_allclose(warp(face, flip_horizontal=True), face[:, ::-1], atol=GRAY_LEVELS)


def test_shift_repeats_the_border(face):
    np.testing.assert_allclose(warp(face, tx=3)[:, :-3], face[:, 3:], atol=GRAY_LEVELS)
    np.testing.assert_allclose(warp(face, ty=-5)[5:], face[:-5], atol=GRAY_LEVELS)
    np.testing.assert_allclose(warp(face, ty=-5)[:5], np.repeat(face[:1], 5, axis=0), atol=GRAY_LEVELS)


def test_rotation_by_a_right_angle(face):
    np.testing.assert_allclose(warp(face, theta=90), np.rot90(face), atol=GRAY_LEVELS)


def test_zoom_in_shows_the_middle_larger(face):
    zoomed = warp(face, zx=0.5, zy=0.5)
    np.testing.assert_allclose(zoomed[::2, ::2][:, :, 0].mean(), face[12:36, 12:36].mean(), atol=4)
    assert abs(zoomed.mean() - face.mean()) > 1


def test_everything_at_once_in_keras_s_order(face):
    """Flipped, zoomed, shifted and turned by a right angle: worked out with NumPy on a pixel grid."""
    both = warp(face, theta=90, tx=4, ty=-2, flip_horizontal=True)
    by_hand = np.rot90(face)  # the turn comes first in the source, so the shift runs along the turned axes
    by_hand = np.roll(by_hand, (2, -4), axis=(0, 1))[:, ::-1]
    np.testing.assert_allclose(both[6:-6, 6:-6], by_hand[6:-6, 6:-6], atol=GRAY_LEVELS)


def test_each_group_of_a_batch_has_the_warp_that_was_drawn_for_it():
    """More groups than one stack of them holds, the last of them not full, and images that are not square."""
    random, count = np.random.default_rng(0), 37
    images = random.integers(0, 256, (count * GROUP - 1, 20, 30, 1), dtype=np.uint8)
    drawn = {name: np.repeat(value, count) for name, value in REST.items()} | {"tx": np.arange(count) % 5}
    warped = OpenCVImageDataGenerator().apply_transform(images, drawn)
    assert warped.shape == images.shape
    for index, (image, result) in enumerate(zip(images, warped, strict=True)):
        shift = drawn["tx"][index % count]
        np.testing.assert_array_equal(result[:, : 30 - shift], image[:, shift:])
        np.testing.assert_array_equal(result[:, 30 - shift :], np.repeat(image[:, -1:], shift, axis=1))


@pytest.mark.parametrize("option", [{"shear_range": 5}, {"vertical_flip": True}, {"fill_mode": "wrap"}])
def test_options_that_it_does_not_know_are_refused(option):
    with pytest.raises(ValueError, match=f"does without {next(iter(option))}"):
        OpenCVImageDataGenerator(**option)


@pytest.fixture
def batches(face):
    """Of 45 images, each of which has its number as its target, with every kind of augmentation."""
    generator = OpenCVImageDataGenerator(
        erasing_probability=0.5, photometric_probability=0.7, rescale=1 / 255, rotation_range=10,
        width_shift_range=0.1, height_shift_range=0.1,
        zoom_range=0.1, horizontal_flip=True,
    )  # fmt: skip
    images = np.stack([np.roll(face, index, axis=1) for index in range(45)])
    return generator.flow(images, np.arange(45), batch_size=16, shuffle=True, seed=4)


def same(batch, other):
    return all((first == second).all() for first, second in zip(batch, other, strict=True))


def test_options_bound_the_warp_and_the_seed_decides_it(batches):
    images, targets, weights = batches[0]
    assert images.shape == (16, 48, 48, 1) and images.dtype == np.float32 and weights.tolist() == [1] * 16
    assert images.min() >= 0 and images.max() <= 1
    assert len({image.tobytes() for image in images}) == 16
    assert same(batches[0], batches[0])
    again = batches.generator.flow(batches.images, batches.targets, batch_size=16, shuffle=True, seed=4)
    other = batches.generator.flow(batches.images, batches.targets, batch_size=16, shuffle=True, seed=5)
    assert same(again[0], batches[0]) and not same(other[0], batches[0])


def test_every_parameter_is_drawn_within_its_bounds_on_both_sides():
    generator = OpenCVImageDataGenerator(
        rotation_range=10, width_shift_range=0.1, height_shift_range=0.2, zoom_range=0.3, horizontal_flip=True
    )
    drawn = generator.get_random_transform((2000 * GROUP, 50, 100, 1), 0)
    drawn["zoom"], drawn["stretch"] = np.sqrt(drawn["zx"] * drawn["zy"]), (drawn["zx"] / drawn["zy"]) ** 2
    bounds = {"theta": (-10, 10), "tx": (-10, 10), "ty": (-10, 10), "zoom": (0.7, 1.3), "stretch": (0.7, 1.3)}
    for name, (low, high) in bounds.items():
        values = drawn[name]
        assert values.shape == (2000,)
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert 0.45 < drawn["flip_horizontal"].mean() < 0.55
    assert OpenCVImageDataGenerator().get_random_transform((1, 50, 100, 1), 0) == REST


def test_the_order_in_which_threads_ask_for_batches_does_not_matter(batches):
    expected = [batches[index] for index in range(3)]
    np.random.seed(3)  # nor do NumPy's global random numbers
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            futures = {index: threads.submit(batches.__getitem__, index) for index in (2, 0, 1)}
        assert all(same(futures[index].result(), expected[index]) for index in range(3))


def test_every_epoch_has_an_order_and_warps_of_its_own_that_come_again(batches):
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append([batches[index] for index in range(3)])
        assert sorted(np.concatenate([targets for _, targets, _ in epochs[-1]])) == list(range(45))
    seen = [image.tobytes() for epoch in epochs for images, _, _ in epoch for image in images]
    assert len(set(seen)) == 3 * 45 and not (epochs[0][0][1] == epochs[1][0][1]).all()
    batches.set_epoch(1)  # as a run does that is resumed after the first
    assert all(same(batches[index], epochs[1][index]) for index in range(3))


def test_without_shuffling_images_keep_their_order(batches):
    plain = OpenCVImageDataGenerator(rescale=1 / 255).flow(batches.images, batches.targets, 16, shuffle=False)
    for epoch in range(2):
        plain.set_epoch(epoch)
        images, targets, _ = (np.concatenate(parts) for parts in zip(*plain, strict=True))
        assert targets.tolist() == list(range(45))
        np.testing.assert_array_equal(images, batches.images * np.float32(1 / 255))


def test_erasing_takes_one_rectangle_of_half_the_images():
    images = np.zeros((400, 48, 48, 1), np.uint8)
    random_erasing(images, 0.5, np.random.default_rng(0))
    erased, corners = 0, []
    for image in images[..., 0]:
        # a line of noise may begin and end with the level that was there, 0
        rows, columns = np.nonzero(image)
        if rows.size:
            erased += 1
            area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert 0.97 * area < rows.size <= area and 0.015 * 48**2 <= area <= 0.22 * 48**2
            assert image[rows, columns].std() > 50
            corners.append((rows.min(), columns.min(), rows.max(), columns.max()))
    assert 160 < erased < 240
    assert np.min(corners, axis=0).tolist()[:2] == [0, 0] and np.max(corners, axis=0)[2:].min() > 45


def test_photometry_changes_light_sharpness_and_noise_but_not_the_place_of_things():
    """Of a step from dark to light: its levels, its width and its grain change, it stays in the middle."""
    step = np.repeat(np.where(np.arange(48) < 24, 80, 160), 48).reshape(48, 48).T[..., None]
    images = np.repeat(step[None], 600, axis=0).astype(np.uint8)
    random_photometry(images, 0.7, np.random.default_rng(0))
    changed = images[(images != step).any((1, 2, 3))][..., 0].astype(float)
    assert 0.55 < len(changed) / 600 < 0.75
    dark, light = changed[:, :, 2:12].mean((1, 2)), changed[:, :, -12:-2].mean((1, 2))
    grain, width = (
        changed[:, :, 2:12].std((1, 2)),
        np.abs(np.diff(changed.mean(1))).max(1) / np.maximum(light - dark, 1),
    )
    assert (dark <= light).all() and dark.min() < 30 and dark.max() > 130 and light.min() < 110 and light.max() > 220
    assert 0.25 < (grain > 0.5).mean() < 0.45 and 10 < grain.max() < 18
    assert 0.3 < (width < 0.9).mean() < 0.6
    steepest = np.diff(changed.mean(1))[(light - dark > 40) & (grain < 4)].argmax(axis=1)
    assert len(steepest) > 100 and set(steepest) <= {21, 22, 23, 24, 25}
    unchanged = np.repeat(step[None], 5, axis=0).astype(np.uint8)
    random_photometry(unchanged, 0, np.random.default_rng(0))
    assert (unchanged == step).all()


def test_a_batch_that_fails_does_not_hold_up_the_others(batches, monkeypatch):
    standardize = batches.generator.standardize
    bad = iter([True])

    def fail_once(image):
        if next(bad, False):
            raise OSError("no such image")
        return standardize(image)

    monkeypatch.setattr(batches.generator, "standardize", fail_once)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(batches.__getitem__, index) for index in range(3)]
    assert [future.exception(timeout=10) is not None for future in futures].count(True) == 1
