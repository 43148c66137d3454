"""What is compiled, and what ends in one clear line, soon, though its file holds nothing that it may not."""

import json
import shutil
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import slow_but
from model_files import (
    KERNEL,
    METADATA,
    STOPPED,
    configured,
    layer,
    load,
    refused,
    run_limited,
    save,
    save_model,
    small_network,
    unsealed,
    write_metadata,
    write_votes_layer,
)

import realtime_detect
import train
from expressions import UserError, model_compiler
from expressions.classifier import Classifier
from expressions.model_validation import validate_model_file
from expressions.training import synthetic

HUGE = 10**9


@pytest.mark.parametrize(
    "layer", [keras.layers.SeparableConv2D(4, 3), pytest.param(keras.layers.DepthwiseConv2D(3), marks=pytest.mark.slow)]
)
def test_a_model_that_keras_2_saved(tmp_path, layer):
    path = save_model(small_network(layer), tmp_path / "old.h5")
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = load(path).predict_proba([face])
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"] |= {"groups": 1, "kernel_initializer": None, "kernel_regularizer": None}
        file.attrs["model_config"] = json.dumps(config)
    write_metadata(path, METADATA)
    np.testing.assert_array_equal(load(path).predict_proba([face]), expected)


@pytest.mark.parametrize("form", slow_but(["a dictionary", "a list"], "a list"))
def test_a_sequential_of_keras_2_2_has_no_input_layer(tmp_path, form):
    path = save_model(small_network(keras.layers.Conv2D(4, 3)), tmp_path / "old.h5")
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = load(path).predict_proba([face])

    def change(config):
        taken, *layers = config["config"]["layers"]
        layers[0]["config"]["batch_input_shape"] = taken["config"]["batch_shape"]
        return config | {"config": layers if form == "a list" else {"name": "sequential_1", "layers": layers}}

    configured(path, change)
    np.testing.assert_array_equal(load(path).predict_proba([face]), expected)


def test_a_functional_model_with_a_skip(tmp_path):
    """Its layer has the name that Keras gives the first one of a process."""
    taken = keras.Input((48, 48, 1))
    once = keras.layers.Conv2D(4, 3, padding="same")(taken)
    joined = keras.layers.Add(name="add")([once, keras.layers.Conv2D(4, 3, padding="same")(once)])
    given = keras.layers.Dense(7, activation="softmax")(keras.layers.GlobalAveragePooling2D()(joined))
    built = keras.Model(taken, given)
    classifier = load(save_model(built, tmp_path / "skip.h5"))
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = built(classifier.inputs([face]))
    np.testing.assert_allclose(classifier.predict_proba([face]), expected, atol=1e-6)


@pytest.mark.slow
def test_a_deep_network_that_uses_a_layer_again_and_tells_no_size(tmp_path):
    taken = given = keras.Input((None, None, 1))
    relu = keras.layers.ReLU()
    for _ in range(70):
        given = relu(keras.layers.Conv2D(1, 1)(given))
    inner = keras.Sequential([keras.Input((None, None, 1)), keras.layers.GlobalAveragePooling2D()])
    built = keras.Model(taken, keras.layers.Dense(7)(inner(given)))
    classifier = load(save_model(built, tmp_path / "deep.h5"))
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    assert classifier.size == 48
    expected = np.exp(built(classifier.inputs([face])))
    np.testing.assert_allclose(classifier.predict_proba([face]), expected / expected.sum(), atol=1e-6)


def test_a_file_is_checked_within_20_seconds_and_compiled_within_180(model, monkeypatch):
    limits, steps = {}, []
    monkeypatch.setattr(model_compiler, "limit_resources", lambda **given: limits.update(given))

    def timed(name, step):
        monkeypatch.setattr(
            model_compiler,
            name,
            lambda *given, **named: (steps.append((name, limits["CPU"])), step(*given, **named))[1],
        )

    timed("unpack", model_compiler.unpack)
    timed("validate_model_file", model_compiler.validate_model_file)
    timed("compile_network", lambda *_: (b"a network", None))
    assert model_compiler.run("compile", str(model)).endswith(b"\na network")
    assert steps == [("unpack", 20), ("validate_model_file", 20), ("compile_network", 180)]
    assert limits["DATA"] == 2**32 and limits["FSIZE"] == 2**31


@pytest.mark.parametrize("what", ["label", "vote"])
def test_a_network_that_says_something_else_is_not_used(model, monkeypatch, what):
    """In this process, where the compiled network can be changed."""
    write_votes_layer(model, np.zeros((72, 8), np.float32), np.zeros(8, np.float32))
    off = np.where((np.arange(15) < 7) == (what == "label"), np.linspace(0, 5, 15), 0).astype(np.float32)
    right = model_compiler.CompiledNetwork.predict_on_batch
    monkeypatch.setattr(
        model_compiler.CompiledNetwork, "predict_on_batch", lambda self, inputs: right(self, inputs) + off
    )
    with pytest.raises(UserError, match="differs from Keras's"):
        model_compiler.compile_network(model, *validate_model_file(model))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorflow", "pip install -r requirements.txt"),
        pytest.param("ai_edge_litert.interpreter", "pip install ai-edge-litert", marks=pytest.mark.slow),
    ],
)
def test_what_is_missing_is_named(model, monkeypatch, name, words):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=words):
        model_compiler.compile_network(model, *validate_model_file(model))
    if name.startswith("ai_edge"):
        with pytest.raises(UserError, match=words):
            Classifier.load(model)


@pytest.mark.faults
def test_the_sound_file_is_taken(sound):
    assert Classifier.load(sound).predict_proba([np.zeros((48, 48), np.uint8)]).shape == (1, 7)


# files that are no whole model
def cut(share):
    def damage(path):
        with open(path, "r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return damage


def folder(path):
    path.unlink()
    path.mkdir()


def weights_only(path):
    with unsealed(path) as file:
        del file.attrs["model_config"]


def no_weights(path):
    with unsealed(path) as file:
        del file["model_weights"]


def flipped(where):
    """Another byte in the middle of the first array whose name ends so."""

    def damage(path):
        with h5py.File(path) as file:
            item = file[where]
            offset = item.id.get_offset() + item.nbytes // 2
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 64]))

    return damage


def nan(path):
    with unsealed(path) as file:
        file[KERNEL][3, 3] = np.nan


def nan_votes(path):
    write_votes_layer(path, np.full((50, 8), np.nan, np.float32), np.zeros(8, np.float32))


def votes_on_anything(path):
    """On a network whose last layer but one gives no row of features."""
    flat = keras.layers.GlobalAveragePooling2D()
    inner = keras.Sequential([keras.Input((48, 48, 1)), keras.layers.Conv2D(7, 3), flat])
    keras.Sequential([keras.Input((48, 48, 1)), inner]).save(path)
    write_metadata(path, METADATA)
    write_votes_layer(path, np.zeros((1, 8), np.float32), np.zeros(8, np.float32))


WHOLE = "not a whole .h5 file"
FILES = {
    "empty": (cut(0), WHOLE),
    "cut after 1 %": (cut(0.01), WHOLE),
    "cut in half": (cut(0.5), WHOLE),
    "cut by a byte": (lambda path: path.write_bytes(path.read_bytes()[:-1]), WHOLE),
    "zeros": (lambda path: path.write_bytes(bytes(10_000)), WHOLE),
    "text": (lambda path: path.write_text("not a model"), WHOLE),
    "zip": (lambda path: path.write_bytes(b"PK\3\4" + bytes(1000)), "not a whole .keras file"),
    "folder": (folder, "no such model file"),
    "missing": (lambda path: path.unlink(), "no such model file"),
    "weights only": (weights_only, "weights but no network"),
    "no weights": (no_weights, "can't load"),
    "a changed weight": (flipped(KERNEL), "has changed since"),
    "NaN": (nan, "no numbers"),
    "votes on anything": (votes_on_anything, "can't load|doesn't fit"),
    "NaN in the votes": (nan_votes, "no numbers"),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", slow_but(FILES, "cut in half", "weights only", "a changed weight", "NaN"))
def test_no_whole_model(model, fault):
    damage, words = FILES[fault]
    damage(model)
    refused(model, words)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("shape", "classes", "words"),
    slow_but(
        [
            ((48, 32, 1), 7, "takes input"),
            ((48, 48, 2), 7, "takes input"),
            ((48,), 7, "takes input"),
            ((8, 48, 48, 1), 7, "takes input"),
            ((48, 48, 1), 5, "gives output"),
            ((48, 48, 1), 8, "gives output"),
        ],
        ((48, 48, 2), 7, "takes input"),
        ((48, 48, 1), 5, "gives output"),
    ),
)
def test_shapes_that_don_t_fit(tmp_path, shape, classes, words):
    refused(save(tmp_path / "model.h5", keras.layers.ReLU(), shape=shape, classes=classes), words)


# descriptions of more than there is
def deep_json(path):
    with unsealed(path) as file:
        file.attrs["model_config"] = '{"a":' * 5000 + "0" + "}" * 5000


def rather_deep_json(config):
    for _ in range(200):
        config = {"a": config}
    return config


def submodels(config):
    for _ in range(12):
        config["config"]["layers"] = [layer("Sequential", name="s", layers=config["config"]["layers"])]


def insert(*layers):
    def change(config):
        config["config"]["layers"][1:1] = layers

    return change


def insert_last(*layers):
    def change(config):
        named = [part | {"config": part["config"] | {"name": f"more_{number}"}} for number, part in enumerate(layers)]
        config["config"]["layers"][-1:-1] = named

    return change


def replace(kind, **config):
    """The first layer after the input."""

    def change(whole):
        whole["config"]["layers"][1] = layer(kind, **config)

    return change


def input_of(*shape):
    def change(config):
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, *shape]

    return change


def aside(config):
    """A branch that leads nowhere, which Keras builds all the same."""
    layers = config["config"]["layers"]
    for before, part in zip([None, *layers], layers, strict=False):
        part["name"] = part["config"]["name"]
        part["inbound_nodes"] = [[[before["name"], 0, 0, {}]]] if before else []
    branch = layer("Dense", name="aside", units=10**8)
    layers.append(branch | {"name": "aside", "inbound_nodes": [[["flat", 0, 0, {}]]]})
    ends = {"input_layers": [[layers[0]["name"], 0, 0]], "output_layers": [["dense", 0, 0]]}
    return layer("Functional", name="net", layers=layers, **ends)


def inputs(config):
    """One call of one layer, which takes minutes to build."""
    first, *layers = config["config"]["layers"]
    layers = [first, layer("Add", name="sum"), *layers]
    for before, part in zip([None, *layers], layers, strict=False):
        taken = [[before["config"]["name"], 0, 0, {}]] if before else []
        part |= {
            "name": part["config"]["name"],
            "inbound_nodes": [taken * (5000 if before is first else 1)] * bool(before),
        }
    ends = {"input_layers": [[first["name"], 0, 0]], "output_layers": [["dense", 0, 0]]}
    return layer("Functional", name="net", layers=layers, **ends)


def pooled(config):
    """Ever wider in a network in the network, and then narrow."""
    inner = [layer("InputLayer", batch_shape=[None, None, None, 1]), layer("ZeroPadding2D", padding=10**4)]
    inner.append(layer("MaxPooling2D", pool_size=400))
    config["config"]["layers"][1:1] = [layer("Sequential", name="inner", layers=inner)]


def no_input(config):
    del config["config"]["layers"][0], config["config"]["build_input_shape"]


def odd_size(config):
    input_of(48.5, 48.5, 1)(config)


LARGE = f"can't load|{STOPPED}"
DESCRIBED = {
    "deep JSON": (deep_json, "damaged"),
    "rather deep JSON": (rather_deep_json, "damaged"),
    "nested submodels": (submodels, "too far|can't load"),
    "a Dense of 10**9": (insert(layer("Dense", name="big", units=HUGE)), LARGE),
    "a Dense of 10**30": (insert(layer("Dense", name="big", units=10**30)), LARGE),
    "a Conv2D of 10**9": (replace("Conv2D", filters=HUGE, kernel_size=3), LARGE),
    "a wide window": (replace("Conv2D", filters=1, kernel_size=10**6, padding="same"), LARGE),
    "a Dense aside": (aside, LARGE),
    "few values, many weights": (insert_last(*[layer("Dense", units=10**6)] * 2), LARGE),
    "a pool larger than what is left": (
        insert_last(layer("Reshape", target_shape=[6, 6, 2]), layer("MaxPooling2D", pool_size=40), layer("Flatten")),
        LARGE,
    ),
    "padding of less than nothing": (
        insert(
            layer("ZeroPadding2D", padding=-30),
            layer("GlobalMaxPooling2D"),
            layer("Reshape", target_shape=[1, 1, 1]),
            layer("ZeroPadding2D", padding=20),
        ),
        LARGE,
    ),
    "orthogonal weights": (insert(layer("Dense", name="big", units=10**5, kernel_initializer="orthogonal")), LARGE),
    "padding of 10**6": (insert(layer("ZeroPadding2D", padding=10**6)), LARGE),
    "padding of 10**2": (insert(layer("ZeroPadding2D", padding=1500), layer("MaxPooling2D", pool_size=40)), LARGE),
    "padding in a submodel": (pooled, LARGE),
    "a pool of 10**6": (insert(layer("MaxPooling2D", pool_size=10**6, strides=1, padding="same")), LARGE),
    "dilated by 10**6": (replace("Conv2D", filters=1, kernel_size=3, dilation_rate=10**6, padding="same"), LARGE),
    "fewer than no units": (insert(layer("Dense", name="big", units=-3)), "can't load"),
    "a part of a unit": (insert(layer("Dense", name="big", units=2.5)), "can't load"),
    "nothing left": (insert(layer("Reshape", target_shape=[0, 48, 1])), "can't load"),
    "input of 10**5": (input_of(10**5, 10**5, 1), LARGE),
    "input of 10**30": (input_of(10**30, 10**30, 1), LARGE),
    "input of -1": (input_of(-1, -1, 1), "can't load|takes input"),
    "half a pixel": (odd_size, "can't load|takes input|damaged"),
    "no input": (no_input, "can't load"),
    "no layers": (lambda config: config["config"].update(layers=[]), "can't load"),
    "no config": (lambda config: {"class_name": "Sequential"}, "damaged"),
    "layers of odd types": (lambda config: config["config"].update(layers=[1, None, "Dense"]), "damaged"),
    "5000 layers": (insert(*[layer("ReLU")] * 5000), "more layers"),
    "5000 inputs of a layer": (inputs, "more layers"),
    "20000 parts": (insert(layer("Reshape", target_shape=[[1]] * 40_000)), LARGE),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", slow_but(DESCRIBED, "deep JSON", "a Dense of 10**9", "no layers"))
def test_descriptions(model, fault):
    change, words = DESCRIBED[fault]
    if change is deep_json:
        change(model)
    else:
        configured(model, change)
    refused(model, words)


@pytest.mark.faults
@pytest.mark.parametrize("fault", slow_but(["cut in half", "NaN", "folder", "weights only"], "cut in half"))
def test_the_scripts_say_it_in_one_line_and_end_with_2(model, fault, capsys):
    damage, words = FILES[fault]
    damage(model)
    for main, arguments in (
        (realtime_detect.main, ["--source", "docs/faces.webm", "--save", str(model.with_name("out.mp4")), "--model"]),
        (train.main, ["--evaluate"]),
    ):
        assert main([*arguments, str(model)]) == 2
        said = capsys.readouterr()
        assert said.out in ("", f"Compiling {model}: this takes some seconds, once ...\n")
        assert said.err.count("\n") == 1 and words in said.err


# attacks on what Keras and TensorFlow make of a file, which only the limits of the process end
def joined_along_the_batch(path):
    """Two rows for each face."""
    taken = keras.Input((48, 48, 1))
    features = keras.layers.GlobalAveragePooling2D()(taken)
    given = keras.layers.Concatenate(axis=0)([keras.layers.Dense(7)(features), keras.layers.Dense(7)(features)])
    keras.Model(taken, given).save(path)
    write_metadata(path, METADATA)


def infinite_logits(path):
    with unsealed(path) as file:
        file["model_weights/dense/net/dense/kernel"][:, 0] = 3e38
        file["model_weights/dense/net/dense/bias"][0] = 3e38
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["activation"] = "linear"
        file.attrs["model_config"] = json.dumps(config)
    write_metadata(path, METADATA)


def one_array_often(path):
    with h5py.File(path, "r+", libver="latest") as file:
        del file.attrs["digest"]
        file.move("model_weights/dense", "old")
        group = file.create_group("model_weights/dense")  # in a format that takes large attributes
        file.move("old/net", "model_weights/dense/net")
        group.attrs["weight_names"] = np.full(960_000, b"net/dense/kernel")
        del file["old"]


def one_array_twice(path):
    with unsealed(path) as file:
        names = [b"net/dense/kernel", b"/model_weights/dense/net/./dense/kernel"]
        file["model_weights/dense"].attrs["weight_names"] = names


def mixed_faces(path):
    """What a face gets depends on those beside it."""
    save_model(small_network(keras.layers.Softmax(axis=0)), path)


def much_to_compute(path):
    """One layer of few weights, 20 times."""
    taken = given = keras.Input((48, 48, 64))
    layer = keras.layers.Conv2D(64, 9, padding="same")
    for _ in range(20):
        given = layer(given)
    save_model(small_network(keras.layers.Conv2D(64, 1), keras.Model(taken, given)), path)


def used_often(path):
    """A network that uses one twice, which uses one twice, and so on: 2 to the 14th layers."""
    network = keras.layers.Conv2D(1, 1)
    for _ in range(14):
        taken = keras.Input((48, 48, 1))
        network = keras.Model(taken, network(network(taken)))
    keras.Sequential([keras.Input((48, 48, 1)), network, keras.layers.Flatten(), keras.layers.Dense(7)]).save(path)
    write_metadata(path, METADATA)


def described(change):
    return lambda path: configured(path, change)


ATTACKS = {
    "joined along the batch": (joined_along_the_batch, "no numbers"),
    "infinite logits": (infinite_logits, "no numbers"),
    "one array often": (one_array_often, "more parts"),
    "one array twice": (one_array_twice, "in two places"),
    "mixed faces": (mixed_faces, "differs from"),
    "much to compute": (much_to_compute, "billion operations"),
    "used often": (used_often, "more layers"),
    "many channels": (described(replace("DepthwiseConv2D", kernel_size=3, depth_multiplier=HUGE)), LARGE),
    "a text": (described(insert(layer("Rescaling", scale="x"))), "can't load"),
}


@pytest.mark.faults
@pytest.mark.parametrize("attack", slow_but(ATTACKS, "joined along the batch"))
def test_attacks(model, attack):
    make, words = ATTACKS[attack]
    make(model)
    refused(model, words)


# .keras files: zips of the network's description and an HDF5 file
def test_a_keras_file(tmp_path):
    """The name doesn't matter, nor an optimizer in it."""
    inner = keras.Sequential([keras.Input((48, 48, 1)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    taken = keras.Input((48, 48, 1))
    joined = keras.layers.Concatenate()([inner(taken), inner(keras.layers.ReLU()(taken))])
    built = keras.Model(taken, keras.layers.Dense(7)(keras.layers.GlobalMaxPooling2D()(joined)))
    built.compile("adam", "mse")
    built.save(tmp_path / "new.keras")
    classifier = load(shutil.copy(tmp_path / "new.keras", tmp_path / "new.h5"), **METADATA)
    face = synthetic.draw_face("sad", np.random.default_rng(0))
    expected = np.exp(built(classifier.inputs([face])))
    np.testing.assert_allclose(classifier.predict_proba([face]), expected / expected.sum(), atol=1e-6)
    with pytest.raises(UserError, match="doesn't tell its labels"):
        run_limited("metadata", tmp_path / "new.keras")
