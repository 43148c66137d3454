"""The model file: what it tells of itself, and which files are refused before anything in them is built."""

import json
import shutil

import h5py
import keras
import numpy as np
import pytest
from limited import load

from expressions import EMOTIONS, UserError
from expressions.classifier import Classifier
from expressions.model_compiler import complete_network
from expressions.model_file import (
    convert_to_float16,
    read_metadata,
    read_weights,
    write_metadata,
    write_votes_layer,
)
from expressions.training import synthetic

METADATA = {"labels": list(EMOTIONS), "scaling": "unit"}


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copy(trained, tmp_path / "model.h5")


def save(network, path, metadata=METADATA):
    network.save(path)
    if metadata:
        write_metadata(path, metadata)
    return path


def test_probabilities_of_any_number_of_faces(trained):
    classifier = load(trained)
    faces, _ = synthetic.draw_faces(50, seed=9)  # more than one batch
    probabilities = classifier.predict_proba(faces)
    assert probabilities.shape == (350, 7) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(faces[:1]), probabilities[:1], atol=1e-5)
    assert classifier.predict_proba([]).shape == (0, 7)


def test_the_network_in_memory_says_what_its_file_says(trained):
    network = complete_network(keras.models.load_model(trained, compile=False))
    faces, _ = synthetic.draw_faces(2, seed=9)
    expected = load(trained).predict_proba(faces)
    np.testing.assert_allclose(Classifier(network, read_metadata(trained)).predict_proba(faces), expected, atol=1e-5)


def test_the_weights_of_a_file_are_those_that_keras_reads(trained):
    weights, votes = read_weights(trained)
    expected = keras.models.load_model(trained, compile=False).get_weights()
    assert votes is None and all((one == other).all() for one, other in zip(weights, expected, strict=True))


@pytest.mark.faults
def test_an_output_that_is_no_row_for_each_face(model):
    classifier = load(model)
    right = classifier.network.predict_on_batch
    classifier.network.predict_on_batch = lambda inputs: np.concatenate([right(inputs)] * 2)
    with pytest.raises(UserError, match="no numbers"):
        classifier.predict_proba([np.zeros((48, 48), np.uint8)])


def test_faces_of_mixed_sizes_in_one_call(trained):
    face = synthetic.draw_face("sad", np.random.default_rng(0), 200)
    mixed = load(trained).predict_proba([face, face[:, :, None].repeat(3, axis=2), face[::2, ::2]])
    np.testing.assert_allclose(mixed[0], mixed[1], atol=1e-6)


def test_the_file_tells_everything_about_itself(trained):
    metadata = read_metadata(trained)
    assert metadata["labels"] == list(EMOTIONS)
    assert metadata["scaling"] == "unit" and 0.1 <= metadata["temperature"] <= 10
    assert metadata["network"] == "compact" and metadata["parameters"] == 1167015
    assert {"single view", "with mirrored view"} <= set(metadata["metrics"])
    assert metadata["metrics"]["single view"]["n"] == 21
    assert len(metadata["fingerprint"]) == 16 and keras.__version__ in metadata["versions"]


@pytest.mark.faults
def test_weights_without_a_network(tmp_path, trained):
    keras.models.load_model(trained, compile=False).save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(UserError, match="weights but no network"):
        load(tmp_path / "only.weights.h5")


@pytest.mark.faults
def test_no_facts_or_damaged_ones(model):
    for facts, words in (
        (None, "doesn't tell"),
        ('{"labels": []}', "doesn't tell"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ):
        with h5py.File(model, "r+") as file:
            del file.attrs["facts"], file.attrs["digest"]
            if facts:
                file.attrs["facts"] = facts
        with pytest.raises(UserError, match=words):
            load(model)
        write_metadata(model, METADATA)


def test_the_mirrored_view_is_averaged_in(trained):
    classifier = load(trained)
    faces, _ = synthetic.draw_faces(2, seed=9)
    expected = (classifier.predict_proba(faces) + classifier.predict_proba(faces[:, :, ::-1])) / 2
    np.testing.assert_allclose(classifier.predict_proba(faces, flip_tta=True), expected, atol=1e-5)


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
@pytest.mark.parametrize(("size", "channels"), [(48, 1), (64, 3)])
def test_a_model_from_another_program(tmp_path, scaling, lowest, highest, size, channels):
    """Its outputs are the means of its input's upper and lower half, so they tell what it was fed."""
    layers = [keras.layers.AveragePooling2D((size // 2, size)), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input((size, size, channels)), *layers])
    path = save(network, tmp_path / "other.h5", metadata=None)
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


@pytest.mark.parametrize("layer", [keras.layers.SeparableConv2D(4, 3), keras.layers.DepthwiseConv2D(3)])
def test_a_model_that_keras_2_saved(tmp_path, layer):
    path = save(network(layer), tmp_path / "old.h5")
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = load(path).predict_proba([face])
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"] |= {"groups": 1, "kernel_initializer": None, "kernel_regularizer": None}
        file.attrs["model_config"] = json.dumps(config)
    write_metadata(path, METADATA)
    np.testing.assert_array_equal(load(path).predict_proba([face]), expected)


def test_a_functional_model_with_a_skip(tmp_path):
    """Its layer has the name that Keras gives the first one of a process."""
    taken = keras.Input((48, 48, 1))
    once = keras.layers.Conv2D(4, 3, padding="same")(taken)
    joined = keras.layers.Add(name="add")([once, keras.layers.Conv2D(4, 3, padding="same")(once)])
    given = keras.layers.Dense(7, activation="softmax")(keras.layers.GlobalAveragePooling2D()(joined))
    built = keras.Model(taken, given)
    classifier = load(save(built, tmp_path / "skip.h5"))
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = built(classifier.inputs([face]))
    np.testing.assert_allclose(classifier.predict_proba([face]), expected, atol=1e-6)


def test_a_deep_network_that_uses_a_layer_again_and_tells_no_size(tmp_path):
    taken = given = keras.Input((None, None, 1))
    relu = keras.layers.ReLU()
    for _ in range(70):
        given = relu(keras.layers.Conv2D(1, 1)(given))
    inner = keras.Sequential([keras.Input((None, None, 1)), keras.layers.GlobalAveragePooling2D()])
    built = keras.Model(taken, keras.layers.Dense(7)(inner(given)))
    classifier = load(save(built, tmp_path / "deep.h5"))
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    assert classifier.size == 48
    expected = np.exp(built(classifier.inputs([face])))
    np.testing.assert_allclose(classifier.predict_proba([face]), expected / expected.sum(), atol=1e-6)


@pytest.mark.faults
def test_outputs_that_are_no_numbers(model):
    classifier = Classifier(keras.models.load_model(model, compile=False), METADATA)
    classifier.network.set_weights([weights * np.nan for weights in classifier.network.get_weights()])
    with pytest.raises(UserError, match="no numbers"):
        classifier.predict_proba([np.zeros((48, 48), np.uint8)])


def test_votes_are_told_from_the_features_before_the_last_layer(tmp_path):
    layers = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7, activation="softmax")
    path = save(keras.Sequential([keras.Input((48, 48, 1)), *layers]), tmp_path / "model.h5")
    assert not load(path).has_votes
    kernel, bias = np.arange(8, dtype=np.float32)[None], np.zeros(8, np.float32)
    write_votes_layer(path, kernel, bias)
    shares = load(path).predict_proba([np.full((48, 48), 51, np.uint8)], votes=True)[0]  # the feature is 51 / 255
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


def test_a_file_half_as_large_says_the_same(tmp_path):
    path = save(network(keras.layers.Conv2D(16, 3)), tmp_path / "model.h5")
    write_votes_layer(path, np.full((33856, 8), 1 / 3, np.float32), np.zeros(8, np.float32))
    faces, _ = synthetic.draw_faces(2, seed=9)
    before, size = load(path).predict_proba(faces), path.stat().st_size
    convert_to_float16(path)
    after = load(path)
    assert path.stat().st_size < 0.52 * size
    assert after.metadata == METADATA and after.has_votes
    weights, votes = read_weights(path)
    assert {str(each.dtype) for each in (*weights, *votes)} == {"float32"}
    # 11 significant bits: rounded to the nearest, not cut off
    assert (weights[0] == weights[0].astype(np.float16)).all() and votes[0][0, 0] == np.float16(1 / 3)
    np.testing.assert_allclose(after.predict_proba(faces), before, atol=2e-3)
    with h5py.File(path) as file:
        assert file["votes/kernel"][0, 0] == np.float16(1 / 3)


@pytest.mark.faults
def test_two_labels_that_are_the_same(model):
    with pytest.raises(UserError, match="two of its labels are the same"):
        load(model, labels=["happy"] * 7)


def network(*layers):
    return keras.Sequential([keras.Input((48, 48, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(7)])
