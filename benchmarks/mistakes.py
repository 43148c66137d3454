"""Measure what the mistakes of many tutorials cost, on the validation split of FER2013.

    python benchmarks/mistakes.py --data data/fer2013

A trained model stays as it is; only what it is given, or how its answer is read, is wrong in one respect at a time. See
docs/mistakes.md.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from expressions import EMOTIONS
from expressions.classifier import Classifier
from expressions.training import dataset

KAGGLE_LABELS = "angry disgust fear happy sad surprise neutral".split()  # in the order of the numbers in fer2013.csv
SIDE, BORDER = 48, 12  # pixels of a face; of what is added, or cut off, on each side where the box is wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of FER2013")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "emotion_model.h5")
    options = parser.parse_args()
    classifier = Classifier.load(options.model)
    validation = dataset.load(options.data, training=False).splits["validation"]
    images = [image.reshape(SIDE, SIDE) for image in validation.images]
    right, kaggle = np.arange(len(EMOTIONS)), np.array([EMOTIONS.index(name) for name in KAGGLE_LABELS])

    def top1(inputs, names=right):
        batches = np.array_split(inputs, len(inputs) // 64)
        logits = np.concatenate([classifier.network.predict_on_batch(batch) for batch in batches])
        return np.mean(names[logits[:, : len(names)].argmax(axis=1)] == validation.labels)

    def changed(change):
        return classifier.inputs([change(image) for image in images])

    pixels = changed(lambda image: image)
    mean, spread = pixels.mean(axis=(1, 2, 3), keepdims=True), pixels.std(axis=(1, 2, 3), keepdims=True)
    print(f"top-1, n = {len(images)}, single view")
    for mistake, value in {
        "none": top1(pixels),
        "pixels from 0 to 255 instead of 0 to 1": top1(pixels * 255),
        "pixels from -1 to 1": top1(pixels * 2 - 1),
        "each face with mean 0 and deviation 1": top1((pixels - mean) / (spread + 1e-6)),
        "labels in the order of fer2013.csv": top1(pixels, kaggle),
        "histogram equalised": top1(changed(cv2.equalizeHist)),
        "box half as large again": top1(
            changed(lambda image: cv2.copyMakeBorder(image, *[BORDER] * 4, cv2.BORDER_REPLICATE))
        ),
        "box without its outer seventh": top1(changed(lambda image: image[7:-7, 7:-7])),
        "face squeezed to 5 : 8": top1(changed(lambda image: image[:, 9:-9])),
    }.items():
        print(f"{value:6.1%}  {mistake}")


if __name__ == "__main__":
    main()
