"""Read face images from the layouts that people download: a folder per class, fer2013.csv, and FER+ votes.

Every image file becomes 48x48 gray by `preprocess_face`, which the webcam uses too; a row of the CSV is that already.
"""

import hashlib
import os
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from expressions import EMOTIONS, IMAGE_SIZE, UserError
from expressions.cli import escape_unprintable
from expressions.image_formats import IMAGE_SUFFIXES
from expressions.images import preprocess_face, read_image
from expressions.training import csv_rows, fer2013

SPLITS = {  # and the names of their folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "publictest"),
    "test": ("test", "testing", "privatetest"),
}
MAX_FACE_SIDE, MAX_FACE_RATIO = 512, 1.25  # pixels, long side to short one; beyond them, an image is no mere face
NOTES = {  # on files of a data set
    "unreadable": "skipped {} files that can't be read, or are no image OpenCV knows",
    "link": "skipped {} files that are links out of the data set; put the files there, or give --data their place",
    "other": "skipped {} files and folders whose names don't end as those of images do",
    "loose": "skipped {} files that lie in no class's folder",
    "split": "skipped {} folders whose names are not those of train, validation or test",
    "public": "took {} files of test for validation, for they are called PublicTest, and all others there PrivateTest",
    "mixed": "left {} files called PublicTest in test, for not all others there are called PrivateTest",
    "photograph": f"squeezed {{}} images, over {MAX_FACE_SIDE} pixels or not square, as if each were a face; of "
    "photographs, cut out the faces first",
}
CSV_CODES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
CSV_COLUMNS = ("emotion", "pixels")
CSV_USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
MAX_NAME = 255  # characters; no file has a longer one
MAX_VOTES = 10**6  # for one image, on which ten people voted
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


class Tree:
    """The folders of a data set. Links that lead out of `home` are not followed, and are kept in `links`.

    A downloaded data set could otherwise have any image of this machine read.
    """

    def __init__(self, home: Path):
        self.home, self.links = home.resolve(), set()

    def entries(self, folder: Path) -> list[Path]:
        """Return what is in a folder, sorted, but for such links and for what macOS adds to archives."""
        visible = [entry for entry in os.scandir(folder) if not entry.name.startswith((".", "__MACOSX"))]
        links = {Path(entry) for entry in visible if entry.is_symlink()}
        links = {link for link in links if not Path(os.path.realpath(link)).is_relative_to(self.home)}
        self.links |= links
        return sorted(set(map(Path, visible)) - links)


def find_dataset(path: Path, tree: Tree | None = None) -> Path | None:
    """Find the CSV file, or the folder with split or class folders, at `path` or one level below it; None if none.

    Raises UserError if there are several, or if nothing but links that lead out of `path` may be one.
    """
    if not path.is_dir():
        return path if csv_rows.has_columns(path, *CSV_COLUMNS) else None
    tree = tree or Tree(path)
    below = [entry for entry in tree.entries(path) if entry.is_dir()]
    found = []
    for folder in [path, *below]:
        tables = _find_tables(tree, folder, *CSV_COLUMNS)
        # the challenge's download holds its training rows a second time, without a column for the split
        found += [file for file in tables if csv_rows.has_columns(file, "Usage")] or tables
        if any(_find_split_folder(tree, folder, split) for split in SPLITS):
            found.append(folder)
    if len(found) > 1:
        raise UserError(f"{path}: several data sets: {', '.join(map(str, found))}; name one of them with --data")
    if found:
        return found[0]
    # no split folders at all: the class folders are right here
    if any(_is_image(file) for folder in below for file in tree.entries(folder)):
        return path
    if tree.links:
        raise UserError(f"{path}: no data set here; {note('link', tree.links)}")
    return None


def _find_split_folder(tree, folder, split):
    found = [entry for entry in tree.entries(folder) if entry.name.lower() in SPLITS[split] and entry.is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder}: several folders for {split}: {', '.join(each.name for each in found)}; keep one")
    return found[0] if found else None


def _find_tables(tree, folder, *columns):
    return [file for file in tree.entries(folder) if file.suffix == ".csv" and csv_rows.has_columns(file, *columns)]


def note(kind: str, paths: Iterable[Path | str]) -> str:
    """Return the sentence of this kind in NOTES, which counts and names the files at `paths`."""
    paths = sorted(paths)
    return f"{NOTES[kind].format(len(paths))}: {', '.join(map(str, paths[:3]))}{', ...' * (len(paths) > 3)}"


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_folders(root: Path, votes: pd.DataFrame | None, tree: Tree) -> Dataset:
    """Read a folder of class folders, with or without split folders above them.

    Votes are joined by the names of files or, where no name in a split is FER+'s, by the content of images.
    """
    folders = {split: _find_split_folder(tree, root, split) for split in SPLITS}
    noted = {kind: [] for kind in NOTES}
    if any(folders.values()):
        noted["split"] = [entry for entry in tree.entries(root) if entry.is_dir() and entry not in folders.values()]
    else:
        folders["train"] = root
    files = {split: _list_classes(tree, folder, noted) if folder else {} for split, folder in folders.items()}
    test_files = [file for paths in files["test"].values() for file in paths]
    public = {file for file in test_files if file.name.startswith("PublicTest_")}
    if public and not folders["validation"]:  # Kaggle keeps both test sets of the challenge in test/
        only_fer2013 = all(file in public or file.name.startswith("PrivateTest_") for file in test_files)
        noted["public" if only_fer2013 else "mixed"] = public
        for label, paths in files["test"].items() if only_fer2013 else ():
            files["validation"][label] = [file for file in paths if file in public]
            files["test"][label] = [file for file in paths if file not in public]
    labels = tuple(sorted({label for classes in files.values() for label, paths in classes.items() if paths}))
    notes = []
    if votes is not None and labels != EMOTIONS:
        notes.append("FER+ votes left out: the classes are others")
        votes = None
    splits = {split: _read_split(classes, labels, votes, noted) for split, classes in files.items()}
    notes += [note(kind, paths) for kind, paths in noted.items() if paths]
    splits = {name: split for name, split in splits.items() if split}
    return Dataset(root.resolve().name, labels, splits, tuple(notes))


def _list_classes(tree, folder, noted):
    """Return {class name: image files} of the class folders in `folder`. All other files are added to `noted`."""
    classes = {}
    for entry in tree.entries(folder):
        if entry.is_dir():
            images = classes.setdefault(escape_unprintable(entry.name.lower()), [])
            for file in tree.entries(entry):
                (images if _is_image(file) else noted["other"]).append(file)
        elif _is_image(entry):
            noted["loose"].append(entry)
    return classes


def _read_split(classes, labels, votes, noted):
    """Read the files of {class name: image files}. Returns None if there is no image among them."""
    rows = []
    for index, label in enumerate(labels):
        for file in classes.get(label, ()):
            try:
                image = read_image(file)
            except OSError:  # no permission, gone since it was listed, a bad disk
                noted["unreadable"].append(str(file))
                continue
            except UserError as error:  # it tells the path and the reason
                noted["unreadable"].append(str(error))
                continue
            rows.append((preprocess_face(image), index, file.name))
            short, long = sorted(image.shape[:2])
            if long > min(MAX_FACE_SIDE, MAX_FACE_RATIO * short):
                noted["photograph"].append(file)
    if not rows:
        return None
    images, indices, names = zip(*rows, strict=True)
    if votes is not None:
        votes = votes[~votes.index.duplicated()][VOTES]
        by_name = votes.reindex(names, fill_value=0).to_numpy()
        votes = by_name if votes.index.isin(names).any() else fer2013.join_votes(np.stack(images), votes)
    return Split(np.stack(images), np.array(indices), votes)


def read_votes(folders: Iterable[Path], tree: Tree) -> pd.DataFrame | None:
    """Read the FER+ votes (Barsoum et al. 2016, arXiv:1608.01041) from fer2013new.csv in one of `folders`.

    Returns a row for each row of fer2013.csv, in its order, with the image's file name as the index: Usage, and the
    share of the taggers, 0 to 1, for each of VOTES. None if there is no such file.
    """
    columns = [*FERPLUS_COLUMNS, *FERPLUS_OTHERS]
    all_columns = ["Usage", "Image name", *columns]
    found = [file for folder in sorted(folders) for file in _find_tables(tree, folder, *all_columns)]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"several files of FER+ votes: {', '.join(map(str, found))}; keep one of them")
    usages, names, numbers = [], [], array("f")  # not texts, which take many times the memory
    for place, row in csv_rows.read_rows(found[0], *all_columns):
        try:
            votes = [float(row[column]) for column in columns]
        except (TypeError, ValueError):  # the first where there is none
            votes = [-1.0]
        if not (min(votes) >= 0 and sum(votes) <= MAX_VOTES):
            raise UserError(f"{place}: votes are not all numbers from 0 up; download it again")
        usages.append(sys.intern((row["Usage"] or "")[:MAX_NAME]))
        names.append((row["Image name"] or "")[:MAX_NAME])
        numbers.extend(votes)
    votes = np.frombuffer(numbers, np.float32).reshape(-1, len(columns))
    votes = pd.DataFrame(votes, names, columns).rename(columns=FERPLUS_COLUMNS)
    shares = votes.div(votes.sum(axis=1).clip(lower=1), axis=0)
    shares["other"] = shares[list(FERPLUS_OTHERS)].sum(axis=1)
    return shares[VOTES].assign(Usage=usages)


def read_csv(path: Path, votes: pd.DataFrame | None) -> Dataset:
    """Read fer2013.csv or icml_face_data.csv; join votes by the number of the row."""
    images, labels, usages = [], [], []
    for place, row in csv_rows.read_rows(path, *CSV_COLUMNS):
        usage = row.get("Usage", "Training")
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
