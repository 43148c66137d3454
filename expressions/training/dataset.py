"""Load a data set of face images and make it ready: hold out validation images, drop leaks, check its classes."""

import os
from pathlib import Path

import numpy as np

from expressions import UNCERTAIN, UserError
from expressions.cli import escape_unprintable
from expressions.model_validation import MAX_LABEL_LENGTH, MAX_LABELS
from expressions.training import readers
from expressions.training.readers import SPLITS, Dataset, Split, find_dataset

VALIDATION_SHARE = 0.1  # of the training images, for a data set without a validation split


def load(path: str | os.PathLike, training: bool = True) -> Dataset:
    """Read the data set at `path`, a file or a folder, and FER+ votes beside it; `training` as in `prepare`."""
    path = Path(path)
    print(f"Reading the images in {escape_unprintable(path)} ...", flush=True)
    try:
        tree = readers.Tree(path if path.is_dir() else path.parent)
        found = find_dataset(path, tree)
        if found is None:
            columns = " and ".join(readers.CSV_COLUMNS)
            no_table = f"no table whose first line has {columns}; if it is packed, unpack it first"
            no_folder = "no data set here; it takes train/ and validation/ with a folder per class, or fer2013.csv"
            raise UserError(f"{path}: {no_table if path.is_file() else no_folder}")
        votes = readers.read_votes({place if place.is_dir() else place.parent for place in (path, found)}, tree)
        data = readers.read_csv(found, votes) if found.is_file() else readers.read_folders(found, votes, tree)
    except OSError as error:
        raise UserError(f"{error.filename or path}: can't be read ({error.strerror}); check its permissions") from None
    if tree.links:
        data = data._replace(notes=(*data.notes, readers.note("link", tree.links)))
    return prepare(data, training)


def prepare(data: Dataset, training: bool = True) -> Dataset:
    """Hold out validation images if there are none, drop training images that leak, and note what was found and done.

    With `training` False, the data set is for measuring: it keeps every image, and need not be one to learn from.
    """
    splits, notes = dict(data.splits), list(data.notes)
    if not splits or training and "train" not in splits:
        found = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"{data.source}: no training image that OpenCV can read; put some in train/<class>/{found}")
    if "train" in splits and "validation" not in splits:
        train = splits["train"]
        held_out = _stratified_holdout(train.labels)
        if training and not held_out.any():
            raise UserError(f"{data.source}: one image a class; training takes more, some for validation")
        splits["train"], splits["validation"] = train.subset(~held_out), train.subset(held_out)
        count = held_out.sum()
        notes.append(f"no validation split: held {count} images out of train (stratified, always the same ones)")
    for name in ("validation", "test"):
        if training and name in splits:
            leaks = duplicate_mask(splits["train"], splits[name])
            if leaks.any():
                splits["train"] = splits["train"].subset(~leaks)
                notes.append(f"dropped {leaks.sum()} training images that also stand in {name}, pixel for pixel")
    notes += [*_note_copies(splits), *_check_votes(splits)]
    if training:
        _check_labels(data.source, data.labels)
    for name, split in splits.items():
        missing = [label for index, label in enumerate(data.labels) if index not in split.labels]
        if name != "train":
            notes += [f"no {name} image of {label}: its figures can't be measured" for label in missing]
        elif training and missing:
            raise UserError(f"{data.source}: no training image of {missing[0]}; add some or remove its folder")
    return data._replace(splits={name: splits[name] for name in SPLITS if name in splits}, notes=tuple(notes))


def _check_labels(source, labels):
    if len(labels) < 2:
        raise UserError(f"{source}: only one class ({', '.join(labels)}); training takes at least two")
    if UNCERTAIN in labels:
        raise UserError(f"{source}: a class is called {UNCERTAIN}, which means that none is likely; rename it")
    if len(labels) > MAX_LABELS or max(map(len, labels)) > MAX_LABEL_LENGTH:
        limits = f"at most {MAX_LABELS} classes, and names of at most {MAX_LABEL_LENGTH} characters"
        raise UserError(f"{source}: a model file takes {limits}; join or rename some")


def _note_copies(splits):
    for name, split in splits.items():
        labels_of = {}
        for image, label in zip(split.images, split.labels, strict=True):
            labels_of.setdefault(image.tobytes(), set()).add(label)
        copies, mixed = len(split.images) - len(labels_of), sum(len(labels) > 1 for labels in labels_of.values())
        if copies:
            yield f"kept {copies} images of {name} that copy another one there; {mixed} images have several labels"


def _check_votes(splits):
    """Remove the votes from all `splits` if one that needs them has none. Returns a note."""
    tagged = {name: int(split.votes.any(axis=1).sum()) for name, split in splits.items() if split.votes is not None}
    untagged = [name for name, count in tagged.items() if not count and name != "test"]
    if untagged:
        splits |= {name: split._replace(votes=None) for name, split in splits.items()}
        return [f"FER+ votes left out: they name no image of {' and '.join(untagged)}"]
    counts = ", ".join(f"{count} images of {name}" for name, count in tagged.items())
    return [f"FER+ votes (Barsoum et al. 2016, MIT licence) for {counts}"] if tagged else []


def duplicate_mask(split: Split, other: Split) -> np.ndarray:
    """Return which images of `split` are also in `other`, pixel for pixel, as a boolean mask (n,)."""
    seen = {image.tobytes() for image in other.images}
    return np.array([image.tobytes() in seen for image in split.images], dtype=bool)


def _stratified_holdout(labels):
    """Choose the same share of every class, at least one image of two: a boolean mask (n,).

    It depends on the labels alone, so that a model is never validated on images that its teacher was trained on.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out[rows[: max(len(rows) > 1, round(VALIDATION_SHARE * len(rows)))]] = True
    return held_out
