"""What the modules of training pass to one another: the images of one split, and a data set of several."""

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd

SPLITS = ("train", "validation", "test")


class Split(NamedTuple):
    """The labelled images of one split.

    Attributes:
        images: Gray uint8 (n, 48, 48).
        labels: Index of each image's class, int64 (n,).
        votes: With FER+ votes: the shares of an image's taggers who chose each class, and in the last column any other
            answer (contempt, unknown, not a face), float32 (n, 8). Zeros for an image without votes.
    """

    images: np.ndarray
    labels: np.ndarray
    votes: np.ndarray | None = None

    def subset(self, rows: np.ndarray) -> "Split":
        """Return the Split of these rows, a boolean mask or indices."""
        return Split(*(None if array is None else array[rows] for array in self))


class Dataset(NamedTuple):
    """A data set, ready to train on.

    Attributes:
        source: Where it came from, in words.
        labels: The class names, in the order of the label indices.
        splits: Those of SPLITS that there are, by name.
        notes: What was found and done, one sentence each.
    """

    source: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()

    def counts(self) -> pd.DataFrame:
        """Count the images per class and split, with sums in the last row."""
        columns = {name: np.bincount(split.labels, minlength=len(self.labels)) for name, split in self.splits.items()}
        table = pd.DataFrame(columns, index=list(self.labels))
        return pd.concat([table, table.sum().to_frame("all").T])

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when any image, label or vote does."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for name, split in self.splits.items():
            votes = b"" if split.votes is None else split.votes.tobytes()
            digest.update(name.encode() + split.images.tobytes() + split.labels.tobytes() + votes)
        return digest.hexdigest()[:16]
