"""The compiled network: the same answers as Keras's, for this very model alone, and the program does without it."""

import builtins
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from expressions import compiled
from expressions.classifier import Classifier, write_facts, write_votes
from expressions.training import synthetic


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copy(trained, tmp_path / "model.h5")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of compiled networks, an own one for each test."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    folder = "cache/Library/Caches" if sys.platform == "darwin" else "cache"
    return tmp_path / folder / "facial-expressions"


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


def test_another_model_of_the_same_name_gets_a_network_of_its_own(model, cache):
    compiled.build(Classifier(model), model)
    [old] = cache.iterdir()
    write_facts(model, Classifier(model).facts | {"temperature": 3.0})
    assert compiled.load(model) is None
    compiled.build(Classifier(model), model)
    assert len(set(cache.iterdir()) - {old}) == 1 and compiled.load(model)
    assert cache.stat().st_mode & 0o777 == 0o700 or os.name == "nt"


def test_the_ten_most_recently_used_are_kept(model, cache, monkeypatch):
    classifier = Classifier(model)
    for number in range(12):
        monkeypatch.setattr(compiled, "place", lambda model, number=number: cache / f"{number}.tflite")
        cache.mkdir(parents=True, exist_ok=True)
        if number in (0, 11):
            compiled.build(classifier, model)
        else:
            (cache / f"{number}.tflite").touch()
        os.utime(cache / f"{number}.tflite", (1000 + number, 1000 + number))
        if number == 10:  # the oldest one is used again
            monkeypatch.setattr(compiled, "place", lambda model: cache / "0.tflite")
            assert compiled.load(model)
    names = {path.name for path in cache.iterdir()}
    assert names == {f"{number}.tflite" for number in (0, *range(3, 12))}


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "folder"])
def test_a_damaged_file_is_as_good_as_none(model, cache, damage):
    compiled.build(Classifier(model), model)
    [file] = cache.iterdir()
    content = file.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 64
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(
            {"empty": b"", "text": b"TFL3 but not really", "cut": content[:100_000], "flipped": changed}.get(
                damage, content
            )
        )
    assert compiled.load(model) is None
    compiled.build(Classifier(model), model)
    assert damage == "folder" or compiled.load(model)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a file in the way", "open to others", "full disk"])
def test_without_a_folder_it_is_compiled_anew(model, cache, monkeypatch, damage):
    cache.parent.mkdir(parents=True)
    if damage == "a file in the way":
        cache.touch()
    elif damage == "open to others":
        cache.mkdir()
        cache.chmod(0o777)
    else:
        monkeypatch.setattr(os, "replace", lambda *names: os.stat("/no such file"))
    assert compiled.build(Classifier(model), model)
    assert compiled.load(model) is None
    assert not cache.is_dir() or not list(cache.iterdir())


def test_a_cache_that_can_only_be_read_is_used(model, cache, monkeypatch):
    compiled.build(Classifier(model), model)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert compiled.load(model)


@pytest.mark.faults
def test_a_network_that_lies_beside_the_model_is_not_used(model, cache):
    """A stranger's folder may hold one that contradicts the model; it is neither read nor removed."""
    compiled.build(Classifier(model), model)
    [file] = cache.iterdir()
    for name in ("model.tflite", file.name, f"model.{file.stem[:12]}.tflite"):
        shutil.copy(file, model.with_name(name))
    file.unlink()
    assert compiled.load(model) is None and len(list(model.parent.glob("*.tflite"))) == 3


@pytest.mark.parametrize("what", ["label", "vote"])
def test_a_network_that_says_something_else_is_not_used(model, cache, monkeypatch, what):
    write_votes(model, np.zeros((256, 8), np.float32), np.zeros(8, np.float32))
    off = np.where((np.arange(15) < 7) == (what == "label"), np.linspace(0, 5, 15), 0).astype(np.float32)
    right = compiled.CompiledNetwork.predict_on_batch
    monkeypatch.setattr(compiled.CompiledNetwork, "predict_on_batch", lambda self, inputs: right(self, inputs) + off)
    assert compiled.build(Classifier(model), model) is None
    assert not cache.exists()


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
