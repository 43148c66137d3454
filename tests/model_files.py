"""Small model files, opened in the limited process, which is forked from one that has TensorFlow already."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from unittest import mock

import h5py
import keras
import pytest
from conftest import ROOT

from expressions import EMOTIONS, UserError, model_compiler
from expressions.classifier import Classifier, CompiledNetwork
from expressions.model_file import check_path, digest

METADATA = {"labels": list(EMOTIONS), "scaling": "unit"}
STOPPED = "stopped"
KERNEL = "model_weights/dense/net/dense/kernel"  # in the files of `save`


def small_network(*layers):
    return keras.Sequential([keras.Input((48, 48, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(7)])


def write_metadata(path, metadata):
    """Replace the metadata of a model file."""
    with h5py.File(path, "r+") as file:
        file.attrs["facts"] = json.dumps(metadata)
        file.attrs["digest"] = digest(file)


def write_votes_layer(path, kernel, bias):
    """Add the layer that predicts votes to a model file."""
    with h5py.File(path, "r+") as file:
        file["votes/kernel"], file["votes/bias"] = kernel, bias
        file.attrs["digest"] = digest(file)


def save_model(network, path, metadata=METADATA):
    network.save(path)
    if metadata:
        write_metadata(path, metadata)
    return path


def save(path, *layers, shape=(48, 48, 1), classes=7):
    layers = layers or (keras.layers.Conv2D(2, 3, strides=8, name="conv"),)
    last = keras.layers.Flatten(name="flat"), keras.layers.Dense(classes, "softmax", name="dense")
    keras.Sequential([keras.Input(shape), *layers, *last], name="net").save(path)
    write_metadata(path, METADATA)
    return path


def unsealed(path):
    """The open file, without the digest that tells of changes: whoever makes such files leaves it out."""
    file = h5py.File(path, "r+")
    file.attrs.pop("digest", None)
    return file


def configured(path, change):
    """Let `change` change the configuration in the file; what it returns, if anything, goes in its place."""
    with unsealed(path) as file:
        config = json.loads(file.attrs["model_config"])
        config = change(config) or config
        file.attrs["model_config"] = json.dumps(config)


def layer(kind, **config):
    return {"class_name": kind, "config": config}


def run_limited(action, path, seconds=20, **given):
    """As `model_file.run_sandboxed`; the error says STOPPED if the process took more than its limits."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs a process to fork from")
    check_path(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "model_files"])
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "CUDA_VISIBLE_DEVICES": "-1"}
    with mock.patch.dict(os.environ, environment):  # only its own
        forkserver.ensure_running()
    with ProcessPoolExecutor(1, context) as pool:
        try:
            first_line, _, content = pool.submit(_run, seconds, action, str(path), given).result().partition(b"\n")
        except BrokenProcessPool:
            first_line, content = json.dumps(STOPPED), b""
    metadata = json.loads(first_line)
    if isinstance(metadata, str):
        raise UserError(f"{path}: {metadata}")
    return metadata, content


def _run(seconds, action, path, given):
    limits = mock.patch.multiple(model_compiler, COMPILE_SECONDS=seconds, CHECK_SECONDS=min(seconds, 10))
    with limits, model_compiler.suppress_output():
        return model_compiler.run(action, path, **given)


def load(path, **given):
    """As `Classifier.load`, without the cache."""
    metadata, content = run_limited("compile", path, **given)
    return Classifier(CompiledNetwork(content), metadata)


def refused(path, words, seconds=5):
    """Assert that the model at `path` is refused with `words` on one line, within the limits of time and memory."""
    with pytest.raises(UserError, match=words) as caught:
        run_limited("compile", path, seconds)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
