"""What runs in the limited process: validate a model file, read its weights, or compile its network to LiteRT.

A LiteRT file needs no TensorFlow to run, and is faster than Keras. `model_file.run_sandboxed` starts the process.
"""

import contextlib
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from expressions import IMAGE_SIZE, UserError
from expressions.classifier import MAX_BATCH_PIXELS, Classifier, CompiledNetwork
from expressions.files import suppress_output
from expressions.model_file import MAX_FILE_BYTES, SCALINGS, digest, read_text_attribute

# A stranger's .h5 may name any class to build, and a Lambda layer runs code that the file brings. These only compute.
LAYERS = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "ELU", "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling2D",
    "GlobalMaxPooling2D", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Model", "Multiply", "PReLU",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "Softmax", "SpatialDropout2D", "ZeroPadding2D",
    "__keras_tensor__",  # in the place of a layer's input
}  # fmt: skip
TRAINED_WITH = ("_initializer", "_regularizer", "_constraint")  # endings of what only matters in training
MAX_OBJECTS, MAX_DEPTH, MAX_TEXT_BYTES = 2**15, 64, 2**24  # in a file; far above those of networks that people use
# of this process; DenseNet201 (709 layers, images of 224 pixels) takes 86 s and 2.6 GB
CHECK_SECONDS, COMPILE_SECONDS, MAX_MEMORY_BYTES = 30, 180, 2**32
SAMPLES, TOLERANCE = 64, 1e-4  # faces on which Keras and the compiled network agree, but for that in probability


def check_main() -> None:
    """Do what `model_file.run_sandboxed` asks for, within limits, and write the result to stdout."""
    action, path, given = sys.argv[2:]
    with suppress_output():
        result = run(action, path, **json.loads(given))
    sys.stdout.buffer.write(result)


def run(action: str, path: str, **given: object) -> bytes:
    """The metadata as a line of JSON and the content for `action`; or an error message as a JSON text."""
    content = b""
    try:
        _limit_resources(CHECK_SECONDS)
        metadata, config = validate_model_file(path, **given)
        if action == "weights":
            content = _dump_weights(path)
        if action == "compile":
            _limit_resources(COMPILE_SECONDS)
            content = compile_network(path, metadata, config)
    except UserError as error:
        metadata = str(error)
    return json.dumps(metadata).encode() + b"\n" + content


def _limit_resources(seconds):
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, COMPILE_SECONDS))
        # not RLIMIT_AS: TensorFlow reserves far more addresses than it uses
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MAX_FILE_BYTES,) * 2)


def validate_model_file(path: str | Path, **given: object) -> tuple[dict, dict]:
    """Raise UserError unless a model file is safe to load and says what it needs.

    Returns its metadata, replaced by what is `given`, and so much of the network's configuration as computing takes.
    """
    path = Path(path)
    try:
        with h5py.File(path) as file:
            _check_objects(file, path.stat().st_size)
            metadata, config = (read_text_attribute(file, name) for name in ("facts", "model_config"))
            metadata, config = parse_metadata(metadata, config, given)
            # someone may have removed the metadata, to write other
            expected = read_text_attribute(file, "digest") if "facts" in file.attrs else None
            if expected and expected != digest(file):
                raise UserError("some of it has changed since it was written; copy or train it again")
    except UserError:
        raise
    except Exception:  # whatever h5py makes of a damaged file
        raise UserError("not a whole .h5 file; copy or train it again") from None
    if path.suffix not in (".h5", ".hdf5") or path.stem.endswith(".weights"):  # by which Keras tells what is in it
        raise UserError("the name of a model file has to end in .h5, and not in .weights.h5; rename it")
    labels = metadata.get("labels")
    if labels and len(set(labels)) < len(labels):
        raise UserError(f"two of its labels are the same: {', '.join(labels)}")
    if not labels or not metadata.get("scaling"):
        raise UserError(
            "doesn't tell its labels and scaling; use a model that train.py wrote, "
            "or to measure another one, give train.py --labels and --scaling"
        )
    return metadata, config


def parse_metadata(metadata: str | None, config: str | None, given: dict) -> tuple[dict, dict]:
    """Parse and check the JSON texts of a model file; `given` replaces metadata."""
    if config is None:
        raise UserError("holds weights but no network; save the whole model, as train.py does")
    try:
        metadata, config = json.loads(metadata or "{}") | given, json.loads(config)
        labels, scaling, seed = metadata.get("labels"), metadata.get("scaling"), metadata.get("seed", 0)
        usable = labels is None or (isinstance(labels, list) and all(map(str.isprintable, labels)))
        usable = usable and (scaling is None or scaling in SCALINGS) and 0.01 <= metadata.get("temperature", 1) <= 100
        usable = usable and isinstance(seed, int) and 0 <= seed < 2**32
        config = _sanitize_config(config)
        usable = usable and isinstance(config["config"]["layers"], list) and isinstance(config["class_name"], str)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        usable = False
    if not usable:
        raise UserError("its description is damaged; train it again")
    return metadata, config


def _sanitize_config(config):
    """Reduce a network's configuration to what computing with it takes, in float32 and for images of a fixed size."""
    if isinstance(config, list):
        return [_sanitize_config(item) for item in config]
    if not isinstance(config, dict):
        return config
    name = config.get("class_name")
    if name is not None:
        module, registered = config.get("module") or "keras", config.get("registered_name") or name
        listed = isinstance(name, str) and name in LAYERS and registered == name
        if not listed or str(module).split(".")[0] != "keras":
            raise UserError(f"holds {name!r:.80}, which this program doesn't know and so doesn't load")
        config = {key: config[key] for key in ("class_name", "config", "name", "inbound_nodes") if key in config}
    clean = {}
    for key, value in config.items():
        if key == "dtype":
            value = "float32"
        elif key in ("batch_shape", "batch_input_shape", "build_input_shape") and isinstance(value, list):
            value = [None, *(length or IMAGE_SIZE for length in value[1:])]
        if not key.endswith(TRAINED_WITH):
            clean[key] = _sanitize_config(value)
    if name in ("DepthwiseConv2D", "SeparableConv2D"):
        clean["config"].pop("groups", None)  # Keras 2 wrote it though it meant nothing
    return clean


def _check_objects(file, file_bytes):
    """Raise UserError unless an open HDF5 file is what Keras writes: a tree of groups, plain arrays and texts.

    Links and arrays can lead to other files or in circles, and compressed or empty arrays can unpack to any size.
    """
    waiting, seen, array_bytes = [file["/"]], set(), 0
    while waiting:
        item = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise UserError("holds a part in two places; don't use it")
        seen.add(address)
        is_group, is_array = isinstance(item, h5py.Group), isinstance(item, h5py.Dataset)
        types = [item.attrs.get_id(name).dtype for name in item.attrs]
        if (
            not (is_group or is_array)
            or (is_array and item.dtype.kind not in "biuf")
            or any(each.kind not in "biufSU" and not h5py.check_string_dtype(each) for each in types)
        ):
            raise UserError("holds something else than groups, numbers and texts; don't use it")
        if is_array:
            if item.external or item.is_virtual:
                raise UserError("keeps weights in another file; don't use it")
            size = math.prod(item.shape) * item.dtype.itemsize
            array_bytes += size
            if item.chunks or item.id.get_storage_size() != size or array_bytes > file_bytes:
                raise UserError("some of its weights are missing or compressed; save it again with Keras")
        elif item.name.count("/") > MAX_DEPTH or len(seen) + len(waiting) + len(item) > MAX_OBJECTS:
            raise UserError("holds more parts than this program takes; don't use it")
        elif not all(isinstance(item.get(name, getlink=True), h5py.HardLink) for name in item):
            raise UserError("links to another file; don't use it")
        else:
            waiting += item.values()
    if file_bytes - array_bytes > MAX_TEXT_BYTES:
        raise UserError("holds more text than this program takes; don't use it")


def _dump_weights(path):
    content, votes = io.BytesIO(), read_votes_layer(path)
    try:
        with h5py.File(path) as file:
            group = file["model_weights"]
            layers = [group[name] for name in group.attrs["layer_names"]]
            weights = [np.float32(layer[name]) for layer in layers for name in layer.attrs["weight_names"]]
    except (KeyError, TypeError, ValueError, MemoryError):
        raise UserError("its weights are damaged; copy or train it again") from None
    _check_finite(weights, votes)
    np.savez(content, *weights, **dict(zip(("kernel", "bias"), votes or (), strict=False)))
    return content.getvalue()


def read_votes_layer(path: str | Path) -> list[np.ndarray] | None:
    """The kernel and bias of the layer that predicts votes, None without one; see `model_file.write_votes_layer`."""
    with h5py.File(path) as file:
        try:
            return [np.float32(file["votes"][name]) for name in ("kernel", "bias")] if "votes" in file else None
        except (KeyError, TypeError, ValueError):
            raise UserError("its layer for votes is damaged; copy or train it again") from None


def _check_finite(weights, votes):
    if not all(np.isfinite(each).all() for each in (*weights, *(votes or ()))):
        raise UserError("some of its weights are no numbers but NaN or infinity; train it again")


def compile_network(path: str | Path, metadata: dict, config: dict) -> bytes:
    """Compile the network of a validated model file to a LiteRT file; UserError where that goes wrong."""
    # enlarged to a face's size, these are soft blobs; on noise networks are certain, and so hard to tell apart
    faces = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8), np.uint8)
    try:
        import tensorflow  # its converter has no other home

        network = complete_network(_build_network(path, config, metadata["labels"]), read_votes_layer(path))
        expected = _predict_all(network, metadata, faces)  # may fail where the converter takes minutes to
        content = tensorflow.lite.TFLiteConverter.from_keras_model(network).convert()
        compiled = CompiledNetwork(content)
        actual = _predict_all(compiled, metadata, faces)
        _predict_all(compiled, metadata, faces[:1])
    except UserError:
        raise
    except ImportError:
        raise UserError("TensorFlow, which compiles models, is missing: pip install tensorflow") from None
    except Exception as error:  # whatever Keras and TensorFlow make of a damaged file
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"Keras can't load this model ({first_line[:200]}); train it again") from None
    if (actual.argmax(axis=2) != expected.argmax(axis=2)).any() or np.abs(actual - expected).max() > TOLERANCE:
        raise UserError("its compiled network differs from Keras's; train it again")
    return content


def _predict_all(network, metadata, faces):
    classifier = Classifier(network, metadata)
    return np.array([classifier.predict_proba(faces, votes=votes) for votes in {False, classifier.has_votes}])


def _build_network(path, config, labels):
    import keras
    import tensorflow

    kind = keras.Sequential if config["class_name"] == "Sequential" else keras.Model
    described = _count_layers(config)  # now, for Keras may change it
    with keras.StatelessScope(initialize_variables=False):  # weights have shapes, but take no memory yet
        network = kind.from_config(config["config"])
        takes, gives = tuple(network.input_shape), tuple(network.output_shape)
        if len(takes) != 4 or takes[1] != takes[2] or takes[3] not in (1, 3):
            raise UserError(f"takes input of the shape {takes}, not square pictures with 1 or 3 channels")
        if gives != (None, len(labels)):
            raise UserError(f"gives output of the shape {gives}, not one value for each of {tuple(labels)}")
        if _count_layers({"config": network.get_config()}) < described:  # their weights are in no graph
            raise ValueError("some of its layers lead nowhere")
        # bounds memory on every system: the graph has weights and results of one call, of which only shapes are known
        faces = tensorflow.TensorSpec((max(1, MAX_BATCH_PIXELS // takes[1] ** 2), *takes[1:]))
        operations = tensorflow.function(network).get_concrete_function(faces).graph.get_operations()
        values = sum(output.shape.num_elements() or 0 for operation in operations for output in operation.outputs)
        if 4 * values > MAX_MEMORY_BYTES:
            raise ValueError(f"it takes {4 * values / 1e9:.0f} GB of memory")
    with keras.StatelessScope():  # makes the weights when it ends
        pass
    network.load_weights(path)
    return network


def _count_layers(config):  # and those of networks in it, but not InputLayer, which Keras adds where it is missing
    layers = config["config"].get("layers", [])
    return sum((layer["class_name"] != "InputLayer") + _count_layers(layer) for layer in layers)


def complete_network(network: Any, votes: Sequence[np.ndarray] | None = None) -> Any:
    """Make a Keras model that gives float32 (n, columns): the logits of the labels, then those of the votes.

    The last layer of `network`, a Keras model, gives logits or probabilities. `votes` are the kernel and the bias of
    the layer that predicts votes. Raises UserError where that layer doesn't fit, or weights are NaN or infinite.
    """
    import keras

    _check_finite(network.get_weights(), votes)
    # it becomes one layer of another model, because its own layers may have the names of those that are added here
    last, inputs = network.layers[-1], keras.Input(network.input_shape[1:])
    parts = [network.outputs[0], network.layers[-2].output] if votes else network.outputs[:1]
    outputs, *features = keras.Model(network.inputs, parts)(inputs)
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        outputs = keras.ops.log(outputs + 1e-12)  # undoes the softmax, up to a number that cancels
    if votes:
        answers = network.output_shape[-1] + 1
        if [part.shape for part in votes] != [(features[0].shape[-1], answers), (answers,)]:
            raise UserError("its layer for votes doesn't fit its network; train it again")
        layer = keras.layers.Dense(answers, name="votes")
        outputs = keras.ops.concatenate([outputs, layer(features[0])], axis=1)
        layer.set_weights(votes)
    return keras.Model(inputs, outputs)
