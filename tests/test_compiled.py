"""The compiled network: the same answers as Keras's, for this very model alone, and the program does without it."""

import builtins
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from expressions import compiled, synthetic
from expressions.classifier import Classifier, write_facts, write_votes


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copy(trained, tmp_path / "model.h5")


@pytest.mark.parametrize("votes", [False, True])
def test_says_what_keras_says_for_any_number_of_faces(model, votes):
    if votes:
        random = np.random.default_rng(0)
        write_votes(model, random.normal(size=(256, 8)).astype(np.float32), np.zeros(8, np.float32))
    slow = Classifier(model)
    assert compiled.load(model) is None
    built = compiled.build(slow, model)
    fast = Classifier(model, compiled.load(model))
    faces, _ = synthetic.draw_faces(3, seed=9)
    for count in (1, 14, 3, 0):
        for view in ({}, {"mirrored": True}, {"votes": votes}):
            expected = slow.probabilities(faces[:count], **view)
            np.testing.assert_allclose(fast.probabilities(faces[:count], **view), expected, atol=1e-5)
    assert fast.votes == votes and fast.size == 48 and built.output_shape == slow.network.output_shape


def test_another_model_of_the_same_name_gets_a_network_of_its_own(model):
    compiled.build(Classifier(model), model)
    [old] = model.parent.glob("*.tflite")
    write_facts(model, Classifier(model).facts | {"temperature": 3.0})
    assert compiled.load(model) is None
    compiled.build(Classifier(model), model)
    [new] = model.parent.glob("*.tflite")
    assert new != old and compiled.load(model)


def test_other_files_beside_it_stay(model):
    mine = model.with_name("model.mine.tflite")
    mine.touch()
    compiled.build(Classifier(model), model)
    assert mine.exists() and len(list(model.parent.glob("*.tflite"))) == 2


@pytest.mark.parametrize("content", [b"", b"TFL3 but not really", None])
def test_a_damaged_file_is_as_good_as_none(model, content):
    compiled.build(Classifier(model), model)
    [file] = model.parent.glob("*.tflite")
    file.write_bytes(file.read_bytes()[:100_000] if content is None else content)
    assert compiled.load(model) is None


def test_a_network_that_says_something_else_is_not_used(model, monkeypatch):
    right = compiled.CompiledNetwork.predict_on_batch
    wrong = lambda self, inputs: right(self, inputs) + np.linspace(0, 5, 7, dtype=np.float32)  # noqa: E731
    monkeypatch.setattr(compiled.CompiledNetwork, "predict_on_batch", wrong)
    assert compiled.build(Classifier(model), model) is None
    assert not list(model.parent.glob("*.tflite"))


def test_without_litert_there_is_none(model, monkeypatch):
    compiled.build(Classifier(model), model)
    plain = builtins.__import__

    def without(name, *rest):
        if name.startswith("ai_edge_litert"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert compiled.load(model) is None and compiled.build(Classifier(model), model) is None


def test_it_needs_neither_tensorflow_nor_keras(model):
    compiled.build(Classifier(model), model)
    code = f"""
import sys
from expressions import compiled
from expressions.classifier import Classifier
import numpy
classifier = Classifier({str(model)!r}, compiled.load({str(model)!r}))
print(classifier.probabilities([numpy.zeros((48, 48), numpy.uint8)]).sum())
assert not {{"tensorflow", "keras", "pandas", "matplotlib"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0 and float(result.stdout) == pytest.approx(1), result.stderr
    assert not result.stderr  # nor does it tell of itself
