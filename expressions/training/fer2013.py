"""FER2013's images known by their content, whatever their files are called and however they were compressed again.

Kaggle's folders hold the images as JPEG, under names of their own. `fer2013.npz` tells which original an image is: for
each one a digest of its pixels, and a descriptor of 256 bits, which compression changes in a few of them only.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

INDEX = Path(__file__).with_name("fer2013.npz")
FREQUENCIES, SKIPPED, BITS = 30, 10, 256  # of the cosine transform: a side of those looked at, left out, in descriptors
# bits; an image as JPEG of quality 60 differs from the original in mostly 4, at most 25, from others mostly in 87
MAX_DISTANCE, MIN_MARGIN = 20, 5
MANY = 2000  # images whose search takes so long that the user is told


class Originals(NamedTuple):
    """FER2013's distinct images, without the final test split and those that FER+ calls no faces.

    Attributes:
        digests: Of `digests`, uint64 (n,), sorted.
        descriptors: Of `descriptors`, uint8 (n, 32).
        numbers: Of the images in fer2013.csv, uint16; there are copies.
        originals: Which distinct image each of them shows, uint16.
    """

    digests: np.ndarray
    descriptors: np.ndarray
    numbers: np.ndarray
    originals: np.ndarray


def digests(images: np.ndarray) -> np.ndarray:
    """The first eight bytes of the SHA-256 of each image's pixels, gray uint8 (n, height, width), as uint64 (n,)."""
    first_bytes = b"".join(hashlib.sha256(image.tobytes()).digest()[:8] for image in images)
    return np.frombuffer(first_bytes, "<u8")


def descriptors(images: np.ndarray) -> np.ndarray:
    """The signs of each image's lower cosine frequencies, packed: gray uint8 (n, 48, 48) to uint8 (n, 32)."""
    cosines = cv2.dct(np.eye(images.shape[1], dtype=np.float32), flags=cv2.DCT_ROWS).T[:FREQUENCIES]
    row, column = np.indices((FREQUENCIES, FREQUENCIES))
    order = np.lexsort([row.ravel(), (row + column).ravel()])[1 + SKIPPED :][:BITS]  # the first one is the mean
    bits = [(cosines @ image.astype(np.float32) @ cosines.T).ravel()[order] > 0 for image in images]
    return np.packbits(np.array(bits).reshape(-1, BITS), axis=1)


@functools.cache
def _read_index(path: os.PathLike) -> Originals:
    with np.load(path) as file:
        return Originals(*(file[name] for name in Originals._fields))


def find_originals(images: np.ndarray) -> np.ndarray:
    """Which of the index's distinct images each image, gray uint8 (n, 48, 48), is; int (n,), -1 where it is none.

    An image is the nearest one if that is near enough, and no other is nearly as near.
    """
    index, own = _read_index(INDEX), digests(images)
    found = np.minimum(np.searchsorted(index.digests, own), len(index.digests) - 1)
    found[index.digests[found] != own] = -1
    unknown = np.flatnonzero(found < 0)
    if not unknown.size:
        return found
    if len(unknown) > MANY:
        print(f"Comparing {len(unknown)} images with those of FER2013 ...", flush=True)
    matches = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(descriptors(images[unknown]), index.descriptors, 2)
    for row, (nearest, *others) in zip(unknown, matches, strict=True):
        margin = min((other.distance - nearest.distance for other in others), default=BITS)
        if nearest.distance <= MAX_DISTANCE and margin >= MIN_MARGIN:
            found[row] = nearest.trainIdx
    return found


def original_digests(images: np.ndarray) -> np.ndarray:
    """As `digests`, but where an image is one of FER2013's, of the original: the same for JPEG as for other formats."""
    found = find_originals(images)
    return np.where(found >= 0, _read_index(INDEX).digests[found], digests(images))


def join_votes(images: np.ndarray, votes: pd.DataFrame) -> np.ndarray:
    """The votes of images, float32 (n, columns), of copies their mean, zeros without; `votes` has FER+'s names."""
    index = _read_index(INDEX)
    numbers = [f"fer{number:07d}.png" for number in index.numbers]
    tagged = votes.reindex(numbers).groupby(index.originals).mean()
    return tagged.reindex(find_originals(images)).fillna(0).to_numpy(np.float32)
