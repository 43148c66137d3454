"""What a network learns of an image, and what becomes of it in the model that ships."""

import keras
import numpy as np
import pytest

from expressions.training import targets


def test_the_loss_counts_votes_and_an_image_without_votes_by_its_label_alone():
    loss, accuracy = targets.loss_and_accuracy(2, 0.1)
    logits = np.log([[0.7, 0.3, 0.5, 0.3, 0.2]]).astype(np.float32)
    smooth = -(0.95 * np.log(0.7) + 0.05 * np.log(0.3))
    with_votes, without = np.float32([[1, 0, 0.6, 0.4, 0]]), np.float32([[1, 0, 0, 0, 0]])
    assert np.asarray(loss(without, logits))[0] == pytest.approx(smooth, rel=1e-4)
    votes = -(0.6 * np.log(0.5) + 0.4 * np.log(0.3))
    assert np.asarray(loss(with_votes, logits))[0] == pytest.approx(smooth + votes, rel=1e-4)
    assert np.asarray(accuracy(with_votes, logits))[0] == 1
    assert np.asarray(accuracy(np.float32([[0, 1, 1, 0, 0]]), logits))[0] == 0


def test_an_image_without_votes_does_not_move_what_predicts_them():
    dense = keras.layers.Dense(5, use_bias=False, kernel_initializer="zeros")
    network = keras.Sequential([keras.Input((1,)), dense])
    network.compile(keras.optimizers.SGD(1.0), targets.loss_and_accuracy(2, 0)[0])
    network.train_on_batch(np.ones((1, 1), np.float32), np.float32([[1, 0, 0, 0, 0]]))
    labels, votes = np.split(network.get_weights()[0][0], [2])
    assert labels[0] > 0.1 and np.abs(votes).max() < 1e-6
    network.train_on_batch(np.ones((1, 1), np.float32), np.float32([[1, 0, 0.7, 0.2, 0.1]]))
    assert network.get_weights()[0][0, 2] > 0.1


def test_labels_come_first_then_votes():
    votes = np.float32([[0.6, 0.3, 0.1], [0, 0, 0]])
    labels = np.array([1, 0])
    np.testing.assert_allclose(
        targets.make_targets(labels, votes, 2), [[0, 1, 0.6, 0.3, 0.1], [1, 0, 0, 0, 0]], atol=1e-6
    )
    np.testing.assert_array_equal(targets.make_targets(labels, None, 2), [[0, 1], [1, 0]])


def test_the_network_that_ships_tells_labels_alone_and_rare_ones_more_readily():
    random = np.random.default_rng(0)
    kernel, bias, features = (random.normal(size=size) for size in ((4, 5), 5, (3, 4)))
    logits = features @ kernel + bias
    first, labels_kernel, labels_bias = targets.extract_label_head([features, kernel, bias], np.array([90, 10]), 0.5)
    assert first is features
    adjusted = features @ labels_kernel + labels_bias
    ratio = np.exp(np.diff(adjusted)) / np.exp(np.diff(logits[:, :2]))
    np.testing.assert_allclose(ratio, np.sqrt(90 / 10))
