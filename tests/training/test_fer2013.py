"""Images known again by their content, after compression and under other names."""

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest

from expressions import EMOTIONS
from expressions.training import dataset, fer2013, synthetic, teachers

FACES = synthetic.draw_faces(12, seed=0)[0]
OTHERS = synthetic.draw_faces(5, seed=1)[0]


def as_jpeg(image, quality=75):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def write_index(path, images, numbers):
    """Write an index of images, gray uint8 (n, 48, 48), of these numbers in fer2013.csv, int (n,)."""
    found, first, originals = np.unique(fer2013.digests(images), return_index=True, return_inverse=True)
    descriptors = fer2013.descriptors(images[first])
    index = fer2013.Originals(found, descriptors, numbers.astype(np.uint16), originals.astype(np.uint16))
    np.savez_compressed(path, **index._asdict())


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """The index of FACES, numbered from 100, the first of which is there once more, as number 500."""
    monkeypatch.setattr(fer2013, "INDEX", tmp_path / "index.npz")
    numbers = np.append(np.arange(len(FACES)) + 100, 500)
    write_index(fer2013.INDEX, np.concatenate([FACES, FACES[:1]]), numbers)


def test_digests_are_of_the_pixels():
    expected = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "little") for image in FACES]
    assert fer2013.digests(FACES).tolist() == expected


@pytest.mark.parametrize("quality", [95, 60])
def test_a_compressed_copy_is_found_and_another_face_is_not(quality):
    copies = np.stack([as_jpeg(image, quality) for image in FACES])
    assert (fer2013.digests(copies) != fer2013.digests(FACES)).mean() > 0.9
    np.testing.assert_array_equal(fer2013.original_digests(copies), fer2013.digests(FACES))
    np.testing.assert_array_equal(fer2013.original_digests(FACES), fer2013.digests(FACES))
    np.testing.assert_array_equal(fer2013.original_digests(OTHERS), fer2013.digests(OTHERS))
    assert (fer2013.find_originals(OTHERS) == -1).all()
    assert len(fer2013.find_originals(FACES[:0])) == 0


def test_of_two_originals_that_are_too_alike_it_takes_neither(monkeypatch):
    twin = FACES[0].copy()
    twin[20, 20] ^= 1
    write_index(fer2013.INDEX.with_name("twins.npz"), np.stack([FACES[0], twin, FACES[1]]), np.arange(3))
    monkeypatch.setattr(fer2013, "INDEX", fer2013.INDEX.with_name("twins.npz"))
    found = fer2013.find_originals(np.stack([FACES[0], as_jpeg(FACES[0]), as_jpeg(FACES[1])]))
    index = fer2013._read_index(fer2013.INDEX)
    assert index.digests[found[0]] == fer2013.digests(FACES[:1])[0] and found[1] == -1 and found[2] >= 0


def test_the_parts_of_folds_are_the_same_for_compressed_copies():
    copies = np.stack([as_jpeg(image) for image in FACES])
    np.testing.assert_array_equal(teachers.fold_mask(copies, "2/3"), teachers.fold_mask(FACES, "2/3"))


def test_folders_of_compressed_copies_under_other_names_get_their_votes(tmp_path):
    """As Kaggle has them. Where an image has copies, it gets the mean of their votes."""
    columns = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]
    rows = [["Training", f"fer{100 + row:07d}.png", *np.eye(10, dtype=int)[row % 7] * 10] for row in range(len(FACES))]
    rows.append(["Training", "fer0000500.png", 0, 10, *[0] * 8])  # of the first one, whose votes are all for neutral
    pd.DataFrame(rows, columns=["Usage", "Image name", *columns]).to_csv(tmp_path / "fer2013new.csv", index=False)
    for row, image in enumerate([*FACES, *OTHERS]):
        split = "validation" if row % 4 == 3 else "train"
        split, label = (split, EMOTIONS[row // 12]) if row < len(FACES) else ("train", "sad")
        path = tmp_path / split / label / f"Training_{min(row, len(FACES))}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    data = dataset.load(tmp_path)
    train = data.splits["train"]
    assert any("FER+ votes" in note and "63 images of train, 21 images of validation" in note for note in data.notes)
    mixed = train.votes[np.isclose(train.votes.max(axis=1), 0.5)]
    assert len(mixed) == 1 and mixed[0, EMOTIONS.index("happy")] == mixed[0, EMOTIONS.index("neutral")] == 0.5
    assert (train.votes.sum(axis=1) == 0).sum() == 1  # the other face
    kinds = ["neutral", "happy", "surprise", "sad", "angry", "disgust", "fear"]
    for image, votes in zip(train.images, train.votes, strict=True):
        row = fer2013.find_originals(image[None])[0]
        if row >= 0 and votes.max() == 1:
            numbers = fer2013._read_index(fer2013.INDEX)
            number = numbers.numbers[np.flatnonzero(numbers.originals == row)[0]] - 100
            assert EMOTIONS[votes[:7].argmax()] == kinds[number % 7]
