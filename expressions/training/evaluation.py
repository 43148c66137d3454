"""Measure a trained model: the network of a finished run, which becomes a model file, and any file with --evaluate."""

import argparse
import contextlib
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from expressions import UserError
from expressions.classifier import Classifier, cache_name, file_digest, write_cached
from expressions.cli import escape_unprintable
from expressions.files import atomic_write, suppress_output
from expressions.model_compiler import complete_network, to_litert
from expressions.model_file import dump_model, read_metadata
from expressions.training import dataset, metrics, report
from expressions.training.readers import Dataset
from expressions.training.targets import extract_label_head


def describe_data(data: Dataset) -> None:
    """Print what is in the data set, and what was noticed in reading it."""
    print(f"Data: {escape_unprintable(data.source)}\n{data.counts().to_string()}")
    for note in data.notes:
        print(f"  {escape_unprintable(note)}")


def evaluate(options: argparse.Namespace, path: Path) -> None:
    """Print the figures of options.evaluate on a split of the data at `path`, with and without copies of its train."""
    classifier = Classifier.load(options.evaluate, labels=options.labels, scaling=options.scaling)
    name = options.split or "validation"
    data = dataset.load(path, training=False)
    describe_data(data)
    if name not in data.splits or not len(data.splits[name].images):
        raise UserError(f"--split {name}: {data.source} has {', '.join(data.splits)} only")
    split = data.splits[name]
    print("\nMeasuring the model ...", flush=True)
    evaluations = metrics.evaluate(classifier, split, data.labels)
    print(f"\n{options.evaluate} on {name}, n = {len(split.images)}:\n{metrics.format_tables(evaluations)}")
    print("\nAs a camera sees it, single view:", flush=True)
    print(metrics.format_corrupted(metrics.evaluate_corrupted(classifier, split, data.labels)).to_string())
    if name == "train" or "train" not in data.splits:
        return
    copies = dataset.duplicate_mask(split, data.splits["train"])
    if copies.all() or not copies.any():
        print(f"\n{'All' if copies.any() else 'None'} of these images also stand in train.")
        return
    own = {name: evaluation.subset(~copies) for name, evaluation in evaluations.items()}
    count = (~copies).sum()
    print(f"\nWithout the {copies.sum()} images that also stand in train, n = {count}:\n{metrics.format_tables(own)}")


def write_model(
    best: Path, build: Callable, data: Dataset, options: argparse.Namespace, tau: float, started: str
) -> None:
    """Write the model file and its report, and print how good it is; keep a model of another run under another name.

    Args:
        best: The network of the run's best epoch, a .keras file in the directory for the report.
        build: Makes that network, from the number of outputs and their activation.
        data: What it was trained on.
        options: Of train.py, completed.
        tau: See `extract_label_head`.
        started: When the run began; tells runs apart.
    """
    directory, classes = best.parent, len(data.labels)
    if not best.exists():
        raise UserError(f"{directory}: no epoch has ended well, so there is no model; {options.model} is as it was")
    weights = keras.models.load_model(best, compile=False).get_weights()
    label_head = extract_label_head(weights, np.bincount(data.splits["train"].labels), tau)
    network = build(classes, "softmax")
    network.set_weights([array.astype(np.float16) for array in label_head])  # as the file has them
    *_, kernel, bias = (array.astype(np.float16) for array in weights)
    votes = (kernel[:, classes:], bias[classes:]) if bias.size > classes else None
    metadata = _describe(data, options, network.count_params()) | {"started": started}

    print("\nMeasuring the model ...", flush=True)
    litert, compiled = None, complete_network(network, votes)
    if keras.config.backend() == "tensorflow":
        with suppress_output():
            litert, compiled = to_litert(compiled)
    classifier, validation = Classifier(compiled, metadata), data.splits["validation"]
    views = [classifier.predict_proba(images) for images in (validation.images, validation.images[:, :, ::-1])]
    metadata["temperature"] = metrics.fit_temperature(views, validation.labels)
    evaluations = metrics.evaluate(classifier, validation, data.labels)
    metadata["metrics"] = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
    corrupted = metrics.evaluate_corrupted(classifier, validation, data.labels)
    metadata["metrics"]["as a camera sees it"] = corrupted["top-1"].round(6).to_dict()
    content = dump_model(network, metadata, votes)
    with atomic_write(options.model) as partial:
        partial.write_bytes(content)
        os.replace(directory / "history.partial.csv", directory / "history.csv")
        report.write_report(directory, metadata, data, evaluations, corrupted, megabytes=len(content) / 1e6)
        _keep_previous(options.model, started)
    with contextlib.suppress(OSError, RuntimeError):  # nowhere to keep it: compiled again when it is used
        if litert:
            write_cached(cache_name(file_digest(options.model), {}), metadata, litert)
    begun = f", started from {options.start_words}" if options.start_words else ""
    print(f"\nValidation, n = {len(validation.images)}, one run, seed {options.seed}{begun}:")
    print(metrics.format_tables(evaluations))
    print(f"\nAs a camera sees it, single view:\n{metrics.format_corrupted(corrupted).to_string()}")
    print(f"\nModel:  {options.model}\nReport: {directory}")


def _describe(data, options, parameters):
    return {
        "name": options.model.stem, "network": options.network, "parameters": parameters,
        "labels": list(data.labels), "scaling": "unit", "temperature": 1,
        "data": data.source, "fingerprint": data.fingerprint(),
        "seed": options.seed, "batch_size": options.batch_size, "precision": options.precision,
        "fold": options.fold, "start": options.start_words,
        "teachers": [path.name for path in options.teacher],
        "machine": f"{platform.system()} {platform.machine()} with {os.cpu_count()} processors",
        "versions": f"Keras {keras.__version__} on {keras.config.backend()}, Python {platform.python_version()}",
    }  # fmt: skip


def _keep_previous(model, started):
    with contextlib.suppress(UserError):  # not one of ours
        if not model.exists() or read_metadata(model).get("started") == started:
            return
    names = (f"{model.stem}.previous{number}.h5" for number in ("", *range(2, 10**6)))
    previous = next(path for path in map(model.with_name, names) if not path.exists())
    with atomic_write(previous) as copy:
        shutil.copy2(model, copy)
    print(f"\nThe model that was there is now {previous}.")
