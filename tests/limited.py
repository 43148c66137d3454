"""Open model files in the limited process, forked from one that has TensorFlow already, which saves seconds."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from unittest import mock

import pytest
from conftest import ROOT

from expressions import UserError, model_compiler
from expressions.classifier import Classifier, CompiledNetwork
from expressions.model_file import check_path

STOPPED = "stopped"


def run_limited(action, path, seconds=20, **given):
    """As `model_file.run_sandboxed`; the error says STOPPED if the process took more than its limits."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs a process to fork from")
    check_path(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "limited"])
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
