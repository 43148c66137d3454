"""The classifier: what it says of faces, and the compiled network that it keeps for the next start."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, slow_but
from model_files import METADATA, load, run_limited, save_model, write_metadata, write_votes_layer

from expressions import EMOTIONS, UserError, classifier, model_compiler
from expressions.classifier import COMPILED, MODEL, Classifier
from expressions.model_compiler import complete_network
from expressions.model_file import read_metadata
from expressions.training import synthetic


@pytest.fixture(scope="module")
def loaded(trained):
    """The trained network, compiled as it is in the cache of all tests."""
    return Classifier.load(trained)


def test_probabilities_of_any_number_of_faces(loaded):
    faces, _ = synthetic.draw_faces(50, seed=9)  # more than one batch
    probabilities = loaded.predict_proba(faces)
    assert probabilities.shape == (350, 7) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(loaded.predict_proba(faces[:1]), probabilities[:1], atol=1e-5)
    assert loaded.predict_proba([]).shape == (0, 7)


def test_the_network_in_memory_says_what_its_file_says(trained, loaded):
    network = complete_network(keras.models.load_model(trained, compile=False))
    faces, _ = synthetic.draw_faces(2, seed=9)
    expected = loaded.predict_proba(faces)
    np.testing.assert_allclose(Classifier(network, read_metadata(trained)).predict_proba(faces), expected, atol=1e-5)


@pytest.mark.faults
def test_an_output_that_is_no_row_for_each_face(loaded, monkeypatch):
    right = loaded.network.predict_on_batch
    monkeypatch.setattr(loaded.network, "predict_on_batch", lambda inputs: np.concatenate([right(inputs)] * 2))
    with pytest.raises(UserError, match="no numbers"):
        loaded.predict_proba([np.zeros((48, 48), np.uint8)])


def test_faces_of_mixed_sizes_in_one_call(loaded):
    face = synthetic.draw_face("sad", np.random.default_rng(0), 200)
    mixed = loaded.predict_proba([face, face[:, :, None].repeat(3, axis=2), face[::2, ::2]])
    np.testing.assert_allclose(mixed[0], mixed[1], atol=1e-6)


def test_the_mirrored_view_is_averaged_in(loaded):
    faces, _ = synthetic.draw_faces(2, seed=9)
    expected = (loaded.predict_proba(faces) + loaded.predict_proba(faces[:, :, ::-1])) / 2
    np.testing.assert_allclose(loaded.predict_proba(faces, flip_tta=True), expected, atol=1e-5)


def test_the_temperature_of_the_file_is_applied(model):
    faces, _ = synthetic.draw_faces(2, seed=9)
    write_metadata(model, METADATA)
    plain = load(model).predict_proba(faces)
    write_metadata(model, METADATA | {"temperature": 2})
    expected = np.sqrt(plain) / np.sqrt(plain).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(load(model).predict_proba(faces), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "lowest", "highest"),
    [("unit", 0, 1), ("symmetric", -1, 1), ("pixels", 0, 255), ("standardised", None, None)],
)
@pytest.mark.parametrize(("size", "channels"), slow_but([(48, 1), (64, 3)], (48, 1)))
def test_a_model_from_another_program(tmp_path, scaling, lowest, highest, size, channels):
    """Its outputs are the means of its input's upper and lower half, so they tell what it was fed."""
    layers = [keras.layers.AveragePooling2D((size // 2, size)), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input((size, size, channels)), *layers])
    path = save_model(network, tmp_path / "other.h5", metadata=None)
    labels = [f"{half} {channel}" for half in ("upper", "lower") for channel in range(channels)]
    classifier = load(path, labels=labels, scaling=scaling)
    face = np.zeros((48, 48), np.uint8)
    face[24:] = 255
    inputs = classifier.inputs([face])
    assert inputs.shape == (1, size, size, channels) and inputs.dtype == np.float32
    if lowest is None:
        assert inputs.mean() == pytest.approx(0, abs=1e-5) and inputs.std() == pytest.approx(1, abs=1e-4)
    else:
        assert inputs.min() == lowest and inputs.max() == highest
    probabilities = classifier.predict_proba([face])[0]  # these outputs are no probabilities: softmax comes after
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert (probabilities[channels:] > probabilities[:channels]).all()


@pytest.mark.faults
def test_outputs_that_are_no_numbers(trained_copy):
    classifier = Classifier(keras.models.load_model(trained_copy, compile=False), METADATA)
    classifier.network.set_weights([weights * np.nan for weights in classifier.network.get_weights()])
    with pytest.raises(UserError, match="no numbers"):
        classifier.predict_proba([np.zeros((48, 48), np.uint8)])


@pytest.mark.slow
def test_votes_are_told_from_the_features_before_the_last_layer(tmp_path):
    layers = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7, activation="softmax")
    path = save_model(keras.Sequential([keras.Input((48, 48, 1)), *layers]), tmp_path / "model.h5")
    assert not load(path).has_votes
    kernel, bias = np.arange(8, dtype=np.float32)[None], np.zeros(8, np.float32)
    write_votes_layer(path, kernel, bias)
    classifier, faces = load(path), [np.full((48, 48), 51, np.uint8)]  # the feature is 51 / 255
    labels, shares, shown = (classifier.predict_proba(faces, votes=votes)[0] for votes in (0, 1, 0.5))
    np.testing.assert_allclose(shown, (labels + shares) / 2, atol=1e-6)
    assert classifier.shown_votes == 0.5 and abs(labels - shares).max() > 0.01
    with h5py.File(path, "r+") as file:
        del file["votes/bias"], file.attrs["digest"]
    with pytest.raises(UserError, match="votes is damaged"):
        load(path)
    with h5py.File(path, "r+") as file:
        del file["votes"]
    for wrong in ((kernel[:, :5], bias), (kernel, bias[:5])):
        write_votes_layer(path, *wrong)
        with pytest.raises(UserError, match="doesn't fit its network"):
            load(path)
        with h5py.File(path, "r+") as file:
            del file["votes"]
    np.testing.assert_allclose(shares, np.exp(0.2 * np.arange(7)) / np.exp(0.2 * np.arange(7)).sum(), atol=1e-5)


@pytest.mark.faults
def test_two_labels_that_are_the_same(trained_copy):
    with pytest.raises(UserError, match="two of its labels are the same"):
        load(trained_copy, labels=["happy"] * 7)


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


@pytest.mark.parametrize("votes", slow_but([False, True], True))
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


@pytest.mark.slow
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
            own = Classifier.load(model, **each)
            assert own.labels == each.get("labels", EMOTIONS)
            assert own.metadata["scaling"] == each.get("scaling", "unit")
    assert len(compiled) == len(given)


def test_other_checks_get_a_network_of_their_own(model, monkeypatch, compiled, tmp_path):
    """For what passed the checks of an older version may not pass these."""
    Classifier.load(model)
    monkeypatch.setattr(classifier, "CHECKS", [tmp_path / "model_validation.py"])
    (tmp_path / "model_validation.py").write_text("older")
    assert Classifier.load(model) and Classifier.load(model) and len(compiled) == 2


def test_the_ten_most_recently_used_are_kept(model, cache, monkeypatch, compiled):
    cache.mkdir(parents=True)
    others = [cache / "thesis.txt", cache / "thesis.tflite", cache / f"{'f' * 64}.tflite"]
    for other in others:  # the oldest of all, but not the program's
        other.touch()
        os.utime(other, (1, 1))
    for number in range(12):
        monkeypatch.setattr(classifier, "cache_name", lambda *_, number=number: f"{number:064}.tflite")
        if number in (0, 11):
            Classifier.load(model)
        else:
            (cache / f"{number:064}.tflite").write_bytes(hashlib.sha256(b"").digest())
        os.utime(cache / f"{number:064}.tflite", (1000 + number, 1000 + number))
        if number == 10:  # the oldest one is used again
            monkeypatch.setattr(classifier, "cache_name", lambda *_: f"{0:064}.tflite")
            assert Classifier.load(model) and len(compiled) == 1
    assert all(other.exists() for other in others)
    names = {path.name for path in cache.iterdir() if path not in others}
    assert names == {f"{number:064}.tflite" for number in (0, *range(3, 12))}


@pytest.mark.faults
@pytest.mark.parametrize("damage", slow_but(["empty", "text", "cut", "flipped", "no LiteRT", "folder"], "cut"))
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
@pytest.mark.parametrize("damage", slow_but(["a file in the way", "open to others", "full disk"], "full disk"))
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


def test_the_shipped_network_is_that_of_the_shipped_model(compiled, cache, tmp_path):
    """After a change of either: `python -m expressions.model_compiler`. A copy of the model has the same network."""
    assert classifier.file_digest(MODEL) == classifier.MODEL_DIGEST
    shipped = Classifier.load(shutil.copy(MODEL, tmp_path))
    assert compiled == [] and not cache.exists()
    with h5py.File(MODEL) as file:
        metadata = json.loads(file.attrs["facts"])
    assert shipped.metadata == metadata and list(shipped.labels) == metadata["labels"]


@pytest.mark.slow
def test_the_shipped_network_says_what_its_model_says(monkeypatch, capsys, tmp_path):
    faces, _ = synthetic.draw_faces(20, seed=9)
    expected, shipped = load(MODEL), Classifier.load(MODEL)
    monkeypatch.setattr(model_compiler, "COMPILED", tmp_path / "new.compiled")
    model_compiler.compile_shipped_model()
    said = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    assert said["MODEL_DIGEST"] == f'"{classifier.MODEL_DIGEST}"'
    monkeypatch.setattr(classifier, "COMPILED", tmp_path / "new.compiled")
    monkeypatch.setattr(classifier, "COMPILED_DIGEST", said["COMPILED_DIGEST"].strip('"'))
    compiled = Classifier.load(MODEL)
    for votes in (0, 0.5, 1):
        right = expected.predict_proba(faces, votes=votes)
        for float16 in (shipped, compiled):
            np.testing.assert_allclose(float16.predict_proba(faces, votes=votes), right, atol=5e-3)


@pytest.mark.faults
@pytest.mark.parametrize("case", ["network", "model", "labels"])
def test_the_shipped_network_is_used_for_no_other_model(monkeypatch, tmp_path, case):
    """Nor is another one for the shipped model, though it bears its own SHA-256."""
    monkeypatch.setattr(classifier, "run_sandboxed", lambda *_, **__: ({"labels": []}, b""))
    path, given = shutil.copy(MODEL, tmp_path), {"labels": tuple("abcdefg")} if case == "labels" else {}
    if case == "network":
        monkeypatch.setattr(classifier, "COMPILED", tmp_path / "other.compiled")
        metadata, _, content = COMPILED.read_bytes()[classifier.DIGEST_BYTES :].partition(b"\n")
        changed = json.loads(metadata) | {"labels": list(reversed(EMOTIONS))}
        (tmp_path / "other.compiled").write_bytes(classifier.seal(changed, content))
    elif case == "model":
        write_metadata(path, METADATA)
        shutil.copy(COMPILED, tmp_path)
    with pytest.raises(ValueError):  # what the stand-in for the compiler gives is no network
        Classifier.load(path, **given)


@pytest.mark.slow
def test_another_process_compiles_once_and_says_so(model, cache, monkeypatch):
    """The program itself needs neither TensorFlow nor Keras."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # of the program; the converter needs TensorFlow
    for said in (f"Compiling {model}: this takes some seconds, once ...\n", ""):
        command = [sys.executable, "-c", PREDICT, str(model)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert result.returncode == 0 and not result.stderr, result.stderr  # nor does it tell of itself
        line, probabilities = result.stdout[: len(said)], result.stdout[len(said) :]
        assert line == said and float(probabilities) == pytest.approx(1)
