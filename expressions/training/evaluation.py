"""Measure a trained model again: `train.py --evaluate`."""

import argparse
from pathlib import Path

from expressions import UserError
from expressions.classifier import Classifier
from expressions.cli import escape_unprintable
from expressions.training import dataset, metrics
from expressions.training.readers import Dataset


def describe_data(data: Dataset) -> None:
    """Print what is in the data set, and what was noticed in reading it."""
    print(f"Data: {escape_unprintable(data.source)}\n{data.counts().to_string()}")
    for note in data.notes:
        print(f"  {escape_unprintable(note)}")


def evaluate(options: argparse.Namespace, path: Path) -> None:
    """Print the figures of options.evaluate on one split of the data set at `path`, with and without copies of
    training images.
    """
    given = {"scaling": options.scaling} if options.scaling else {}
    if options.labels:
        given["labels"] = [label.strip() for label in options.labels.split(",")]
    classifier, name = Classifier.load(options.evaluate, **given), options.split or "validation"
    data = dataset.load(path, training=False)
    describe_data(data)
    if name not in data.splits or not len(data.splits[name].images):
        raise UserError(f"--split {name}: {data.source} has {', '.join(data.splits)} only")
    split = data.splits[name]
    evaluations = metrics.evaluate(classifier, split, data.labels)
    print(f"\n{options.evaluate} on {name}, n = {len(split.images)}:\n{metrics.format_tables(evaluations)}")
    if name == "train" or "train" not in data.splits:
        return
    copies = dataset.duplicate_mask(split, data.splits["train"])
    if copies.all() or not copies.any():
        print(f"\n{'All' if copies.any() else 'None'} of these images also stand in train.")
        return
    own = {name: evaluation.subset(~copies) for name, evaluation in evaluations.items()}
    count = (~copies).sum()
    print(f"\nWithout the {copies.sum()} images that also stand in train, n = {count}:\n{metrics.format_tables(own)}")
