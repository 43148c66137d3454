"""Soft labels: what networks that have not seen an image say of it, for another one to learn (arXiv:2104.09732).

The training images are divided into N parts by their content. A network trained with `--fold K/N` has not seen the K-th
part, so it speaks of that part alone. A teacher that has seen an image mostly repeats its label.
"""

from itertools import product
from pathlib import Path

import cv2
import numpy as np

from expressions import UserError
from expressions.classifier import Classifier, softmax
from expressions.files import atomic_write
from expressions.training import distributed
from expressions.training.fer2013 import original_digests
from expressions.training.readers import Dataset

VIEWS = (1.0, 1.06, 0.95)  # zooms of an image, each also mirrored, whose mean prediction is its soft label
MAX_BYTES = 2**26  # of a file's arrays, which may be compressed: almost two million images of seven classes


def fold_mask(images: np.ndarray, fold: str) -> np.ndarray:
    """Which images are in the part that `fold`, "K/N", names, a boolean mask (n,). Copies are in the same part."""
    part, parts = map(int, fold.split("/"))
    return original_digests(images) % np.uint64(parts) == part - 1


def leave_out(data: Dataset, fold: str | None) -> Dataset:
    """The data set without the training images of that part, if there is one; UserError where a class has no others."""
    if not fold:
        return data
    train = data.splits["train"]
    left_out = fold_mask(train.images, fold)
    kept = train.subset(~left_out)
    if missing := [label for index, label in enumerate(data.labels) if index not in kept.labels]:
        raise UserError(f"--fold {fold}: leaves no training image of {missing[0]}; take fewer parts")
    note = f"left out part {fold} of the training images, {left_out.sum()} of {len(left_out)}"
    return data._replace(splits=data.splits | {"train": kept}, notes=(*data.notes, note))


def soft_labels(teachers: list[Path], images: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """The mean of what the teachers that have not seen an image say of it, NaN where there is none.

    Args:
        teachers: Model files, and .npz files of `write_soft_labels`. A model trained without `--fold` counts as one
            that has seen no image.
        images: Gray uint8 (n, 48, 48).
        labels: The classes, in their order.

    Returns:
        float32 (n, columns): probabilities of the labels and, if all teachers predict them, of the votes.

    Raises:
        UserError: A teacher can't be read, knows other labels, or none has something to say.
    """
    said = [(_read if teacher.suffix == ".npz" else _ask)(teacher, images, labels) for teacher in teachers]
    said = np.stack([each[:, : min(each.shape[1] for each in said)] for each in said])
    known = np.isfinite(said[..., 0])
    print(f"Soft labels for {known.any(axis=0).sum()} of {len(images)} training images", flush=True)
    if not known.any():
        raise UserError(
            f"--teacher {' '.join(map(str, teachers))}: nothing about these images; is it another data set?"
        )
    sums, counts = np.nansum(said, axis=0), known.sum(axis=0)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def write_soft_labels(path: Path, teachers: list[Path], data: Dataset) -> None:
    """Write the soft labels of those training images that have any; about 1 MB for FER2013. By the primary process."""
    images = data.splits["train"].images
    soft = soft_labels(teachers, images, data.labels)
    if not distributed.is_primary():
        return
    found, first = np.unique(original_digests(images), return_index=True)
    known = np.isfinite(soft[first, 0])
    arrays = {"digests": found[known], "probabilities": soft[first][known].astype(np.float16)}
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, labels=np.array(data.labels), **arrays)
    print(f"Soft labels: {path}")


def _read(path, images, labels):
    try:
        with np.load(path) as file:
            if sum(part.file_size for part in file.zip.infolist()) > MAX_BYTES:
                raise ValueError(path)
            found, probabilities = file["digests"], file["probabilities"].astype(np.float32, casting="same_kind")
            known = tuple(map(str, file["labels"][: len(labels) + 1])) if "labels" in file else labels
        sound = found.dtype == np.uint64 and found.size and found.shape == probabilities.shape[:-1] == (found.size,)
        sound = sound and probabilities.shape[1] in (len(labels), 2 * len(labels) + 1)
        if not sound or not (np.isfinite(probabilities) & (probabilities >= 0)).all():
            raise ValueError(path)
    except Exception as error:  # whatever NumPy and zipfile make of a file that is damaged, or another one
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a whole file of soft labels"
        raise UserError(f"--teacher {path}: {reason}; train.py --soft-labels makes such files") from None
    _check_labels(path, known, labels)
    print(f"{path}: looking up its soft labels ...", flush=True)
    order, wanted = np.argsort(found), original_digests(images)
    rows = order[np.searchsorted(found, wanted, sorter=order).clip(max=found.size - 1)]
    return np.where(found[rows][:, None] == wanted[:, None], probabilities[rows], np.nan)


def _ask(teacher, images, labels):
    classifier = Classifier.load(teacher)
    _check_labels(teacher, classifier.labels, labels)
    fold = classifier.metadata.get("fold")
    rows = np.flatnonzero(fold_mask(images, fold)) if fold else np.arange(len(images))
    said = np.full((len(images), classifier.network.output_shape[1]), np.nan, np.float32)
    said[rows] = 0
    print(f"{teacher} looks at {len(rows)} images ...", flush=True)
    for zoom, mirrored in product(VIEWS, (False, True)):
        logits = classifier.predict_logits([zoom_image(image, zoom) for image in images[rows]], mirrored)
        known, votes = np.split(logits, [len(labels)], axis=1)
        probabilities = np.hstack([softmax(known, classifier.metadata.get("temperature", 1)), softmax(votes)])
        said[rows] += probabilities / (2 * len(VIEWS))
    return said


def _check_labels(path, known, labels):
    if known != labels:
        raise UserError(f"--teacher {path}: knows {', '.join(known):.500}, not {', '.join(labels):.500}")


def zoom_image(image: np.ndarray, zoom: float) -> np.ndarray:
    """Enlarge what is in an image (height, width); what lies outside repeats the border."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, zoom)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
