"""The model file: a Keras .h5 that tells its own labels and input, is checked before it is loaded, and judges faces.

The facts travel inside the .h5, as JSON in the attribute `facts` of its root; nothing is inferred from a file name.
"""

import json
import os
from pathlib import Path

import h5py
import numpy as np

from expressions import IMAGE_SIZE, SCALE, UserError, prepare, quiet

# A stranger's .h5 may name any class to build, and a Lambda layer runs code that the file brings. These only compute.
LAYERS = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "ELU", "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling2D",
    "GlobalMaxPooling2D", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Model", "Multiply", "PReLU",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "Softmax", "SpatialDropout2D", "ZeroPadding2D",
}  # fmt: skip
PARTS = {  # what a layer is configured with
    "Constant", "DTypePolicy", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "L1", "L1L2", "L2",
    "LecunNormal", "LecunUniform", "MaxNorm", "Ones", "Orthogonal", "Policy", "RandomNormal", "RandomUniform",
    "TruncatedNormal", "VarianceScaling", "Zeros", "__keras_tensor__",
}  # fmt: skip
# from pixels (0 to 255) to what a network was trained on
SCALINGS = {
    "unit": lambda pixels: pixels * np.float32(SCALE),  # 0 to 1
    "symmetric": lambda pixels: pixels * np.float32(2 * SCALE) - 1,  # -1 to 1
    "pixels": lambda pixels: pixels,  # 0 to 255
    "standardised": lambda pixels: (  # mean 0 and standard deviation 1 over each picture
        (pixels - pixels.mean(axis=(1, 2), keepdims=True)) / np.maximum(pixels.std(axis=(1, 2), keepdims=True), 1e-6)
    ),
}
BATCH_PIXELS = 2**20  # in one call; bounds the memory


class Classifier:
    """A trained network, ready to tell the expression of faces.

    path: the .h5 file. network: what stands in for Keras's model of that file, such as the same network compiled
    (expressions/compiled.py): with its input_shape, output_shape and predict_on_batch. given: facts for a file that
    tells nothing of itself, such as one from another program, or in the place of what it tells: labels, scaling, as in
    `write_facts`.
    facts: what the file says of itself. labels: class names in the order of the probabilities. votes: whether the
    network also predicts how taggers vote.
    Raises UserError when the file is missing, damaged, unsafe, or doesn't say what it needs.
    """

    def __init__(self, path, network=None, **given):
        self.facts = read_facts(path, **given)
        self.labels = tuple(self.facts["labels"])
        self.network = network or load_network(path, self.labels)
        self.size, self.channels = self.network.input_shape[2] or IMAGE_SIZE, self.network.input_shape[3]
        self.votes = self.network.output_shape[1] > len(self.labels)

    def probabilities(self, faces, mirrored=False, votes=False):
        """How likely each expression is, for each face.

        faces: a sequence of n pictures that `expressions.prepare` takes: uint8, gray or BGR, of any size.
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
        pixels = np.stack([prepare(face, self.size) for face in faces]).astype(np.float32)
        return SCALINGS[self.facts["scaling"]](pixels)[..., None].repeat(self.channels, axis=3)


def load_network(path, labels):
    """Keras's model in the .h5 file at `path`, completed so that it gives logits: float32 (n, columns), a column for
    each of `labels`, and where the file has a layer for votes (see `write_votes`), a column for each of its answers.

    Raises UserError when Keras can't load it, its input is no square picture, or its output doesn't fit the labels."""
    with quiet():  # TensorFlow greets
        import keras  # here, for it takes seconds, and a compiled network does without

    def as_keras_2_saved(layer):
        # passes over what Keras 2 wrote into a file for the layer though it meant nothing
        unused = {"groups", "kernel_constraint", "kernel_initializer", "kernel_regularizer"}

        def from_config(cls, config):
            return cls(**{name: value for name, value in config.items() if name not in unused})

        return type(layer.__name__, (layer,), {"from_config": classmethod(from_config)})

    old = {
        layer.__name__: as_keras_2_saved(layer)
        for layer in (keras.layers.SeparableConv2D, keras.layers.DepthwiseConv2D)
    }
    try:
        network = keras.models.load_model(path, compile=False, custom_objects=old)
        takes, gives = tuple(network.input_shape), tuple(network.output_shape)
    except Exception as error:  # whatever Keras and its backend make of a damaged file
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: Keras can't load this model ({first_line[:200]}); train it again") from None
    if len(takes) != 4 or takes[1] != takes[2] or takes[3] not in (1, 3):
        raise UserError(f"{path}: takes input of the shape {takes}, not square pictures with 1 or 3 channels")
    if gives != (None, len(labels)):
        raise UserError(f"{path}: gives output of the shape {gives}, not one value for each of {labels}")
    last, outputs = network.layers[-1], network.outputs[0]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        outputs = keras.ops.log(outputs + 1e-12)  # undoes the softmax, up to a number that cancels
    votes = read_votes(path)
    if votes:
        features = network.layers[-2].output
        if [part.shape for part in votes] != [(features.shape[-1], len(labels) + 1), (len(labels) + 1,)]:
            raise UserError(f"{path}: its layer for votes doesn't fit its network; train it again")
        layer = keras.layers.Dense(len(labels) + 1, name="votes")
        outputs = keras.ops.concatenate([outputs, layer(features)], axis=1)
        layer.set_weights(votes)
    return keras.Model(network.inputs, outputs)


def write_facts(path, facts):
    """Store `facts` in the model file at `path`, in the place of those that were there.

    facts: JSON values; labels (in the order of the outputs), scaling (a name from SCALINGS), perhaps a temperature, and
    whatever else should travel with the network, such as metrics, data and versions.
    """
    with h5py.File(path, "r+") as file:
        file.attrs["facts"] = json.dumps(facts)


def write_votes(path, kernel, bias):
    """Store the layer that predicts votes from the features before the last layer, in the model file at `path`.

    kernel: float32 (features, classes + 1), the last column for other answers. bias: float32 (classes + 1)."""
    with h5py.File(path, "r+") as file:
        file["votes/kernel"], file["votes/bias"] = kernel, bias


def halve(path):
    """Make the model file at `path` half as large: its float32 weights become float16.

    Keras reads them into float32 again, and computes with those."""
    partial = Path(path).with_suffix(".halved")
    with h5py.File(path) as file, h5py.File(partial, "w") as halved:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                copied = halved.create_group(name)
            else:
                values = item[()]  # NumPy rounds to the nearest float16; HDF5 would cut off
                copied = halved.create_dataset(name, data=values.astype("f2") if values.dtype == "f4" else values)
            copied.attrs.update(item.attrs)

        halved.attrs.update(file.attrs)
        file.visititems(copy)
    os.replace(partial, path)


def read_votes(path):
    """The kernel and bias of the layer that predicts votes, None without one; see `write_votes`."""
    with h5py.File(path) as file:
        if "votes" not in file:
            return None
        try:
            return file["votes/kernel"][()], file["votes/bias"][()]
        except (KeyError, TypeError, AttributeError, OSError):
            raise UserError(f"{path}: its layer for votes is damaged; copy or train it again") from None


def read_facts(path, **given):
    """The facts of the model file at `path`, after checking that the file is one that is safe to load.

    given: facts that go before those of the file.
    Raises UserError when it is missing, no Keras model, holds a layer that is not on the list, refers to other files,
    or tells no labels or scaling.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file; train one with train.py, or name another one")
    try:
        with h5py.File(path) as file:
            check_links(file, path)
            config, facts = file.attrs.get("model_config"), file.attrs.get("facts", "{}")
    except PermissionError:
        raise UserError(f"{path}: can't be read; check its permissions") from None
    except (OSError, RuntimeError, KeyError):
        raise UserError(f"{path}: not a whole .h5 file; copy or train it again") from None
    if config is None:
        raise UserError(f"{path}: holds weights but no network; save the whole model, as train.py does")
    try:
        config, facts = json.loads(config), json.loads(facts) | given
        labels, scaling = facts.get("labels"), facts.get("scaling")
        usable = labels is None or (isinstance(labels, list) and all(isinstance(label, str) for label in labels))
        usable = usable and (scaling is None or scaling in SCALINGS) and 0.01 <= facts.get("temperature", 1) <= 100
    except (ValueError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise UserError(f"{path}: its description is damaged; train it again")
    check_config(config, path)
    if labels and len(set(labels)) < len(labels):
        raise UserError(f"{path}: two of its labels are the same: {', '.join(labels)}")
    if not labels or not scaling:
        raise UserError(
            f"{path}: doesn't tell its labels and scaling; use a model that train.py wrote, "
            "or to measure another one, give train.py --labels and --scaling"
        )
    return facts


def check_links(group, path):
    """Raise UserError when anything in an HDF5 group lies outside the file: it would read files of this machine."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: links to another file; don't use it")
        item = group[name]
        if isinstance(item, h5py.Group):
            check_links(item, path)
        elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            raise UserError(f"{path}: keeps weights in another file; don't use it")


def check_config(config, path):
    """Raise UserError when a network's configuration names anything that could run code."""
    if isinstance(config, list):
        for item in config:
            check_config(item, path)
    elif isinstance(config, dict):
        name = config.get("class_name")
        module = config.get("module") or "keras"
        registered = config.get("registered_name") or name
        known = (
            isinstance(name, str)
            and name in LAYERS | PARTS
            and registered == name
            and str(module).split(".")[0] == "keras"
        )
        if name is not None and not known:
            raise UserError(f"{path}: holds {name!r:.80}, which this program doesn't know and so doesn't load")
        for item in config.values():
            check_config(item, path)
