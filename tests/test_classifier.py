"""The model file: what it tells of itself, and which files are refused before anything in them is built."""

import json
import shutil

import h5py
import keras
import numpy as np
import pytest

from expressions import EMOTIONS, IMAGE_SIZE, SCALE, UserError, synthetic
from expressions.classifier import Classifier, read_facts, write_facts

FACTS = {"labels": list(EMOTIONS), "image_size": IMAGE_SIZE, "scale": SCALE}


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copy(trained, tmp_path / "model.h5")


def save(network, path, facts=FACTS):
    network.save(path)
    if facts:
        write_facts(path, facts)
    return path


def test_probabilities_of_any_number_of_faces(trained):
    classifier = Classifier(trained)
    faces, _ = synthetic.draw_faces(50, seed=9)  # more than one batch
    probabilities = classifier.probabilities(faces)
    assert probabilities.shape == (350, 7) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(classifier.probabilities(faces[:1]), probabilities[:1], atol=1e-5)
    assert classifier.probabilities([]).shape == (0, 7)


def test_faces_of_mixed_sizes_in_one_call(trained):
    face = synthetic.draw_face("sad", np.random.default_rng(0), 200)
    mixed = Classifier(trained).probabilities([face, face[:, :, None].repeat(3, axis=2), face[::2, ::2]])
    np.testing.assert_allclose(mixed[0], mixed[1], atol=1e-6)


def test_the_file_tells_everything_about_itself(trained):
    facts = read_facts(trained)
    assert facts["labels"] == list(EMOTIONS)
    assert facts["image_size"] == 48 and facts["scale"] == pytest.approx(1 / 255)
    assert facts["network"] == "compact" and facts["parameters"] == 1757863
    assert {"single view", "with mirrored view"} <= set(facts["metrics"])
    assert facts["metrics"]["single view"]["n"] == 21
    assert len(facts["fingerprint"]) == 16 and keras.__version__ in facts["versions"]


@pytest.mark.parametrize("length", [0, 100, 5000, 1_000_000])
def test_a_file_cut_off(model, length):
    with open(model, "r+b") as file:
        file.truncate(length)
    with pytest.raises(UserError, match="not a whole HDF5 file"):
        Classifier(model)


def test_no_file_a_folder_and_another_kind_of_file(tmp_path):
    (tmp_path / "text.h5").write_text("not a model")
    for path, words in ((tmp_path / "none.h5", "no such"), (tmp_path, "no such"), (tmp_path / "text.h5", "HDF5")):
        with pytest.raises(UserError, match=words):
            Classifier(path)


def test_weights_without_a_network(tmp_path, trained):
    Classifier(trained).network.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(UserError, match="weights but no network"):
        Classifier(tmp_path / "only.weights.h5")


def test_no_facts_or_damaged_ones(model):
    for facts, words in ((None, "doesn't tell"), ("{", "damaged"), ("[]", "damaged"), ('{"labels": []}', "damaged")):
        with h5py.File(model, "r+") as file:
            del file.attrs["facts"]
            if facts:
                file.attrs["facts"] = facts
        with pytest.raises(UserError, match=words):
            Classifier(model)
        write_facts(model, FACTS)


def test_labels_and_size_that_don_t_fit_the_network(model):
    for facts in ({"labels": ["happy", "sad"]}, {"image_size": 64}):
        write_facts(model, FACTS | facts)
        with pytest.raises(UserError, match="takes and gives"):
            Classifier(model)


def network(*layers):
    return keras.Sequential([keras.Input((48, 48, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(7)])


def test_code_in_a_file_never_runs(tmp_path):
    """A Lambda layer whose code would leave a file behind, as proof that it ran."""
    witness = tmp_path / "witness"
    code = f"lambda x: __import__('pathlib').Path({str(witness)!r}).touch() or x"
    path = save(network(keras.layers.Lambda(eval(code))), tmp_path / "trap.h5")
    assert witness.exists()  # it did while the trap was built: the code works
    witness.unlink()
    with pytest.raises(UserError, match="Lambda"):
        Classifier(path)
    assert not witness.exists()


def test_only_known_layers_from_keras_itself(tmp_path, model):
    path = save(network(keras.layers.GaussianNoise(0.1)), tmp_path / "noise.h5")
    with pytest.raises(UserError, match="GaussianNoise"):
        Classifier(path)
    with h5py.File(model, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["module"] = "os"
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(UserError, match="could run code"):
        Classifier(model)


def test_links_out_of_the_file(model, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.arange(3)
    with h5py.File(model, "r+") as file:
        file["model_weights/stolen"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    with pytest.raises(UserError, match="links to another file"):
        Classifier(model)


def test_weights_kept_in_another_file(model, tmp_path):
    np.arange(8, dtype=np.float32).tofile(tmp_path / "raw")
    with h5py.File(model, "r+") as file:
        file.create_dataset("outside", (8,), np.float32, external=[(str(tmp_path / "raw"), 0, 32)])
    with pytest.raises(UserError, match="in another file"):
        Classifier(model)
