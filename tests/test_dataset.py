"""Data sets in every layout that people download, and what is said of those that are none."""

import shutil

import cv2
import numpy as np
import pytest
from conftest import write_data

from expressions import EMOTIONS, UserError
from expressions.training import dataset, readers, synthetic


def counts(data):
    return {name: len(split.images) for name, split in data.splits.items()}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "Val"])
def test_folders_with_a_validation_split(tmp_path, name):
    data = dataset.load(write_data(tmp_path, {"train": 2, name: 1}))
    assert counts(data) == {"train": 14, "validation": 7}
    assert data.labels == EMOTIONS
    assert data.splits["train"].images.shape == (14, 48, 48) and data.splits["train"].images.dtype == np.uint8
    assert data.splits["train"].labels.tolist() == sorted(list(range(7)) * 2)
    assert data.counts().loc["all"].tolist() == [14, 7]


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


def test_a_test_folder_without_those_names_is_a_test_split(tmp_path):
    assert counts(dataset.load(write_data(tmp_path, {"train": 10, "test": 2}))) == {
        "train": 63,
        "validation": 7,
        "test": 14,
    }


def write_csv(path, rows, header="emotion,pixels,Usage"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def csv_rows(usages=("Training", "PublicTest", "PrivateTest")):
    """One image per code and usage; its first pixel tells the code, so that no two are alike."""
    rows = []
    for number, usage in enumerate(usages):
        for code in range(7):
            pixels = [code * 10 + number, *[100] * 2303]
            rows.append(f"{code},{' '.join(map(str, pixels))},{usage}")
    return rows


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, pixels, Usage", "\ufeffemotion,pixels,Usage"])
def test_csv_codes_are_not_in_alphabetical_order(tmp_path, header):
    write_csv(tmp_path / "fer2013.csv", csv_rows(), header)
    data = dataset.load(tmp_path)
    assert counts(data) == {"train": 7, "validation": 7, "test": 7}
    names = {}
    for image, label in zip(data.splits["train"].images, data.splits["train"].labels, strict=True):
        names[image[0, 0] // 10] = data.labels[label]
    assert names == dict(enumerate(["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]))


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
    assert "kept 1 images of train that copy another one there; 1 pictures have several labels" in data.notes


def test_for_measuring_every_image_stays_and_no_training_image_is_needed(tmp_path):
    write_data(tmp_path, {"train": 3, "validation": 2})
    shutil.copy(tmp_path / "validation" / "sad" / "sad_0.png", tmp_path / "train" / "sad" / "leak.png")
    data = dataset.load(tmp_path, training=False)
    assert counts(data) == {"train": 22, "validation": 14}
    shared = dataset.duplicate_mask(data.splits["validation"], data.splits["train"])
    assert shared.sum() == 1 and data.splits["validation"].labels[shared].tolist() == [EMOTIONS.index("sad")]
    data = dataset.load(write_data(tmp_path / "exam", {"test": 2}), training=False)
    assert counts(data) == {"test": 14}


FERPLUS = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def test_votes_join_folders_by_the_name_of_the_image(tmp_path):
    write_data(tmp_path / "images", {"train": 2, "validation": 1})
    rows = [
        "Training,happy_1.png,1,6,0,0,0,0,1,1,1,0",
        "Training,sad_0.png,0,0,0,9,0,0,0,0,0,0",
        "Training,,0,0,0,0,0,0,0,0,0,9",
    ]
    write_csv(tmp_path / "fer2013new.csv", rows, FERPLUS)
    data = dataset.load(tmp_path)
    train = data.splits["train"]
    happy = train.votes[train.labels == EMOTIONS.index("happy")]
    np.testing.assert_allclose(happy, [[0] * 8, [0, 0, 0.1, 0.6, 0.1, 0, 0, 0.2]], atol=1e-6)
    assert train.votes[train.labels == EMOTIONS.index("sad")][0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert "FER+ votes (Barsoum et al. 2016, MIT licence) for 2 images of train, 1 images of validation" in data.notes
    write_csv(tmp_path / "fer2013new.csv", [row.replace("_", "-") for row in rows], FERPLUS)
    assert dataset.load(tmp_path).splits["train"].votes is None
    other = dataset.load(tmp_path / "images")  # the votes lie above it
    assert other.splits["train"].votes is None and other.fingerprint() != data.fingerprint()


def test_votes_join_a_csv_by_the_number_of_the_row(tmp_path):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    usages = [usage for usage in ("Training", "PublicTest", "PrivateTest") for _ in range(7)]
    rows = [f"{usage},name{row},{row},0,0,0,{21 - row},0,0,0,0,0" for row, usage in enumerate(usages)]
    write_csv(tmp_path / "fer2013new.csv", rows, FERPLUS)
    data = dataset.load(tmp_path / "fer2013.csv")
    first = data.splits["validation"].votes[0]  # row 7
    np.testing.assert_allclose(first, [14 / 21, 0, 0, 0, 7 / 21, 0, 0, 0], atol=1e-6)
    for others in (rows[1:], rows[::-1]):
        write_csv(tmp_path / "fer2013new.csv", others, FERPLUS)
        data = dataset.load(tmp_path)
        assert data.splits["train"].votes is None
        assert "FER+ votes left out: their rows are not those of the data set" in data.notes


@pytest.mark.parametrize("votes", ["0,many,0,0,0,0,0,0,0,0", "0,-1,0,0,0,0,0,0,0,0", "0,inf,0,0,0,0,0,0,0,0"])
def test_votes_that_are_no_counts(tmp_path, votes):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    write_csv(tmp_path / "fer2013new.csv", ["Training,a,1,0,0,0,0,0,0,0,0,0", f"Training,b,{votes}"], FERPLUS)
    with pytest.raises(UserError, match="data row 2: votes are not all numbers"):
        dataset.load(tmp_path)


def test_votes_with_more_fields_than_names(tmp_path):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    write_csv(tmp_path / "fer2013new.csv", ["Training,a,1,0,0,0,0,0,0,0,0,0,5"], FERPLUS)
    with pytest.raises(UserError, match="more fields than the first line"):
        dataset.load(tmp_path)


def test_images_of_any_size_mode_and_format_and_those_that_are_none(tmp_path):
    write_data(tmp_path, {"train": 2, "validation": 2})
    place = tmp_path / "train" / "happy"
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (60, 1))
    cv2.imwrite(str(place / "large.JPG"), cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(place / "alpha.png"), cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGRA))
    cv2.imwrite(str(place / "sixteen.png"), ramp.astype(np.uint16) * 257)
    cv2.imwrite(str(place / "tiny.bmp"), ramp[:5, :5])
    cv2.imwrite(str(place / "nämé \u8138.webp"), ramp)
    (place / "empty.png").touch()
    (place / "text.jpg").write_text("this is no picture")
    (place / "notes.txt").write_text("nor is this, and it doesn't say so")
    data = dataset.load(tmp_path)
    images = data.splits["train"].images[data.splits["train"].labels == EMOTIONS.index("happy")]
    assert len(images) == 2 + 5
    wide = [image for image in images if image[24, 0] < 12 and image[24, -1] > 243]
    assert len(wide) == 4  # the ramp arrived whole from every mode and depth
    assert any("skipped 2 files" in note and "empty.png" in note and "text.jpg" in note for note in data.notes)


def test_other_classes_than_the_seven(tmp_path):
    data = dataset.load(write_data(tmp_path, {"train": 3, "validation": 1}, labels=("Tired", "awake", "asleep")))
    assert data.labels == ("asleep", "awake", "tired")


def test_no_data_set_is_no_error_to_find(tmp_path):
    (tmp_path / "README.md").write_text("put a data set here")
    assert readers.find_dataset(tmp_path) is None
    assert readers.find_dataset(tmp_path / "missing") is None
