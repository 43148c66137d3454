"""Data sets made ready to train on: splits, classes, and copies of images."""

import os
import shutil
import time

import cv2
import numpy as np
import pytest
from conftest import gray_png, write_data, write_images

from expressions import EMOTIONS, UserError
from expressions.training import dataset, synthetic


def counts(data):
    return {name: len(split.images) for name, split in data.splits.items()}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "Val", "PublicTest"])
def test_folders_with_a_validation_split(tmp_path, name):
    data = dataset.load(write_data(tmp_path, {"train": 2, name: 1}))
    assert counts(data) == {"train": 14, "validation": 7}
    assert data.labels == EMOTIONS
    assert data.splits["train"].images.shape == (14, 48, 48) and data.splits["train"].images.dtype == np.uint8
    assert data.splits["train"].labels.tolist() == sorted(list(range(7)) * 2)
    assert data.counts().loc["all"].tolist() == [14, 7]


def test_folders_of_the_names_in_the_challenge(tmp_path):
    data = dataset.load(write_data(tmp_path, {"Training": 3, "PublicTest": 2, "PrivateTest": 1}))
    assert counts(data) == {"train": 21, "validation": 14, "test": 7} and data.notes == ()


def test_one_level_down_as_in_images_train(tmp_path):
    write_data(tmp_path / "images", {"train": 1, "validation": 1})
    assert counts(dataset.load(tmp_path)) == {"train": 7, "validation": 7}


def test_class_folders_alone_and_no_split_of_their_own(tmp_path):
    write_data(tmp_path, {"train": 20})
    data = dataset.load(tmp_path / "train")
    assert counts(data) == {"train": 126, "validation": 14}
    assert np.bincount(data.splits["validation"].labels).tolist() == [2] * 7  # stratified
    measured = dataset.load(tmp_path / "train", training=False)  # the same images, whatever else is done with them
    assert measured.fingerprint() == data.fingerprint()
    assert any("held 14 images" in note for note in data.notes)


def test_kaggle_keeps_both_test_sets_in_one_folder(tmp_path):
    write_data(tmp_path, {"train": 3}, name="Training_{index}.png")
    random = np.random.default_rng(1)
    for index, label in enumerate(EMOTIONS):
        place = tmp_path / "test" / label
        place.mkdir(parents=True)
        for name in [f"PublicTest_{index}.png", f"PrivateTest_{index}.png", f"PrivateTest_1{index}.png"]:
            cv2.imwrite(str(place / name), synthetic.draw_face(label, random))
    public = cv2.imread(str(tmp_path / "test" / "happy" / "PublicTest_3.png"), cv2.IMREAD_GRAYSCALE)
    data = dataset.load(tmp_path)
    assert counts(data) == {"train": 21, "validation": 7, "test": 14}
    np.testing.assert_array_equal(data.splits["validation"].images[EMOTIONS.index("happy")], public)
    assert len(data.notes) == 1 and "took 7 files of test for validation" in data.notes[0]
    shutil.copy(tmp_path / "test" / "happy" / "PublicTest_3.png", tmp_path / "test" / "happy" / "mine.png")
    data = dataset.load(tmp_path)  # then the folder is somebody's own
    assert counts(data) == {"train": 14, "validation": 7, "test": 22}
    assert any("left 7 files called PublicTest in test" in note and "PublicTest_0.png" in note for note in data.notes)


def test_a_test_folder_without_those_names_is_a_test_split(tmp_path):
    assert counts(dataset.load(write_data(tmp_path, {"train": 10, "test": 2}))) == {
        "train": 63,
        "validation": 7,
        "test": 14,
    }


def test_training_images_that_stand_in_validation_too_are_dropped(tmp_path):
    write_data(tmp_path, {"train": 3, "validation": 2})
    shutil.copy(tmp_path / "validation" / "sad" / "sad_0.png", tmp_path / "train" / "sad" / "leak.png")
    shutil.copy(tmp_path / "validation" / "fear" / "fear_1.png", tmp_path / "train" / "angry" / "leak.png")
    shutil.copy(tmp_path / "train" / "sad" / "sad_0.png", tmp_path / "train" / "happy" / "twin.png")
    data = dataset.load(tmp_path)
    assert counts(data) == {"train": 22, "validation": 14}
    seen = {image.tobytes() for image in data.splits["validation"].images}
    assert not any(image.tobytes() in seen for image in data.splits["train"].images)
    assert "dropped 2 training images that also stand in validation, pixel for pixel" in data.notes
    assert "kept 1 images of train that copy another one there; 1 images have several labels" in data.notes


def test_for_measuring_every_image_stays_and_no_training_image_is_needed(tmp_path):
    write_data(tmp_path, {"train": 3, "validation": 2})
    shutil.copy(tmp_path / "validation" / "sad" / "sad_0.png", tmp_path / "train" / "sad" / "leak.png")
    data = dataset.load(tmp_path, training=False)
    assert counts(data) == {"train": 22, "validation": 14}
    shared = dataset.duplicate_mask(data.splits["validation"], data.splits["train"])
    assert shared.sum() == 1 and data.splits["validation"].labels[shared].tolist() == [EMOTIONS.index("sad")]
    data = dataset.load(write_data(tmp_path / "exam", {"test": 2}), training=False)
    assert counts(data) == {"test": 14}


def test_other_classes_than_the_seven(tmp_path):
    data = dataset.load(write_data(tmp_path, {"train": 3, "validation": 1}, labels=("Tired", "awake", "asleep")))
    assert data.labels == ("asleep", "awake", "tired")


@pytest.mark.faults
def test_a_class_called_as_what_is_said_of_unclear_faces(tmp_path):
    data = write_data(tmp_path, {"train": 3, "validation": 1}, labels=("happy", "Uncertain"))
    with pytest.raises(UserError, match="a class is called uncertain, which means that none is likely; rename it"):
        dataset.load(data)


@pytest.mark.faults
def test_a_class_whose_name_no_model_file_takes(tmp_path):
    data = write_data(tmp_path, {"train": 3, "validation": 1}, labels=("happy", "x" * 101))
    with pytest.raises(UserError, match="names of at most 100 characters; join or rename some"):
        dataset.load(data)
    assert dataset.load(data, training=False)


@pytest.mark.faults
def test_the_same_image_under_two_labels_and_in_two_splits(tmp_path):
    data = write_images(tmp_path)
    for name in ("train/sad/b2.png", "train/happy/b3.png", "validation/sad/b4.png"):
        (data / name).write_bytes((data / "train" / "sad" / "b.png").read_bytes())
    (data / "train" / "sad" / "e.png").write_bytes(gray_png(200))
    for name in ("train/sad/f.png", "train/happy/f.png"):
        (data / name).write_bytes(gray_png(250))
    loaded = dataset.load(data)
    assert loaded.counts().loc["all"].tolist() == [4, 3]
    assert any("dropped 3 training images that also stand in validation" in note for note in loaded.notes)
    assert any("copy another one there; 1 images have several labels" in note for note in loaded.notes)


@pytest.mark.faults
@pytest.mark.slow
def test_ten_thousand_files(tmp_path):
    """Hard links to two hundred images, each of which stands there 51 times."""
    random = np.random.default_rng(0)
    for label in ("happy", "sad"):
        for number in range(100):
            place = tmp_path / "train" / label / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), random.integers(0, 256, (48, 48), dtype=np.uint8))
            for copy in range(50):
                os.link(place, place.with_name(f"{number}_{copy}.png"))
    began = time.process_time()
    data = dataset.load(tmp_path)
    assert data.counts().loc["all", "validation"] == 1020 and time.process_time() - began < 60
    seen = {image.tobytes() for image in data.splits["validation"].images}
    assert len(data.splits["train"].images) == 51 * (200 - len(seen))  # no copy of what was held out


@pytest.mark.faults
def test_drawn_data_are_no_fault(tmp_path):
    """What all of the above is measured against: nothing is said of a data set without faults."""
    assert dataset.load(write_data(tmp_path / "data")).notes == ()
