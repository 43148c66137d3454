"""Images as a camera sees them: as strong as their names say, the same every time, in turn over a split."""

import numpy as np
import pytest

from expressions.training import dataset, metrics, synthetic
from expressions.training.corruptions import CORRUPTIONS, corrupt, corrupt_in_turn

FACES = synthetic.draw_faces(3, seed=0)[0]


def test_each_corruption_does_what_its_name_says():
    corrupted = corrupt(FACES)
    assert list(corrupted) == list(CORRUPTIONS) and len(corrupted) == 7
    for name, images in corrupted.items():
        assert images.shape == FACES.shape and images.dtype == np.uint8, name
        assert 1 < np.abs(images.astype(float) - FACES).mean() < 70, name
    gray = np.full((4, 48, 48), 100, np.uint8)
    noise = corrupt(gray)["noise of 10 gray levels"]
    assert noise.std() == pytest.approx(10, abs=0.3) and noise.mean() == pytest.approx(100, abs=0.3)
    assert (corrupt(gray)["gamma 2"] == round(255 * (100 / 255) ** 2)).all()
    assert (corrupt(gray)["half contrast"] == 114).all()
    points = np.zeros((2, 48, 48), np.uint8)
    points[:, 23:25, 40:42] = 255  # right of the centre: turned up in one image, and down in the next
    rows = [np.average(np.arange(48), weights=image.sum(axis=1)) for image in corrupt(points)["turned by 20 degrees"]]
    np.testing.assert_allclose(rows, 23.5 + np.array([1, -1]) * 17 * np.sin(np.radians(20)), atol=0.3)


def test_they_are_the_same_every_time_and_spread_over_the_images():
    first, again = corrupt_in_turn(FACES), corrupt_in_turn(FACES)
    np.testing.assert_array_equal(first, again)
    every = corrupt(FACES)
    for name in ("blur of one pixel", "gamma 2", "half contrast", "JPEG of quality 40"):  # that go image by image
        number = list(CORRUPTIONS).index(name)
        np.testing.assert_array_equal(first[number::7], every[name][number::7])
    assert (first != FACES).any(axis=(1, 2)).all()
    assert len(corrupt_in_turn(FACES[:2])) == 2


def test_a_model_is_measured_on_each_of_them():
    class Dark:
        """Takes every image darker than its labels' first one for a cat."""

        labels, has_votes = ("cat", "dog"), False

        def predict_logits(self, images, mirrored):
            return np.eye(2)[[int(image.mean() > 90) for image in images]]

        def probabilities(self, views, votes):
            return views[0]

    images = np.stack([np.full((48, 48), level, np.uint8) for level in (50, 120)])
    table = metrics.evaluate_corrupted(Dark(), dataset.Split(images, np.array([0, 1])), ("cat", "dog"))
    assert table.loc["blur of one pixel", "top-1"] == 1 and table.loc["gamma 2", "top-1"] == 0.5
    assert table.loc["mean", "top-1"] == pytest.approx(table["top-1"][:-1].mean()) and len(table) == 8
    assert metrics.format_corrupted(table).loc["gamma 2"].tolist() == ["50.0%", "0.333"]
