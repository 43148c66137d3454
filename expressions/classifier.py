"""The model file: a Keras .h5 that tells its own labels and input, is checked before it is loaded, and judges faces.

The facts travel inside the .h5, as JSON in the attribute `facts` of its root; nothing is inferred from a file name.
"""

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from expressions import IMAGE_SIZE, RESCALE, UserError
from expressions.files import atomic_write, suppress_output
from expressions.images import preprocess_face

# A stranger's .h5 may name any class to build, and a Lambda layer runs code that the file brings. These only compute.
LAYERS = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "ELU", "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling2D",
    "GlobalMaxPooling2D", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Model", "Multiply", "PReLU",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "Softmax", "SpatialDropout2D", "ZeroPadding2D",
}  # fmt: skip
ACTIVATIONS = {
    "ELU", "LeakyReLU", "ReLU", "Softmax", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_swish",
    "leaky_relu", "linear", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus",
    "softsign", "swish", "tanh",
}  # fmt: skip
TRAINED_WITH = ("_initializer", "_regularizer", "_constraint")  # endings of what only matters while a network learns
# Bounds of a file, of its HDF5 objects and their depth, of its text, and of the JSON in it, far above those of networks
# that people use; DenseNet201 has 709 layers.
LARGEST_MODEL, MOST_OBJECTS, DEEPEST, MOST_TEXT, MOST_PARTS = 2**30, 2**15, 64, 2**24, 2**15
MOST_LAYERS, MOST_IN_ROW = 1000, 128  # Keras takes ever longer for each further layer of a Sequential
MOST_SIZE, MOST_VALUES = 512, 2048  # pixels of the input's side; values in all layers together, for each of its pixels
# from pixels (0 to 255) to what a network was trained on
SCALINGS = {
    "unit": lambda pixels: pixels * np.float32(RESCALE),  # 0 to 1
    "symmetric": lambda pixels: pixels * np.float32(2 * RESCALE) - 1,  # -1 to 1
    "pixels": lambda pixels: pixels,  # 0 to 255
    "standardised": lambda pixels: (  # mean 0 and standard deviation 1 over each picture
        (pixels - pixels.mean(axis=(1, 2), keepdims=True)) / np.maximum(pixels.std(axis=(1, 2), keepdims=True), 1e-6)
    ),
}
CHECKED_IN, CHECKED_WITH = 30, 2**32  # seconds and bytes of memory that the check of a file may take
BATCH_PIXELS = MOST_SIZE**2  # in one call; with MOST_VALUES it bounds the memory, to 2 GB


class Classifier:
    """A trained network, ready to tell the expression of faces.

    path: the .h5 file. network: what stands in for Keras's model of that file, such as the same network compiled
    (expressions/compiled.py): with its facts, input_shape, output_shape and predict_on_batch. given: facts for a file
    that tells nothing of itself, such as one from another program, or in the place of what it tells: labels, scaling,
    as in `write_facts`.
    facts: what the file says of itself. labels: class names in the order of the probabilities. votes: whether the
    network also predicts how taggers vote.
    Raises UserError when the file is missing, damaged, unsafe, or doesn't say what it needs.
    """

    def __init__(self, path, network=None, **given):
        self.facts, config = (network.facts, None) if network else read_model(path, **given)
        self.labels = tuple(self.facts["labels"])
        self.network = network or load_network(path, config, self.labels)
        self.size, self.channels = self.network.input_shape[2:]
        self.votes = self.network.output_shape[1] > len(self.labels)

    def probabilities(self, faces, mirrored=False, votes=False):
        """How likely each expression is, for each face.

        faces: a sequence of n images that `images.preprocess_face` takes: uint8, gray or BGR, of any size.
        mirrored: average over each face and its mirror image; more accurate, for twice the time.
        votes: not how likely each label is, but which share of ten people would choose it, of those who choose any; for
        files whose network has `votes`.
        Returns float32 (n, classes), rows that add up to 1, in the order of `labels`, made less or more sure by the
        file's temperature: softmax(logits / temperature), Guo et al. 2017, arXiv:1706.04599, equation 9.
        Raises UserError when the network gives something that is no number.
        """
        classes = len(self.labels)
        results = [np.empty((0, classes), np.float32)]
        batch = max(1, BATCH_PIXELS // self.size**2 // (2 if mirrored else 1))
        for start in range(0, len(faces), batch):
            inputs = self.inputs(faces[start : start + batch])
            views = np.concatenate([inputs, inputs[:, :, ::-1]]) if mirrored else inputs
            logits = np.asarray(self.network.predict_on_batch(views), np.float32)
            if not np.isfinite(logits).all():
                raise UserError("the model gives no numbers but NaN or infinity; train it again")
            # votes for other answers, in the last column, are left out
            temperature = np.float32(1 if votes else self.facts.get("temperature", 1))
            logits = (logits[:, classes:-1] if votes else logits[:, :classes]) / temperature
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            said = powers / powers.sum(axis=1, keepdims=True)
            results.append(said.reshape(-1, len(inputs), classes).mean(axis=0))
        return np.concatenate(results)

    def inputs(self, faces):
        """The network's input for n pictures of faces: float32 (n, size, size, channels)."""
        pixels = np.stack([preprocess_face(face, self.size) for face in faces]).astype(np.float32)
        return SCALINGS[self.facts["scaling"]](pixels)[..., None].repeat(self.channels, axis=3)


def load_network(path, config, labels):
    """Keras's model in the .h5 file at `path`, completed so that it gives logits: float32 (n, columns), a column for
    each of `labels`, and where the file has a layer for votes (see `write_votes`), a column for each of its answers.

    config: of `read_model`. Raises UserError when Keras can't load it, its input is no square picture, its output
    doesn't fit the labels, it is larger than its file or its input call for, or its weights aren't all numbers."""
    with suppress_output():  # TensorFlow greets
        import keras  # here, for it takes seconds, and a compiled network does without

    def build():
        kind = keras.Sequential if config["class_name"] == "Sequential" else keras.Model
        return kind.from_config(copy.deepcopy(config["config"]))  # which it changes

    def build_empty():
        with keras.StatelessScope(initialize_variables=False):  # weights have a shape but take no memory
            network = build()
            check_size(network, config, labels, path)

    try:
        with ThreadPoolExecutor(1) as aside:  # Keras keeps a list of weights to fill in, for each thread
            aside.submit(build_empty).result()
        network = build()
        network.load_weights(path)
        return completed(network, read_votes(path), labels, path)
    except UserError:
        raise
    except Exception as error:  # whatever Keras and its backend make of a damaged file
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: Keras can't load this model ({first_line[:200]}); train it again") from None


def completed(network, votes, labels, path):
    """Keras's `network`, its weights loaded, made to give logits, and the answers of the layer of `votes`, if any."""
    import keras

    if not all(np.isfinite(weights).all() for weights in (*network.get_weights(), *(votes or ()))):
        raise UserError(f"{path}: some of its weights are no numbers but NaN or infinity; train it again")
    last, outputs = network.layers[-1], network.outputs[0]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        outputs = keras.ops.log(outputs + 1e-12)  # undoes the softmax, up to a number that cancels
    if votes:
        features = network.layers[-2].output
        if [part.shape for part in votes] != [(features.shape[-1], len(labels) + 1), (len(labels) + 1,)]:
            raise UserError(f"{path}: its layer for votes doesn't fit its network; train it again")
        layer = keras.layers.Dense(len(labels) + 1, name="votes")
        outputs = keras.ops.concatenate([outputs, layer(features)], axis=1)
        layer.set_weights(votes)
    return keras.Model(network.inputs, outputs)


def check_size(network, config, labels, path):
    """Raise UserError when Keras's `network` of `config` doesn't turn square pictures into a value for each of
    `labels`, or would take more memory or time than its file and its input call for."""
    takes, gives = tuple(network.input_shape), tuple(network.output_shape)
    if len(takes) != 4 or takes[1] != takes[2] or takes[3] not in (1, 3):
        raise UserError(f"{path}: takes input of the shape {takes}, not square pictures with 1 or 3 channels")
    if takes[1] > MOST_SIZE:
        raise UserError(f"{path}: takes pictures of {takes[1]} pixels a side; {MOST_SIZE} are the most")
    if gives != (None, len(labels)):
        raise UserError(f"{path}: gives output of the shape {gives}, not one value for each of {labels}")
    layers = list(layers_of(network))
    if len(layers) < len(list(described_layers(config))):
        raise UserError(f"{path}: describes layers that lead nowhere; don't use it")

    @functools.cache  # a network in a network may be used often
    def values(network):
        nodes = itertools.chain(*getattr(network, "_functional", network)._nodes_by_depth.values())
        used = [(node.operation, part.shape[1:]) for node in nodes for part in node.output_tensors]
        return sum(math.prod(shape) + (values(layer) if hasattr(layer, "layers") else 0) for layer, shape in used)

    windows = [getattr(layer, name, 1) for layer in layers for name in ("kernel_size", "pool_size", "dilation_rate")]
    if (
        network.count_params() > Path(path).stat().st_size  # a number takes a byte at least
        or values(network) > MOST_VALUES * takes[1] ** 2
        or any(np.max(window) > takes[1] for window in windows)
    ):
        raise UserError(f"{path}: describes a network far larger than its weights or its input; don't use it")


def layers_of(network):
    """All layers of Keras's `network` and of networks in it, without input layers, which a Sequential doesn't count."""
    for layer in network.layers:
        if type(layer).__name__ != "InputLayer":
            yield layer
        yield from layers_of(layer) if hasattr(layer, "layers") else ()


def described_layers(config):
    """The same of a configuration."""
    for layer in config["config"]["layers"]:
        if layer["class_name"] != "InputLayer":
            yield layer
        yield from described_layers(layer) if "layers" in layer["config"] else ()


def write_facts(path, facts):
    """Store `facts` in the model file at `path`, in the place of those that were there.

    facts: JSON values; labels (in the order of the outputs), scaling (a name from SCALINGS), perhaps a temperature, and
    whatever else should travel with the network, such as metrics, data and versions.
    """
    with h5py.File(path, "r+") as file:
        file.attrs["facts"] = json.dumps(facts)
        file.attrs["digest"] = digest(file)


def digest(file):
    """SHA-256 over the facts, the network and the weights in an open model file. The file keeps it, so that it can be
    told whether anything of them was damaged."""
    whole = hashlib.sha256(f"{text(file, 'facts')}{text(file, 'model_config')}".encode())

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            whole.update(name.encode() + item[()].tobytes())

    file.visititems(add)
    return whole.hexdigest()


def write_votes(path, kernel, bias):
    """Store the layer that predicts votes from the features before the last layer, in the model file at `path`.

    kernel: float32 (features, classes + 1), the last column for other answers. bias: float32 (classes + 1)."""
    with h5py.File(path, "r+") as file:
        file["votes/kernel"], file["votes/bias"] = kernel, bias
        file.attrs["digest"] = digest(file)


def halve(path):
    """Make the model file at `path` half as large: its float32 weights become float16.

    Keras reads them into float32 again, and computes with those."""
    with atomic_write(path) as partial, h5py.File(path) as file, h5py.File(partial, "w") as halved:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                copied = halved.create_group(name)
            else:
                values = item[()]  # NumPy rounds to the nearest float16; HDF5 would cut off
                copied = halved.create_dataset(name, data=values.astype("f2") if values.dtype == "f4" else values)
            copied.attrs.update(item.attrs)

        halved.attrs.update(file.attrs)
        file.visititems(copy)
        halved.attrs["digest"] = digest(halved)


def read_votes(path):
    """The kernel and bias of the layer that predicts votes, None without one; see `write_votes`."""
    with h5py.File(path) as file:
        if "votes" not in file:
            return None
        try:
            return file["votes/kernel"][()], file["votes/bias"][()]
        except (KeyError, TypeError, AttributeError, OSError):
            raise UserError(f"{path}: its layer for votes is damaged; copy or train it again") from None


def read_facts(path):
    """The facts of the model file at `path`; see `read_model`."""
    return read_model(path)[0]


def read_model(path, **given):
    """The facts and the configuration of the network of the model file at `path`, after checking that the file is one
    that is safe to load.

    given: facts that go before those of the file.
    Raises UserError when it is missing, damaged, no Keras model, too large, holds a layer that is not on the list,
    refers to other files, or tells no labels or scaling.
    """
    # in a process of its own: on some damaged files HDF5's library crashes, never ends, or takes any memory
    code = "import sys; sys.path.insert(0, sys.argv[1]); from expressions import classifier; classifier.answer()"
    # -P: nor does it import what lies in the working directory, where a stranger's files may be
    words = [sys.executable, "-Pc", code, str(Path(__file__).parents[1]), os.path.abspath(path), json.dumps(given)]
    try:
        checked = subprocess.run(words, capture_output=True, timeout=CHECKED_IN)
        said = json.loads(checked.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        said = f"{path}: not a whole .h5 file; copy or train it again"
    if isinstance(said, str):
        raise UserError(said.replace(os.path.abspath(path), str(path)))
    return said


def answer():
    """What the process does that `read_model` starts: write `inspect`'s answer to standard output, as JSON."""
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (CHECKED_WITH,) * 2)
    path, given = sys.argv[2:]
    try:
        print(json.dumps(inspect(path, **json.loads(given))))
    except UserError as error:
        print(json.dumps(str(error)))


def inspect(path, **given):
    """As `read_model`, in this process."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file; train one with train.py, or name another one")
    if path.stat().st_size > LARGEST_MODEL:
        raise UserError(f"{path}: larger than {LARGEST_MODEL / 1e9:.1f} GB, which no model for faces has to be")
    try:
        with h5py.File(path) as file:
            check_objects(file, path)
            facts, config = describe(text(file, "facts") or "{}", text(file, "model_config"), given, path)
            # someone may have taken the facts away, to give others
            kept = text(file, "digest") if "facts" in file.attrs else None
            if kept and kept != digest(file):
                raise UserError(f"{path}: some of it has changed since it was written; copy or train it again")
    except PermissionError:
        raise UserError(f"{path}: can't be read; check its permissions") from None
    except UserError:
        raise
    except Exception:  # whatever h5py makes of a damaged file
        raise UserError(f"{path}: not a whole .h5 file; copy or train it again") from None
    if path.suffix not in (".h5", ".hdf5") or path.stem.endswith(".weights"):  # by which Keras tells what is in it
        raise UserError(f"{path}: the name of a model file has to end in .h5, and not in .weights.h5; rename it")
    labels, scaling = facts.get("labels"), facts.get("scaling")
    if labels and len(set(labels)) < len(labels):
        raise UserError(f"{path}: two of its labels are the same: {', '.join(labels)}")
    if not labels or not scaling:
        raise UserError(
            f"{path}: doesn't tell its labels and scaling; use a model that train.py wrote, "
            "or to measure another one, give train.py --labels and --scaling"
        )
    return facts, config


def text(file, name):
    """The text in the attribute `name` of an open model file; None without it. Raises ValueError for anything else."""
    value = file.attrs.get(name)
    value = value.decode() if isinstance(value, bytes) else value
    if not isinstance(value, str | None):
        raise ValueError(name)
    return value


def describe(facts, config, given, path):
    """What the JSON texts `facts` and `config` of a model file say, checked: the facts, with `given` before them, and
    the configuration made `plain`."""
    if config is None:
        raise UserError(f"{path}: holds weights but no network; save the whole model, as train.py does")
    try:
        facts, config = json.loads(facts) | given, json.loads(config)
        labels, scaling, seed = facts.get("labels"), facts.get("scaling"), facts.get("seed", 0)
        usable = labels is None or (isinstance(labels, list) and all(map(str.isprintable, labels)))
        usable = usable and (scaling is None or scaling in SCALINGS) and 0.01 <= facts.get("temperature", 1) <= 100
        usable = usable and isinstance(seed, int) and 0 <= seed < 2**32
        config = plain(config, path, itertools.count())
        networks = [part for part in (config, *described_layers(config)) if "layers" in part["config"]]
        lengths = [(len(part["config"]["layers"]), part["class_name"] == "Sequential") for part in networks]
        large = sum(length for length, _ in lengths) > MOST_LAYERS or any(
            row and length > MOST_IN_ROW for length, row in lengths
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        usable = False
    if not usable:
        raise UserError(f"{path}: its description is damaged; train it again")
    if large:
        raise UserError(f"{path}: has more layers than this program takes")
    return facts, config


def plain(config, path, parts, depth=0):
    """So much of a network's configuration as computing with it takes, in single precision and for pictures of a size.

    parts: a counter from 0. Raises UserError when it names anything that could run code, or has no end of parts."""
    if depth > DEEPEST or next(parts) > MOST_PARTS:
        raise UserError(f"{path}: its description goes too far; don't use it")
    if isinstance(config, list):
        return [plain(item, path, parts, depth + 1) for item in config]
    if not isinstance(config, dict):
        return config
    name = config.get("class_name")
    if name is not None:
        module, registered = config.get("module") or "keras", config.get("registered_name") or name
        listed = isinstance(name, str) and (name in LAYERS or name == "__keras_tensor__")
        if not (listed and registered == name and str(module).split(".")[0] == "keras"):
            raise unknown(name, path)
        config = {key: config[key] for key in ("class_name", "config", "name", "inbound_nodes") if key in config}
    kept = {}
    for key, value in config.items():
        if key.endswith(TRAINED_WITH):
            continue
        if key.endswith("activation") and value is not None:
            function = value.get("class_name") if isinstance(value, dict) else value
            if function not in ACTIVATIONS:
                raise unknown(function, path)
        elif key == "dtype":
            value = "float32"
        elif key in ("batch_shape", "batch_input_shape", "build_input_shape") and isinstance(value, list):
            value = [None, *(length or IMAGE_SIZE for length in value[1:])]
        kept[key] = plain(value, path, parts, depth + 1)
    if name in ("DepthwiseConv2D", "SeparableConv2D"):
        kept["config"].pop("groups", None)  # Keras 2 wrote it though it meant nothing
    return kept


def unknown(name, path):
    return UserError(f"{path}: holds {name!r:.80}, which this program doesn't know and so doesn't load")


def check_objects(file, path):
    """Raise UserError unless an open HDF5 file is what Keras writes: a tree of groups, plain arrays and texts.

    Links and arrays can lead into other files of this machine or in circles, and compressed or empty arrays and texts
    that are shared can unpack to far more than the file holds."""
    waiting, seen, size, numbers, texts = [(file["/"], 0)], set(), path.stat().st_size, 0, 0
    while waiting:
        item, depth = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise UserError(f"{path}: holds a part in two places; don't use it")
        seen.add(address)
        attributes = [item.attrs.get_id(name) for name in item.attrs]
        texts = max([texts, *(math.prod(each.shape) for each in attributes if each.dtype.kind == "O")])
        is_group, is_array = isinstance(item, h5py.Group), isinstance(item, h5py.Dataset)
        if (
            not (is_group or is_array)
            or (is_array and item.dtype.kind not in "biuf")
            or any(each.dtype.kind not in "biufSU" and not h5py.check_string_dtype(each.dtype) for each in attributes)
        ):
            raise UserError(f"{path}: holds something else than groups, numbers and texts; don't use it")
        if is_array:
            if item.external or item.is_virtual:
                raise UserError(f"{path}: keeps weights in another file; don't use it")
            taken = math.prod(item.shape) * item.dtype.itemsize
            numbers += taken
            if item.chunks or item.id.get_storage_size() != taken or numbers > size:
                raise UserError(f"{path}: some of its weights are missing or compressed; save it again with Keras")
        elif depth > DEEPEST or len(seen) + len(waiting) + len(item) > MOST_OBJECTS:
            raise UserError(f"{path}: holds more parts than this program takes; don't use it")
        else:
            for name in item:
                if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                    raise UserError(f"{path}: links to another file; don't use it")
                waiting.append((item[name], depth + 1))
    other = size - numbers  # bytes; HDF5 can let each text of an attribute be the same one, as large as all of these
    if other > MOST_TEXT or texts * other > 4 * LARGEST_MODEL:
        raise UserError(f"{path}: holds more text than this program takes; don't use it")
