"""Read face images from the layouts that people download: a folder per class, fer2013.csv, and FER+ votes.

Every image file becomes 48x48 gray by `preprocess_face`, which the webcam uses too; a row of the CSV is that already.
"""

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from expressions import EMOTIONS, IMAGE_SIZE, UserError
from expressions.cli import escape_unprintable
from expressions.images import preprocess_face, read_image
from expressions.training import fer2013

SPLITS = {  # and the names of their folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SKIPPED = {  # the files that a data set is read without, and how they are reported
    "unreadable": "that can't be read, or are no image OpenCV knows",
    "link": "that are links out of the data set; put the images themselves there",
    "other": "and folders whose names don't end as those of images do",
    "loose": "that lie in no class's folder",
}
CSV_CODES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
CSV_COLUMNS = ("emotion", "pixels")
CSV_USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
MAX_LINE_CHARACTERS = 2**16  # of a CSV file; bounds the memory
FERPLUS_COLUMNS = {  # of fer2013new.csv, and the names of their classes here
    "anger": "angry", "disgust": "disgust", "fear": "fear", "happiness": "happy", "neutral": "neutral",
    "sadness": "sad", "surprise": "surprise",
}  # fmt: skip
FERPLUS_OTHERS = ("contempt", "unknown", "NF")  # NF: not a face
VOTES = [*EMOTIONS, "other"]


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


def find_dataset(path: Path) -> Path | None:
    """Find the CSV file, or the folder with split or class folders, at `path` or one level below it; None if none."""
    if not path.is_dir():
        return path if _has_columns(path, *CSV_COLUMNS) else None
    below = [entry for entry in _list_visible(path) if entry.is_dir()]
    found = []
    for folder in [path, *below]:
        tables = [file for file in sorted(folder.glob("*.csv")) if _has_columns(file, *CSV_COLUMNS)]
        # the challenge's download holds its training rows a second time, without a column for the split
        found += [file for file in tables if _has_columns(file, "Usage")] or tables
        if any(_find_split_folder(folder, split) for split in SPLITS):
            found.append(folder)
    if len(found) > 1:
        raise UserError(f"{path}: several data sets: {', '.join(map(str, found))}; name one of them with --data")
    if found:
        return found[0]
    # no split folders at all: the class folders are right here
    return path if any(_is_image(file) for folder in below for file in _list_visible(folder)) else None


def _find_split_folder(folder, split):
    found = [entry for entry in _list_visible(folder) if entry.name.lower() in SPLITS[split] and entry.is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder}: several folders for {split}: {', '.join(each.name for each in found)}; keep one")
    return found[0] if found else None


def _list_visible(folder):  # without what macOS adds to archives
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_folders(root: Path, votes: pd.DataFrame | None) -> Dataset:
    """Read a folder of class folders, with or without split folders above them.

    Votes are joined by the names of files or, where no name in a split is FER+'s, by the content of images.
    """
    folders = {split: _find_split_folder(root, split) for split in SPLITS}
    if not any(folders.values()):
        folders["train"] = root
    skipped = {reason: [] for reason in SKIPPED}
    files = {split: _list_classes(folder, root, skipped) if folder else {} for split, folder in folders.items()}
    if not folders["validation"]:  # Kaggle keeps both test sets of the challenge in test/
        for label, paths in files["test"].items():
            files["validation"][label] = [file for file in paths if file.name.startswith("PublicTest_")]
            files["test"][label] = [file for file in paths if not file.name.startswith("PublicTest_")]
    labels = tuple(sorted({label for classes in files.values() for label, paths in classes.items() if paths}))
    notes = []
    if votes is not None and labels != EMOTIONS:
        notes.append("FER+ votes left out: the classes are others")
        votes = None
    splits = {split: _read_split(classes, labels, votes, skipped["unreadable"]) for split, classes in files.items()}
    for reason, paths in skipped.items():
        if paths:
            examples = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
            notes.append(f"skipped {len(paths)} files {SKIPPED[reason]}: {examples}")
    splits = {name: split for name, split in splits.items() if split}
    return Dataset(root.resolve().name, labels, splits, tuple(notes))


def _list_classes(folder, root, skipped):
    """Return {class name: image files} of the class folders in `folder`. All other files are added to `skipped`."""
    home, classes = root.resolve(), {}

    def leads_out(entry):  # a downloaded data set could otherwise have any image of this machine read
        return entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(home)

    for entry in _list_visible(folder):
        if leads_out(folder) or leads_out(entry):
            skipped["link"].append(entry)
        elif entry.is_dir():
            images = classes.setdefault(escape_unprintable(entry.name.lower()), [])
            for file in _list_visible(entry):
                kind = skipped["link"] if leads_out(file) else images if _is_image(file) else skipped["other"]
                kind.append(file)
        elif _is_image(entry):
            skipped["loose"].append(entry)
    return classes


def _read_split(classes, labels, votes, unreadable):
    """Read the files of {class name: image files}. Returns None if there is no image among them."""
    rows = []
    for index, label in enumerate(labels):
        for file in classes.get(label, ()):
            image = None
            with contextlib.suppress(OSError):  # no permission, gone since it was listed, a bad disk
                image = read_image(file)
            if image is None:
                unreadable.append(file)
            else:
                rows.append((preprocess_face(image), index, file.name))
    if not rows:
        return None
    images, indices, names = zip(*rows, strict=True)
    if votes is not None:
        votes = votes[~votes.index.duplicated()][VOTES]
        by_name = votes.reindex(names, fill_value=0).to_numpy()
        votes = by_name if votes.index.isin(names).any() else fer2013.join_votes(np.stack(images), votes)
    return Split(np.stack(images), np.array(indices), votes)


def _has_columns(path, *columns):
    """Whether `path` is a CSV file whose first line has all of `columns`."""
    if not path.is_file():  # opening a named pipe would block
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            names = next(csv.reader([file.readline(1000)], skipinitialspace=True), ())
    except (OSError, csv.Error):
        return False
    return set(columns) <= {name.strip() for name in names}


def _read_rows(path, *columns):
    """Yield the rows of a CSV file as {column: text}. One is in memory at a time, with a bound on its characters."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""), skipinitialspace=True)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not set(columns) <= set(reader.fieldnames):
                raise UserError(f"{path}: its first line is damaged; download it again")
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise UserError(f"{path}: data row {number} has more fields than the first line; download it again")
                yield row
        except csv.Error as error:
            raise UserError(f"{path}: not a whole CSV file ({error}); download it again") from None


def read_votes(folders: Iterable[Path]) -> pd.DataFrame | None:
    """Read the FER+ votes (Barsoum et al. 2016, arXiv:1608.01041) from fer2013new.csv in one of `folders`.

    Returns a row for each row of fer2013.csv, in its order, with the image's file name as the index: Usage, and the
    share of the taggers, 0 to 1, for each of VOTES. None if there is no such file.
    """
    columns = [*FERPLUS_COLUMNS, *FERPLUS_OTHERS]
    all_columns = ["Usage", "Image name", *columns]
    tables = sorted(file for folder in folders for file in folder.glob("*.csv"))
    found = [file for file in tables if _has_columns(file, *all_columns)]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"several files of FER+ votes: {', '.join(map(str, found))}; keep one of them")
    table = pd.DataFrame(_read_rows(found[0], *all_columns), columns=all_columns)
    votes = table[columns].apply(pd.to_numeric, errors="coerce")
    valid = ((votes >= 0) & np.isfinite(votes)).all(axis=1).to_numpy()
    if not valid.all():
        row = valid.argmin() + 1
        raise UserError(f"{found[0]}: data row {row}: votes are not all numbers from 0 up; download it again")
    shares = votes.div(votes.sum(axis=1).clip(lower=1), axis=0).rename(columns=FERPLUS_COLUMNS)
    shares["other"] = shares[list(FERPLUS_OTHERS)].sum(axis=1)
    shares = shares[VOTES].astype(np.float32)
    return shares.assign(Usage=table["Usage"]).set_index(table["Image name"].fillna(""))


def read_csv(path: Path, votes: pd.DataFrame | None) -> Dataset:
    """Read fer2013.csv or icml_face_data.csv; join votes by the number of the row."""
    images, labels, usages = [], [], []
    for number, row in enumerate(_read_rows(path, *CSV_COLUMNS), 1):
        place, usage = f"{path}: data row {number}", row.get("Usage", "Training")
        try:
            pixels = np.array((row["pixels"] or "").split(), dtype=np.int64)
        except (ValueError, OverflowError):
            pixels = np.empty(0)
        if pixels.size != IMAGE_SIZE**2 or pixels.min() < 0 or pixels.max() > 255:
            raise UserError(f"{place}: pixels are not {IMAGE_SIZE**2} numbers from 0 to 255; download it again")
        for known, column, value in ((CSV_CODES, "emotion", row["emotion"]), (CSV_USAGES, "Usage", usage)):
            if value not in known:
                raise UserError(f"{place}: {column} is {value!r:.80}, not one of {', '.join(known)}")
        images.append(pixels.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE))
        labels.append(EMOTIONS.index(CSV_CODES[row["emotion"]]))
        usages.append(usage)
    shares, notes, splits = None, (), {}
    if votes is not None and list(votes["Usage"]) == usages:
        shares = votes[VOTES].to_numpy()
    elif votes is not None:
        notes = ("FER+ votes left out: their rows are not those of the data set",)
    if images:
        rows, usages = Split(np.stack(images), np.array(labels), shares), np.array(usages)
        splits = {split: rows.subset(usages == usage) for usage, split in CSV_USAGES.items() if usage in usages}
    return Dataset(path.resolve().name, EMOTIONS, splits, notes)
