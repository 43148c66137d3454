"""What training and the webcam agree on: one label order, one way to the network's input."""

from argparse import Namespace

import cv2
import numpy as np
import pytest

import train
from expressions import EMOTIONS, IMAGE_SIZE, UNCERTAIN
from expressions.classifier import Classifier
from expressions.images import crop
from expressions.inference import overlay
from expressions.inference.types import Box
from expressions.training import dataset, readers, synthetic

OPTIONS = Namespace(batch_size=56, seed=0, teacher=[], epochs=1)


def test_a_training_image_and_the_same_face_before_the_camera_give_the_same_tensor_bit_for_bit(data_folder, trained):
    data = dataset.load(data_folder)
    images = train.make_batches(data, train.FROM_SCRATCH, OPTIONS)[1][0][0]
    files = [file for label in EMOTIONS for file in sorted((data_folder / "validation" / label).iterdir())]
    classifier = Classifier.load(trained)
    for file, from_training in zip(files, images[: len(files)], strict=True):
        frame = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
        frame[100:148, 300:348] = cv2.imread(str(file))
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        from_camera = classifier.inputs([crop(gray, Box(300, 100, 48, 48))])[0]
        assert from_camera.dtype == from_training.dtype == np.float32
        np.testing.assert_array_equal(from_camera, from_training)


def test_augmented_images_have_the_scale_of_plain_ones_and_keep_their_labels(data_folder):
    data = dataset.load(data_folder)
    unchanged = train.FROM_SCRATCH._replace(rotation=0, shift=0, zoom=0, erasing=0, photometric=0)
    augmented, plain = (train.make_batches(data, recipe, OPTIONS)[0][0] for recipe in (train.FROM_SCRATCH, unchanged))
    assert augmented[0].mean() == pytest.approx(plain[0].mean(), abs=0.1) and augmented[0].max() <= 1
    for images, one_hot, _ in (augmented, plain):  # shuffled: the nearest original tells which image it was
        nearest = np.corrcoef(images.reshape(56, -1), data.splits["train"].images.reshape(56, -1))[:56, 56:].argmax(
            axis=1
        )
        right = data.splits["train"].labels[nearest] == one_hot.argmax(axis=1)
        assert right.mean() > 0.2, right.mean()  # of seven classes


def test_the_network_sees_values_from_0_to_1(trained):
    inputs = Classifier.load(trained).inputs([np.full((90, 90), 255, np.uint8), np.zeros((20, 20, 3), np.uint8)])
    assert inputs.shape == (2, IMAGE_SIZE, IMAGE_SIZE, 1)
    assert inputs[0].max() == pytest.approx(1) and inputs[1].max() == 0


def test_one_label_order_everywhere(data_folder, trained):
    assert list(EMOTIONS) == sorted(EMOTIONS)
    assert dataset.load(data_folder).labels == Classifier.load(trained).labels == EMOTIONS
    assert set(readers.CSV_CODES.values()) == set(synthetic.EXPRESSIONS) == set(EMOTIONS)
    assert set(overlay.COLOURS) == {*EMOTIONS, UNCERTAIN}
