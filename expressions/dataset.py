"""Read a data set of face pictures in any of the layouts that people download, and check it.

`load` looks at a path and recognises a folder per class, the Kaggle folders, or the original CSV. Every image becomes
48x48 gray through `prepare`, the function that the webcam uses too.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from expressions import EMOTIONS, IMAGE_SIZE, UserError, prepare

SPLITS = ("train", "validation", "test")
FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
CSV_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # fer2013.csv: codes 0 to 6
CSV_USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VALIDATION_SHARE = 0.1  # of the training images, where a data set has no validation split of its own


class Split(NamedTuple):
    """Images of one split: uint8 (n, 48, 48), and the index of each one's label: int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


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
        table.loc["all"] = table.sum()
        return table

    def fingerprint(self):
        """16 hexadecimal digits that change when any image or label does."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for name, split in self.splits.items():
            digest.update(name.encode() + split.images.tobytes() + split.labels.tobytes())
        return digest.hexdigest()[:16]


def load(path, seed=0):
    """Read the data set at `path`: a CSV file, a folder that holds one, or a folder of class folders.

    seed: decides which images are held out, where the data set has no validation split.
    Returns a Dataset. Raises UserError when there is no data set at `path`, or none that can be trained on.
    """
    path = Path(path)
    try:
        found = find(path)
        if found is None:
            raise UserError(
                f"{path}: no data set here; it takes train/ and validation/ with a folder per class, or fer2013.csv"
            )
        labels, splits, notes = read_csv(found) if found.is_file() else read_folders(found)
    except OSError as error:
        raise UserError(f"{error.filename or path}: can't be read ({error.strerror}); check its permissions") from None
    return check(Dataset(found.resolve().name, labels, splits, tuple(notes)), seed)


def find(path):
    """The CSV file or the folder with the class or split folders at `path` or one level down; None without one."""
    if path.is_file():
        return path if has_csv_header(path) else None
    if not path.is_dir():
        return None
    below = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = []
    for folder in [path, *below]:
        tables = [file for file in sorted(folder.glob("*.csv")) if has_csv_header(file)]
        # the challenge's download holds its training rows a second time, without a column for the split
        found += [file for file in tables if has_csv_header(file, "Usage")] or tables
        if split_folder(folder, "train"):
            found.append(folder)
    if len(found) > 1:
        raise UserError(f"{path}: several data sets: {', '.join(map(str, found))}; name one of them with --data")
    if found:
        return found[0]
    # no split folders at all: the class folders stand right here
    return path if any(images_in(folder) for folder in below) else None


def split_folder(folder, split):
    """The sub-folder of `folder` that holds `split`, under any of its usual names; None without one."""
    for entry in sorted(folder.iterdir()):
        if entry.name.lower() in FOLDER_NAMES[split] and entry.is_dir():
            return entry
    return None


def images_in(folder):
    """Image files right in `folder`, sorted by name."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_ENDINGS and not entry.name.startswith(".") and entry.is_file()
    )


def read_folders(root):
    """Read a folder of class folders, with or without split folders above them."""
    folders = {split: split_folder(root, split) for split in SPLITS}
    if not folders["train"]:
        folders = {"train": root, "validation": None, "test": None}
    files = {split: {} for split in SPLITS}
    for split, folder in folders.items():
        for entry in sorted(folder.iterdir()) if folder else ():
            if entry.is_dir() and not entry.name.startswith("."):
                files[split].setdefault(entry.name.lower(), []).extend(images_in(entry))
    public = {
        label: [file for file in paths if file.name.startswith("PublicTest_")] for label, paths in files["test"].items()
    }
    if any(public.values()) and not folders["validation"]:  # Kaggle keeps both test sets of the challenge in test/
        files["validation"] = public
        files["test"] = {
            label: [file for file in paths if file not in set(public[label])] for label, paths in files["test"].items()
        }
    names = {label for by_label in files.values() for label, paths in by_label.items() if paths}
    labels = EMOTIONS if names == set(EMOTIONS) else tuple(sorted(names))

    splits, unreadable = {}, []
    for split, by_label in files.items():
        images, indices = [], []
        for index, label in enumerate(labels):
            for file in by_label.get(label, ()):
                pixels = np.fromfile(file, np.uint8)  # imread can't open every path on Windows
                picture = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if pixels.size else None
                if picture is None:
                    unreadable.append(file)
                    continue
                images.append(prepare(picture))
                indices.append(index)
        if images:
            splits[split] = Split(np.stack(images), np.array(indices))
    notes = []
    if unreadable:
        examples = ", ".join(str(file) for file in unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        notes.append(f"skipped {len(unreadable)} files that are no image OpenCV can read: {examples}")
    return labels, splits, notes


def has_csv_header(path, *more):
    """Whether `path` is a table with the columns `emotion` and `pixels`, and `more`."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [name.strip(' "\n') for name in file.readline(1000).split(",")]
    except (OSError, UnicodeDecodeError):
        return False
    return {"emotion", "pixels", *more} <= set(names)


def read_csv(path):
    """Read fer2013.csv or icml_face_data.csv: columns emotion (0 to 6), pixels (2304 numbers), Usage."""
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole CSV file ({str(error).strip()}); download it again") from None
    table.columns = table.columns.str.strip()
    if "Usage" not in table:
        table["Usage"] = "Training"
    images = np.empty((len(table), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for row, text in enumerate(table["pixels"]):
        try:
            pixels = np.array(str(text).split(), dtype=np.int64)
        except (ValueError, OverflowError):
            pixels = np.empty(0)
        if pixels.size != IMAGE_SIZE**2 or pixels.min() < 0 or pixels.max() > 255:
            raise UserError(
                f"{path}: data row {row + 1}: pixels are not {IMAGE_SIZE**2} numbers from 0 to 255; download it again"
            )
        images[row] = pixels.reshape(IMAGE_SIZE, IMAGE_SIZE)
    codes = pd.to_numeric(table["emotion"], errors="coerce")
    for wrong, column in ((~codes.isin(range(7)), "emotion"), (~table["Usage"].isin(CSV_USAGES), "Usage")):
        if wrong.any():
            row = wrong.to_numpy().argmax()
            known = "0 to 6" if column == "emotion" else ", ".join(CSV_USAGES)
            raise UserError(f"{path}: data row {row + 1}: {column} is {table[column].iloc[row]!r}, not one of {known}")
    order = np.array([EMOTIONS.index(name) for name in CSV_EMOTIONS])
    labels = order[codes.to_numpy(dtype=np.int64)]
    splits = {}
    for usage, split in CSV_USAGES.items():
        rows = (table["Usage"] == usage).to_numpy()
        if rows.any():
            splits[split] = Split(images[rows], labels[rows])
    return EMOTIONS, splits, []


def check(dataset, seed=0):
    """Hold out validation images where there are none, drop training images that also stand in another split, and count
    copies. Returns a Dataset whose notes say what was done. Raises UserError when nothing can be learned from it."""
    splits, notes = dict(dataset.splits), list(dataset.notes)
    if "train" not in splits:
        raise UserError(f"{dataset.source}: no training image that OpenCV can read; put some in train/<class>/")
    if "validation" not in splits:
        train = splits["train"]
        held = held_out(train.labels, seed)
        splits["train"] = Split(train.images[~held], train.labels[~held])
        splits["validation"] = Split(train.images[held], train.labels[held])
        notes.append(f"no validation split: held {held.sum()} images out of train (stratified, seed {seed})")

    for name in ("validation", "test"):
        if name in splits:
            seen = {image.tobytes() for image in splits[name].images}
            shared = np.array([image.tobytes() in seen for image in splits["train"].images])
            if shared.any():
                splits["train"] = Split(*(array[~shared] for array in splits["train"]))
                notes.append(f"dropped {shared.sum()} training images that also stand in {name}, pixel for pixel")
    for name, split in splits.items():
        labels_of = {}
        for image, label in zip(*split, strict=True):
            labels_of.setdefault(image.tobytes(), set()).add(label)
        copies, torn = len(split.images) - len(labels_of), sum(len(labels) > 1 for labels in labels_of.values())
        if copies:
            notes.append(
                f"kept {copies} images of {name} that copy another one there; {torn} pictures have several labels"
            )

    counts = {name: np.bincount(split.labels, minlength=len(dataset.labels)) for name, split in splits.items()}
    if len(dataset.labels) < 2:
        raise UserError(f"{dataset.source}: only one class ({', '.join(dataset.labels)}); training takes at least two")
    for index, label in enumerate(dataset.labels):
        if not counts["train"][index]:
            raise UserError(f"{dataset.source}: no training image of {label}; add some or remove its folder")
        if not counts["validation"][index]:
            notes.append(f"no validation image of {label}: its figures can't be measured")
    return dataset._replace(splits={name: splits[name] for name in SPLITS if name in splits}, notes=tuple(notes))


def held_out(labels, seed):
    """A boolean mask over `labels` that picks the same share of every class, at least one image of each."""
    held = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held[rows[: max(1, round(VALIDATION_SHARE * len(rows)))]] = True
    return held
