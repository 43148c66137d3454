"""Whether a model file holds what it should and nothing else; runs in the limited process, before Keras sees the file.

A .h5 is one HDF5 file; a .keras, as Keras 3 saves it, is a zip with the network's description and an HDF5 file.
"""

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from expressions import IMAGE_SIZE, UserError
from expressions.model_file import FOLD, SCALINGS, digest, read_text_attribute

# A stranger's .h5 may name any class to build, and a Lambda layer runs code that the file brings. These only compute.
LAYERS = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "ELU", "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling2D",
    "GlobalMaxPooling2D", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Model", "Multiply", "PReLU",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "Softmax", "SpatialDropout2D", "ZeroPadding2D",
    "__keras_tensor__",  # in the place of a layer's input
}  # fmt: skip
TRAINED_WITH = ("_initializer", "_regularizer", "_constraint")  # endings of what only matters in training
# in a file; far above those of networks that people use, which compute up to 1,000 layers
MAX_OBJECTS, MAX_DEPTH, MAX_TEXT_BYTES, MAX_CALLS = 2**15, 64, 2**24, 2**11
MAX_METADATA_CHARACTERS = 2**20  # the program itself reads it, at each start; what is cut off is damaged
MAX_LABELS, MAX_LABEL_LENGTH = 1000, 100  # each becomes a column of tables and a word beside a face


def unpack(path: Path, folder: Path) -> tuple[Path, str | None]:
    """The HDF5 file of a model file, and the network's description where it stands outside of it.

    Of a .keras file the HDF5 file is unpacked into `folder`; other files are returned as they are. Raises UserError.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # how a zip begins
            return path, None
    try:
        with zipfile.ZipFile(path) as archive:
            described, weights = map(archive.getinfo, ("config.json", "model.weights.h5"))
            stored = described.compress_type == weights.compress_type == zipfile.ZIP_STORED  # as Keras does
            if not stored or described.file_size > MAX_TEXT_BYTES:  # what is compressed can unpack to any size
                raise UserError("a .keras file with compressed parts, or too much text; save it again with Keras")
            config, content = archive.read(described).decode(), archive.read(weights)
    except UserError:
        raise
    except Exception:  # whatever zipfile makes of a damaged file
        raise UserError("not a whole .keras file, or without weights; save it again with Keras") from None
    (folder / "model.weights.h5").write_bytes(content)
    return folder / "model.weights.h5", config


def validate_model_file(path: Path, described: str | None = None, **given: object) -> tuple[dict, dict]:
    """Raise UserError unless a model file is safe to load and says what it needs.

    `path` and `described` are what `unpack` returns. Returns the metadata, replaced by what is `given`, and so much of
    the network's configuration as computing takes.
    """
    try:
        with h5py.File(path) as file:
            _check_objects(file, path.stat().st_size)
            metadata = read_text_attribute(file, "facts")
            config = described or read_text_attribute(file, "model_config")
            metadata, config = parse_metadata(metadata, config, given)
            # someone may have removed the metadata, to write other
            expected = read_text_attribute(file, "digest") if "facts" in file.attrs else None
            if expected and expected != digest(file):
                raise UserError("some of it has changed since it was written; copy or train it again")
    except UserError:
        raise
    except Exception:  # whatever h5py makes of a damaged file
        suffix = ".keras" if described else ".h5"
        raise UserError(f"not a whole {suffix} file; copy or train it again") from None
    # by the name Keras tells what is in it
    if not described and (path.suffix not in (".h5", ".hdf5") or path.stem.endswith(".weights")):
        raise UserError("the name of a model file has to end in .h5, and not in .weights.h5; rename it")
    labels = metadata.get("labels")
    if labels and len(set(labels)) < len(labels):
        raise UserError(f"two of its labels are the same: {', '.join(labels):.500}")
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
        metadata, config = json.loads((metadata or "{}")[:MAX_METADATA_CHARACTERS]) | given, json.loads(config)
        labels, scaling, fold = metadata.get("labels"), metadata.get("scaling"), metadata.get("fold")
        usable = labels is None or (isinstance(labels, list) and len(labels) <= MAX_LABELS)
        usable = usable and all(label.isprintable() and 0 < len(label) <= MAX_LABEL_LENGTH for label in labels or ())
        usable = usable and (scaling is None or scaling in SCALINGS) and 0.01 <= metadata.get("temperature", 1) <= 100
        usable = usable and (fold is None or FOLD.fullmatch(fold))
        config = _sanitize_config(config)
        usable = usable and isinstance(config["config"]["layers"], list) and isinstance(config["class_name"], str)
        calls = _count_calls(config)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        usable = False
    if not usable:
        raise UserError("its description is damaged; train it again")
    if calls > MAX_CALLS:
        raise UserError("computes more layers than this program takes; don't use it")
    return metadata, config


def _count_calls(config):
    """How many layers a network computes, also within networks in it; each as often as it is used, for each input."""
    count = 0
    for layer in config["config"]["layers"]:
        calls = layer.get("inbound_nodes") or [[None]]
        if "layers" in layer["config"]:
            count += len(calls) * _count_calls(layer)
        else:  # Keras before 3 lists the inputs of a call
            inputs = (
                len(call) if isinstance(call, list) else json.dumps(call).count("keras_history") for call in calls
            )
            count += sum(inputs)
    return count


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
    if name == "Sequential":
        _complete_sequential(clean)
    return clean


def _complete_sequential(config):
    """Give a Sequential of Keras 2.2 or before a name and the InputLayer that Keras 3 needs."""
    if isinstance(config["config"], list):
        config["config"] = {"name": "sequential", "layers": config["config"]}
    layers = config["config"]["layers"]
    for first in layers[:1]:
        shape = first["config"].get("batch_input_shape")
        if shape and first["class_name"] != "InputLayer":
            layers.insert(0, {"class_name": "InputLayer", "config": {"batch_shape": shape}})
            del first["config"]["batch_input_shape"]


def _check_objects(file, file_bytes):
    """Raise UserError unless an open HDF5 file is what Keras writes: a tree of groups, plain arrays and texts.

    Links and arrays can lead to other files or in circles, and compressed or empty arrays can unpack to any size.
    """
    waiting, seen, named, array_bytes, attributes = [file["/"]], set(), set(), 0, 0
    while waiting:
        item = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise UserError("holds a part in two places; don't use it")
        seen.add(address)
        attributes += len(item.attrs)
        if attributes > MAX_OBJECTS:  # HDF5 may search for each among all
            raise UserError("holds more parts than this program takes; don't use it")
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
            _check_names(item, named)
    if file_bytes - array_bytes > MAX_TEXT_BYTES:
        raise UserError("holds more text than this program takes; don't use it")


def _check_names(group, named):
    """Raise UserError where a part that the group's attributes name is `named` already: Keras reads it each time."""
    for key in group.attrs:
        if not key.startswith(("layer_names", "weight_names")):
            continue
        if math.prod(group.attrs.get_id(key).shape) > MAX_OBJECTS:
            raise UserError("holds more parts than this program takes; don't use it")
        for name in group.attrs[key]:
            address = h5py.h5o.get_info(group[name].id).addr
            if address in named:
                raise UserError("holds a part in two places; don't use it")
            named.add(address)


def dump_weights(path: Path) -> bytes:
    """The weights in the HDF5 file of a model as an .npz file; see `model_file.read_weights`."""
    content, votes = io.BytesIO(), read_votes_layer(path)
    try:
        with h5py.File(path) as file:
            group = file["model_weights"]
            layers = [group[name] for name in group.attrs["layer_names"]]
            weights = [np.float32(layer[name]) for layer in layers for name in layer.attrs["weight_names"]]
    except (KeyError, TypeError, ValueError, MemoryError):
        raise UserError("its weights are damaged; copy or train it again") from None
    check_finite(weights, votes)
    np.savez(content, *weights, **dict(zip(("kernel", "bias"), votes or (), strict=False)))
    return content.getvalue()


def read_votes_layer(path: Path) -> list[np.ndarray] | None:
    """The kernel and bias of the layer that predicts votes, None without one; see `model_file.dump_model`."""
    with h5py.File(path) as file:
        try:
            return [np.float32(file["votes"][name]) for name in ("kernel", "bias")] if "votes" in file else None
        except (KeyError, TypeError, ValueError):
            raise UserError("its layer for votes is damaged; copy or train it again") from None


def check_finite(weights: Sequence[np.ndarray], votes: Sequence[np.ndarray] | None) -> None:
    """Raise UserError if one of the arrays holds NaN or infinity."""
    if not all(np.isfinite(each).all() for each in (*weights, *(votes or ()))):
        raise UserError("some of its weights are no numbers but NaN or infinity; train it again")
