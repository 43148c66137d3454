"""Read a data set of face pictures in any of the layouts that people download, and check it.

`load` looks at a path and recognises a folder per class, the Kaggle folders, or the original CSV. Every picture
becomes 48x48 gray through `preprocess_face`, the function that the webcam uses too; the rows of a CSV are that already.
"""

import csv
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from expressions import EMOTIONS, IMAGE_SIZE, UserError
from expressions.cli import escape_unprintable
from expressions.images import preprocess_face, read_image

SPLITS = ("train", "validation", "test")
FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
CSV_CODES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
CSV_COLUMNS = ("emotion", "pixels")
CSV_USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
FERPLUS_COLUMNS = {  # of fer2013new.csv, and what they are called here
    "anger": "angry", "disgust": "disgust", "fear": "fear", "happiness": "happy", "neutral": "neutral",
    "sadness": "sad", "surprise": "surprise",
}  # fmt: skip
FERPLUS_OTHERS = ("contempt", "unknown", "NF")
VOTES = [*EMOTIONS, "other"]
IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
LONGEST_LINE = 2**16  # characters of a CSV file; bounds the memory
VALIDATION_SHARE = 0.1  # of the training images, where a data set has no validation split of its own


class Split(NamedTuple):
    """Images of one split: uint8 (n, 48, 48), and the index of each one's label: int64 (n,).

    votes: where there are FER+ votes, the shares of an image's taggers who chose each label, and in the last column any
    other answer (contempt, unknown, not a face): float32 (n, 8). Zeros where an image was not tagged.
    """

    images: np.ndarray
    labels: np.ndarray
    votes: np.ndarray | None = None

    def take(self, rows):
        """The Split of these rows, a boolean mask or indices."""
        return Split(*(None if array is None else array[rows] for array in self))


class Dataset(NamedTuple):
    """A data set, ready to train on.

    source: where it came from, in words. labels: the class names in the order of the label indices.
    splits: {"train": Split, "validation": Split} and "test" where there is one. notes: what was found and done.
    """

    source: str
    labels: tuple
    splits: dict
    notes: tuple = ()

    def counts(self):
        """Images per class and split, with sums, as a DataFrame."""
        columns = {name: np.bincount(split.labels, minlength=len(self.labels)) for name, split in self.splits.items()}
        table = pd.DataFrame(columns, index=list(self.labels))
        return pd.concat([table, table.sum().to_frame("all").T])

    def fingerprint(self):
        """16 hexadecimal digits that change when any image, label or vote does."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for name, split in self.splits.items():
            votes = b"" if split.votes is None else split.votes.tobytes()
            digest.update(name.encode() + split.images.tobytes() + split.labels.tobytes() + votes)
        return digest.hexdigest()[:16]


def load(path, training=True):
    """Read the data set at `path`: a CSV file, a folder that holds one, or a folder of class folders; and FER+ votes.

    training: make it ready to train on, see `check`; else it is for measuring, and every image stays.
    Returns a Dataset. Raises UserError when there is no data set at `path`, or none that can be trained on.
    """
    path = Path(path)
    try:
        found = find(path)
        if found is None and path.is_file():
            raise UserError(
                f"{path}: no table whose first line has {' and '.join(CSV_COLUMNS)}; if it is packed, unpack it first"
            )
        if found is None:
            raise UserError(
                f"{path}: no data set here; it takes train/ and validation/ with a folder per class, or fer2013.csv"
            )
        votes = read_votes({place if place.is_dir() else place.parent for place in (path, found)})
        labels, splits, notes = read_csv(found, votes) if found.is_file() else read_folders(found, votes)
    except OSError as error:
        raise UserError(f"{error.filename or path}: can't be read ({error.strerror}); check its permissions") from None
    return check(Dataset(found.resolve().name, labels, splits, tuple(notes)), training)


def find(path):
    """The CSV file or the folder with the class or split folders at `path` or one level down; None without one."""
    if path.is_file():
        return path if has_columns(path, *CSV_COLUMNS) else None
    if not path.is_dir():
        return None
    below = [entry for entry in visible(path) if entry.is_dir()]
    found = []
    for folder in [path, *below]:
        tables = [file for file in sorted(folder.glob("*.csv")) if has_columns(file, *CSV_COLUMNS)]
        # the challenge's download holds its training rows a second time, without a column for the split
        found += [file for file in tables if has_columns(file, "Usage")] or tables
        if any(split_folder(folder, split) for split in SPLITS):
            found.append(folder)
    if len(found) > 1:
        raise UserError(f"{path}: several data sets: {', '.join(map(str, found))}; name one of them with --data")
    if found:
        return found[0]
    # no split folders at all: the class folders stand right here
    return path if any(is_image(file) for folder in below for file in visible(folder)) else None


def split_folder(folder, split):
    """The sub-folder of `folder` that holds `split`, under any of its usual names; None without one.

    Raises UserError where there are several."""
    found = [
        entry for entry in sorted(folder.iterdir()) if entry.name.lower() in FOLDER_NAMES[split] and entry.is_dir()
    ]
    if len(found) > 1:
        raise UserError(f"{folder}: several folders for {split}: {', '.join(each.name for each in found)}; keep one")
    return found[0] if found else None


def visible(folder):
    """What lies right in `folder`, sorted by name, without hidden entries and those that macOS packs beside all."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def is_image(path):
    return path.suffix.lower() in IMAGE_ENDINGS and path.is_file()


def read_folders(root, votes):
    """Read a folder of class folders, with or without split folders above them; join votes by the names of files."""
    folders = {split: split_folder(root, split) for split in SPLITS}
    if not any(folders.values()):
        folders = {"train": root, "validation": None, "test": None}
    files, home, outside, others, loose = {split: {} for split in SPLITS}, root.resolve(), [], [], []

    def leads_out(entry):  # a data set from the web could otherwise have any picture of this machine read
        return entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(home)

    for split, folder in folders.items():
        for entry in visible(folder) if folder else ():
            if leads_out(folder) or leads_out(entry):
                outside.append(entry)
            elif entry.is_dir():
                contents = visible(entry)
                outside += [file for file in contents if leads_out(file)]
                images = [file for file in contents if not leads_out(file) and is_image(file)]
                others += [file for file in contents if not leads_out(file) and not is_image(file)]
                files[split].setdefault(escape_unprintable(entry.name.lower()), []).extend(images)
            elif is_image(entry):
                loose.append(entry)
    if not folders["validation"]:  # Kaggle keeps both test sets of the challenge in test/
        for label, paths in files["test"].items():
            files["validation"][label] = [file for file in paths if file.name.startswith("PublicTest_")]
            files["test"][label] = [file for file in paths if not file.name.startswith("PublicTest_")]
    names = {label for by_label in files.values() for label, paths in by_label.items() if paths}
    labels = tuple(sorted(names))

    splits, unreadable, notes = {}, [], []
    if votes is not None and labels != EMOTIONS:
        notes.append("FER+ votes left out: the classes are others")
        votes = None
    for split, by_label in files.items():
        images, indices, names = [], [], []
        for index, label in enumerate(labels):
            for file in by_label.get(label, ()):
                try:
                    picture = read_image(file)
                except OSError:  # no permission, gone since it was listed, a bad disk
                    picture = None
                if picture is None:
                    unreadable.append(file)
                    continue
                images.append(preprocess_face(picture))
                indices.append(index)
                names.append(file.name)
        if images:
            shares = None
            if votes is not None:
                shares = votes[~votes.index.duplicated()][VOTES].reindex(names, fill_value=0).to_numpy()
            splits[split] = Split(np.stack(images), np.array(indices), shares)
    for skipped, why in (
        (unreadable, "that can't be read, or are no image OpenCV knows"),
        (outside, "that are links out of the data set; put the images themselves there"),
        (others, "and folders whose names don't end as those of images do"),
        (loose, "that lie in no class's folder"),
    ):
        if skipped:
            examples = ", ".join(str(file) for file in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
            notes.append(f"skipped {len(skipped)} files {why}: {examples}")
    return labels, splits, notes


def has_columns(path, *columns):
    """Whether `path` is a table in whose first line all of `columns` stand."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            names = next(csv.reader([file.readline(1000)], skipinitialspace=True), ())
    except (OSError, csv.Error):
        return False
    return set(columns) <= {name.strip() for name in names}


def read_rows(path, *columns):
    """The rows of a CSV file in turn, as dictionaries of text by column. Raises UserError when it is damaged, or lacks
    one of `columns`.

    One is in memory at a time, and at most LONGEST_LINE characters of it."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(iter(lambda: file.readline(LONGEST_LINE), ""), skipinitialspace=True)
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


def read_votes(folders):
    """Read the FER+ votes (Barsoum et al. 2016, arXiv:1608.01041) that lie in one of `folders` as fer2013new.csv.

    Returns a DataFrame: Usage, and the share of the taggers, 0 to 1, for each of VOTES; its index the image names.
    Rows are those of fer2013.csv, in the same order. None where there is no such file."""
    columns = [*FERPLUS_COLUMNS, *FERPLUS_OTHERS]
    all_columns = ["Usage", "Image name", *columns]
    tables = sorted(file for folder in folders for file in folder.glob("*.csv"))
    found = [file for file in tables if has_columns(file, *all_columns)]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"several files of FER+ votes: {', '.join(map(str, found))}; keep one of them")
    table = pd.DataFrame(read_rows(found[0], *all_columns), columns=all_columns)
    votes = table[columns].apply(pd.to_numeric, errors="coerce")
    counted = ((votes >= 0) & np.isfinite(votes)).all(axis=1).to_numpy()
    if not counted.all():
        row = counted.argmin() + 1
        raise UserError(f"{found[0]}: data row {row}: votes are not all numbers from 0 up; download it again")
    shares = votes.div(votes.sum(axis=1).clip(lower=1), axis=0).rename(columns=FERPLUS_COLUMNS)
    shares["other"] = shares[list(FERPLUS_OTHERS)].sum(axis=1)
    shares = shares[VOTES].astype(np.float32)
    return shares.assign(Usage=table["Usage"]).set_index(table["Image name"].fillna(""))


def read_csv(path, votes):
    """Read fer2013.csv or icml_face_data.csv: columns emotion (0 to 6), pixels (2304 numbers), Usage; join votes by the
    number of the row."""
    images, labels, usages = [], [], []
    for number, row in enumerate(read_rows(path, *CSV_COLUMNS), 1):
        usage = row.get("Usage", "Training")
        try:
            pixels = np.array((row["pixels"] or "").split(), dtype=np.int64)
        except (ValueError, OverflowError):
            pixels = np.empty(0)
        if pixels.size != IMAGE_SIZE**2 or pixels.min() < 0 or pixels.max() > 255:
            raise UserError(
                f"{path}: data row {number}: pixels are not {IMAGE_SIZE**2} numbers from 0 to 255; download it again"
            )
        for known, column, value in ((CSV_CODES, "emotion", row["emotion"]), (CSV_USAGES, "Usage", usage)):
            if value not in known:
                raise UserError(f"{path}: data row {number}: {column} is {value!r:.80}, not one of {', '.join(known)}")
        images.append(pixels.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE))
        labels.append(EMOTIONS.index(CSV_CODES[row["emotion"]]))
        usages.append(usage)
    notes, shares = [], None
    if votes is not None and list(votes["Usage"]) == usages:
        shares = votes[VOTES].to_numpy()
    elif votes is not None:
        notes.append("FER+ votes left out: their rows are not those of the data set")
    splits, usages = {}, np.array(usages)
    if images:
        everything = Split(np.stack(images), np.array(labels), shares)
        splits = {split: everything.take(usages == usage) for usage, split in CSV_USAGES.items() if usage in usages}
    return EMOTIONS, splits, notes


def check(dataset, training=True):
    """Hold out validation images where there are none, count copies, and for training drop the training images that
    also stand in another split. Returns a Dataset whose notes say what was done. Raises UserError when there is no
    image, or nothing can be learned from them."""
    splits, notes = dict(dataset.splits), list(dataset.notes)
    if not splits or training and "train" not in splits:
        found = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"{dataset.source}: no training image that OpenCV can read; put some in train/<class>/{found}")
    if "train" in splits and "validation" not in splits:
        train = splits["train"]
        held = held_out(train.labels)
        splits["train"], splits["validation"] = train.take(~held), train.take(held)
        if training and not held.any():
            raise UserError(f"{dataset.source}: one image a class; training takes more, some for validation")
        notes.append(f"no validation split: held {held.sum()} images out of train (stratified, always the same ones)")

    for name in ("validation", "test"):
        if training and name in splits:
            shared = stands_in(splits["train"], splits[name])
            if shared.any():
                splits["train"] = splits["train"].take(~shared)
                notes.append(f"dropped {shared.sum()} training images that also stand in {name}, pixel for pixel")
    for name, split in splits.items():
        labels_of = {}
        for image, label in zip(split.images, split.labels, strict=True):
            labels_of.setdefault(image.tobytes(), set()).add(label)
        copies, torn = len(split.images) - len(labels_of), sum(len(labels) > 1 for labels in labels_of.values())
        if copies:
            notes.append(
                f"kept {copies} images of {name} that copy another one there; {torn} pictures have several labels"
            )
    tagged = {name: int(split.votes.any(axis=1).sum()) for name, split in splits.items() if split.votes is not None}
    missing = [name for name, count in tagged.items() if not count and name != "test"]
    if missing:
        splits = {name: split._replace(votes=None) for name, split in splits.items()}
        notes.append(f"FER+ votes left out: they name no image of {' and '.join(missing)}")
    elif tagged:
        counts = ", ".join(f"{count} images of {name}" for name, count in tagged.items())
        notes.append(f"FER+ votes (Barsoum et al. 2016, MIT licence) for {counts}")

    for name, split in splits.items():
        present = np.bincount(split.labels, minlength=len(dataset.labels))
        notes += [
            f"no {name} image of {label}: its figures can't be measured"
            for label, count in zip(dataset.labels, present, strict=True)
            if not count and name != "train"
        ]
    dataset = dataset._replace(splits={name: splits[name] for name in SPLITS if name in splits}, notes=tuple(notes))
    if training:
        check_classes(dataset)
    return dataset


def check_classes(dataset):
    """Raise UserError when there are too few classes to train, or one without training images."""
    if len(dataset.labels) < 2:
        raise UserError(f"{dataset.source}: only one class ({', '.join(dataset.labels)}); training takes at least two")
    trained = np.bincount(dataset.splits["train"].labels, minlength=len(dataset.labels))
    if not trained.all():
        label = dataset.labels[trained.argmin()]
        raise UserError(f"{dataset.source}: no training image of {label}; add some or remove its folder")


def stands_in(split, other):
    """Which images of `split` also stand in `other`, pixel for pixel: a boolean mask (n,)."""
    seen = {image.tobytes() for image in other.images}
    return np.array([image.tobytes() in seen for image in split.images], dtype=bool)


def held_out(labels):
    """A boolean mask over `labels` that picks the same share of every class, at least one image where there are two.

    It depends on them alone, so that a model is never validated on images that one it learned from was trained on."""
    held = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(0)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held[rows[: max(len(rows) > 1, round(VALIDATION_SHARE * len(rows)))]] = True
    return held
