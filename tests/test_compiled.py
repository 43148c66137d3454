"""The compiled network: the same answers as Keras's, for this very model alone, and kept for the next start."""

import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT
from limited import run_limited

from expressions import EMOTIONS, UserError, classifier, model_compiler
from expressions.classifier import Classifier
from expressions.model_compiler import complete_network
from expressions.model_file import read_metadata, write_metadata, write_votes_layer
from expressions.training import synthetic

RANDOM = np.random.default_rng(0)
VOTES = RANDOM.normal(size=(8, 8)).astype(np.float32), np.zeros(8, np.float32)
# prints the probabilities that the model file in its argument gives for a black image
PREDICT = """
import sys, numpy
from expressions.classifier import Classifier
print(Classifier.load(sys.argv[1]).predict_proba([numpy.zeros((48, 48), numpy.uint8)]).sum())
assert not {"tensorflow", "keras", "pandas", "matplotlib"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "model.h5"
    layers = keras.layers.Conv2D(8, 5, strides=4), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)
    keras.Sequential([keras.Input((48, 48, 1)), *layers]).save(path)
    write_metadata(path, {"labels": list(EMOTIONS), "scaling": "unit"})
    return path


@pytest.fixture
def model(small, tmp_path):
    return shutil.copy(small, tmp_path / "model.h5")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of compiled networks, an own one for each test."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    folder = "cache/Library/Caches" if sys.platform == "darwin" else "cache"
    return tmp_path / folder / "facial-expressions"


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The calls that compiled a network, in a forked process."""
    calls = []

    def compile(action, path, **given):
        calls.append(given)
        return run_limited(action, path, **given)

    monkeypatch.setattr(classifier, "run_sandboxed", compile)
    return calls


@pytest.mark.parametrize("votes", [False, True])
def test_says_what_keras_says_for_any_number_of_faces(model, votes, compiled):
    if votes:
        write_votes_layer(model, *VOTES)
    network = complete_network(keras.models.load_model(model, compile=False), VOTES if votes else None)
    slow, fast = Classifier(network, read_metadata(model)), Classifier.load(model)
    faces, _ = synthetic.draw_faces(10, seed=9)  # more than one batch
    for count in (1, 14, 3, 0, 70):
        for view in ({}, {"flip_tta": True}, {"votes": votes}):
            expected = slow.predict_proba(faces[:count], **view)
            np.testing.assert_allclose(fast.predict_proba(faces[:count], **view), expected, atol=1e-5)
    assert fast.has_votes == votes and fast.size == 48 and fast.network.output_shape == slow.network.output_shape
    assert len(compiled) == 1


def test_another_model_of_the_same_name_gets_a_network_of_its_own(model, cache, compiled):
    Classifier.load(model)
    [old] = cache.iterdir()
    write_metadata(model, read_metadata(model) | {"temperature": 3.0})
    assert Classifier.load(model).metadata["temperature"] == 3 and Classifier.load(model).metadata["temperature"] == 3
    assert len(compiled) == 2 and len(set(cache.iterdir()) - {old}) == 1
    assert cache.stat().st_mode & 0o777 == 0o700 or os.name == "nt"


def test_the_same_model_with_given_labels_and_scaling_gets_one_for_them(model, compiled):
    given = [{}, {"labels": tuple("abcdefg")}, {"scaling": "pixels"}, {"labels": tuple("gfedcba")}]
    for _ in range(2):
        for each in given:
            loaded = Classifier.load(model, **each)
            assert loaded.labels == each.get("labels", EMOTIONS)
            assert loaded.metadata["scaling"] == each.get("scaling", "unit")
    assert len(compiled) == len(given)


def test_the_ten_most_recently_used_are_kept(model, cache, monkeypatch, compiled):
    for number in range(12):
        monkeypatch.setattr(classifier, "cache_name", lambda *_, number=number: f"{number}.tflite")
        cache.mkdir(parents=True, exist_ok=True)
        if number in (0, 11):
            Classifier.load(model)
        else:
            (cache / f"{number}.tflite").touch()
        os.utime(cache / f"{number}.tflite", (1000 + number, 1000 + number))
        if number == 10:  # the oldest one is used again
            monkeypatch.setattr(classifier, "cache_name", lambda *_: "0.tflite")
            assert Classifier.load(model) and len(compiled) == 1
    names = {path.name for path in cache.iterdir()}
    assert names == {f"{number}.tflite" for number in (0, *range(3, 12))}


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "no LiteRT", "folder"])
def test_a_damaged_file_is_as_good_as_none(model, cache, damage, compiled):
    Classifier.load(model)
    [file] = cache.iterdir()
    content = file.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 64
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "no LiteRT":  # as from another version
        classifier.write_cached(file.name, {"labels": list(EMOTIONS)}, b"something else")
    else:
        contents = {"empty": b"", "text": b"TFL3 but not really", "cut": content[:100], "flipped": changed}
        file.write_bytes(contents[damage])
    assert Classifier.load(model) and len(compiled) == 2
    assert Classifier.load(model) and len(compiled) == (3 if damage == "folder" else 2)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a file in the way", "open to others", "full disk"])
def test_without_a_folder_it_is_compiled_anew(model, cache, monkeypatch, damage, compiled):
    cache.parent.mkdir(parents=True)
    if damage == "a file in the way":
        cache.touch()
    elif damage == "open to others":
        cache.mkdir()
        cache.chmod(0o777)
    else:
        monkeypatch.setattr(os, "replace", lambda *names: os.stat("/no such file"))
    assert Classifier.load(model) and Classifier.load(model) and len(compiled) == 2
    assert not cache.is_dir() or not list(cache.iterdir())


def test_a_cache_that_can_only_be_read_is_used(model, cache, monkeypatch, compiled):
    Classifier.load(model)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert Classifier.load(model) and len(compiled) == 1


@pytest.mark.faults
def test_a_network_that_lies_beside_the_model_is_not_used(model, cache, compiled):
    """A stranger's folder may hold one that contradicts the model; it is neither read nor removed."""
    Classifier.load(model)
    [file] = cache.iterdir()
    for name in ("model.tflite", file.name, f"model.{file.stem[:12]}.tflite"):
        shutil.copy(file, model.with_name(name))
    file.unlink()
    assert Classifier.load(model) and len(compiled) == 2 and len(list(model.parent.glob("*.tflite"))) == 3


@pytest.mark.parametrize("what", ["label", "vote"])
def test_a_network_that_says_something_else_is_not_used(model, monkeypatch, what):
    """In this process, where the compiled network can be changed."""
    write_votes_layer(model, np.zeros((8, 8), np.float32), np.zeros(8, np.float32))
    off = np.where((np.arange(15) < 7) == (what == "label"), np.linspace(0, 5, 15), 0).astype(np.float32)
    right = model_compiler.CompiledNetwork.predict_on_batch
    monkeypatch.setattr(
        model_compiler.CompiledNetwork, "predict_on_batch", lambda self, inputs: right(self, inputs) + off
    )
    with pytest.raises(UserError, match="differs from Keras's"):
        model_compiler.compile_network(model, *model_compiler.validate_model_file(model))


@pytest.mark.parametrize(
    ("name", "words"),
    [("tensorflow", "pip install tensorflow"), ("ai_edge_litert.interpreter", "pip install ai-edge-litert")],
)
def test_what_is_missing_is_named(model, cache, monkeypatch, name, words):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=words):
        model_compiler.compile_network(model, *model_compiler.validate_model_file(model))
    if name.startswith("ai_edge"):
        with pytest.raises(UserError, match=words):
            Classifier.load(model)


def test_another_process_compiles_once_and_says_so(model, cache, monkeypatch):
    """The program itself needs neither TensorFlow nor Keras."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # of the program; the converter needs TensorFlow
    for said in (f"Compiling {model}: this takes some seconds, once ...\n", ""):
        command = [sys.executable, "-c", PREDICT, str(model)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert result.returncode == 0 and not result.stderr, result.stderr  # nor does it tell of itself
        line, probabilities = result.stdout[: len(said)], result.stdout[len(said) :]
        assert line == said and float(probabilities) == pytest.approx(1)
