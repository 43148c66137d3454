"""The model file: a Keras .h5 that tells its own labels and input, is checked before it is loaded, and judges faces.

The facts travel inside the .h5, as JSON in the attribute `facts` of its root; nothing is inferred from a file name.
"""

import json
from pathlib import Path

import h5py
import keras
import numpy as np

from expressions import UserError, prepare

# A stranger's .h5 may name any class to build, and a Lambda layer runs code that the file brings. These only compute.
LAYERS = {
    "Activation", "AveragePooling2D", "BatchNormalization", "Conv2D", "Dense", "Dropout", "Flatten",
    "GlobalAveragePooling2D", "InputLayer", "MaxPooling2D", "ReLU", "Sequential", "Softmax",
}  # fmt: skip
PARTS = {"DTypePolicy", "GlorotUniform", "HeNormal", "Ones", "Zeros", "L2"}  # what a layer is configured with
BATCH = 256  # faces in one call; bounds the memory


class Classifier:
    """A trained network, ready to tell the expression of faces.

    facts: what the file says of itself (a dictionary, see `write_facts`). labels: class names in the order of the
    probabilities. Raises UserError when the file is missing, damaged, unsafe, or doesn't say what it needs.
    """

    def __init__(self, path):
        self.facts = read_facts(path)
        self.labels = tuple(self.facts["labels"])
        try:
            self.network = keras.models.load_model(path, compile=False)
        except (ValueError, TypeError, KeyError, OSError) as error:
            first_line = str(error).strip().split("\n")[0]
            raise UserError(f"{path}: Keras can't load this model ({first_line}); train it again") from None
        size, channels = self.facts["image_size"], 1
        expected = ((None, size, size, channels), (None, len(self.labels)))
        shapes = (tuple(self.network.input_shape), tuple(self.network.output_shape))
        if shapes != expected:
            raise UserError(
                f"{path}: takes and gives {shapes}, but says {size}x{size} gray pictures and {len(self.labels)} labels;"
                " train it again"
            )

    def probabilities(self, faces):
        """How likely each expression is, for each face.

        faces: a sequence of n pictures that `expressions.prepare` takes: uint8, gray or BGR, of any size.
        Returns float32 (n, classes), rows that add up to 1, in the order of `labels`.
        """
        results = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(faces), BATCH):
            results.append(np.asarray(self.network.predict_on_batch(self.inputs(faces[start : start + BATCH]))))
        return np.concatenate(results)

    def inputs(self, faces):
        """The network's input for n pictures of faces: float32 (n, size, size, 1)."""
        pixels = np.stack([prepare(face, self.facts["image_size"]) for face in faces])
        return pixels[..., None].astype(np.float32) * np.float32(self.facts["scale"])


def write_facts(path, facts):
    """Store `facts` in the model file at `path`, in the place of those that were there.

    facts: JSON values; labels, image_size (pixels) and scale (input = pixel * scale), and whatever else should travel
    with the network, such as metrics, data and versions.
    """
    with h5py.File(path, "r+") as file:
        file.attrs["facts"] = json.dumps(facts)


def read_facts(path):
    """The facts of the model file at `path`, after checking that the file is one that is safe to load.

    Raises UserError when it is missing, no Keras model, holds a layer that is not on the list, refers to other files,
    or carries no facts.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file; train one with train.py, or name one with --model")
    try:
        with h5py.File(path) as file:
            check_links(file, path)
            config, facts = file.attrs.get("model_config"), file.attrs.get("facts")
    except PermissionError:
        raise UserError(f"{path}: can't be read; check its permissions") from None
    except (OSError, RuntimeError, KeyError):
        raise UserError(f"{path}: not a whole HDF5 file; copy or train it again") from None
    if config is None:
        raise UserError(f"{path}: holds weights but no network; save the whole model, as train.py does")
    if facts is None:
        raise UserError(f"{path}: doesn't tell its labels and scaling; use a model that train.py wrote")
    try:
        config, facts = json.loads(config), json.loads(facts)
        labels, size, scale = facts["labels"], facts["image_size"], facts["scale"]
        usable = isinstance(size, int) and isinstance(scale, int | float) and bool(labels) and isinstance(labels, list)
        usable = usable and all(isinstance(label, str) for label in labels)
    except (ValueError, TypeError, KeyError):
        usable = False
    if not usable:
        raise UserError(f"{path}: its description is damaged; train it again")
    check_config(config, path)
    return facts


def check_links(group, path):
    """Raise UserError when anything in an HDF5 group lies outside the file: it would read files of this machine."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: links to another file; don't use it")
        item = group[name]
        if isinstance(item, h5py.Group):
            check_links(item, path)
        elif item.external or item.is_virtual:
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
            raise UserError(f"{path}: holds {name}, which this program does not load since it could run code")
        for item in config.values():
            check_config(item, path)
