"""The model file: a Keras .h5 that carries its own metadata, and the limited process that opens it.

The metadata is JSON in the attribute `facts` of the file's root; nothing is inferred from a file name. A model file may
come from a stranger, so this process never opens one: `run_sandboxed` starts another that does.
"""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from expressions import RESCALE, UserError

# from pixels (0 to 255) to what a network was trained on
SCALINGS = {
    "unit": lambda pixels: pixels * np.float32(RESCALE),  # 0 to 1
    "symmetric": lambda pixels: pixels * np.float32(2 * RESCALE) - 1,  # -1 to 1
    "pixels": lambda pixels: pixels,  # 0 to 255
    "standardised": lambda pixels: (  # mean 0 and standard deviation 1 over each image
        (pixels - pixels.mean(axis=(1, 2), keepdims=True)) / np.maximum(pixels.std(axis=(1, 2), keepdims=True), 1e-6)
    ),
}
FOLD = re.compile("([1-9][0-9]{0,2})/([1-9][0-9]{0,2})")  # K/N: a network that has not seen the K-th of N parts
MAX_FILE_BYTES = 2**30
MAX_SECONDS = 600  # of the other process, if it waits; `model_compiler` has the limits of processor time and memory


def read_metadata(path: str | os.PathLike) -> dict:
    """Read the metadata of a model file; UserError if it is missing, damaged or unsafe, or lacks labels or scaling."""
    return run_sandboxed("metadata", path)[0]


def read_weights(path: str | os.PathLike) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
    """Read the weights of a model file that train.py wrote; UserError as `read_metadata`.

    Returns:
        The network's weights in the order of Keras's `get_weights`, and the kernel and bias of the layer that predicts
        votes, None without one. All are float32 and finite.
    """
    with np.load(io.BytesIO(run_sandboxed("weights", path)[1])) as arrays:
        votes = (arrays["kernel"], arrays["bias"]) if "kernel" in arrays else None
        return [arrays[name] for name in arrays if name.startswith("arr_")], votes


def dump_model(network: Any, metadata: dict, votes: Sequence[np.ndarray] | None = None) -> bytes:
    """The content of a model file. It is made in memory: HDF5 crashes where the disk fills up.

    Args:
        network: A Keras model. Its weights become float16; Keras reads them into float32 again.
        metadata: Has labels (in the order of the outputs), scaling (a name in SCALINGS), perhaps a temperature, and
            whatever else should travel with the network, such as metrics, data and versions, all as JSON can hold it.
        votes: The layer that predicts votes from the features before the last layer: a kernel, float32
            (features, classes + 1), and a bias (classes + 1); the last column is for other answers.
    """
    from keras.src.legacy.saving.legacy_h5_format import save_model_to_hdf5  # `network.save` takes but a path

    def copy(name, item):
        if isinstance(item, h5py.Group):
            copied = file.create_group(name)
        else:
            values = item[()]  # NumPy rounds to the nearest float16; HDF5 would cut off
            copied = file.create_dataset(name, data=values.astype("f2") if values.dtype == "f4" else values)
        copied.attrs.update(item.attrs)

    with h5py.File.in_memory() as saved, h5py.File.in_memory() as file:
        save_model_to_hdf5(network, saved, include_optimizer=False)
        if votes is not None:
            saved["votes/kernel"], saved["votes/bias"] = votes
        file.attrs.update(saved.attrs)
        saved.visititems(copy)
        file.attrs["facts"] = json.dumps(metadata)
        file.attrs["digest"] = digest(file)
        file.flush()
        return file.id.get_file_image()


def digest(file: h5py.File) -> str:
    """SHA-256 of the metadata, the network and the weights in an open model file, to detect damage."""
    sha256 = hashlib.sha256(f"{read_text_attribute(file, 'facts')}{read_text_attribute(file, 'model_config')}".encode())

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            sha256.update(name.encode() + item[()].tobytes())

    file.visititems(add)
    return sha256.hexdigest()


def read_text_attribute(file: h5py.File, name: str) -> str | None:
    """The text in an attribute of an open model file, None without it; ValueError if it is something else."""
    value = file.attrs.get(name)
    value = value.decode() if isinstance(value, bytes) else value
    if not isinstance(value, str | None):
        raise ValueError(name)
    return value


def check_path(path: str | os.PathLike) -> None:
    """Raise UserError unless `path` is a readable file with the name and size of a model file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file; train one with train.py, or name another one")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES / 1e9:.1f} GB, which no model for faces has to be")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: can't be read; check its permissions")


def run_sandboxed(action: str, path: str | os.PathLike, **given: object) -> tuple[dict, bytes]:
    """Open a model file in another process with limited time, memory and output; see `model_compiler.check_main`.

    Returns the metadata, replaced by what is `given`, and the content for the action: for "weights" an .npz file, for
    "compile" a LiteRT file, for "metadata" nothing, for "tflite" and "onnx" such a file, and its shapes in
    the metadata. Raises UserError where the file is missing, damaged or unsafe, lacks metadata, or exceeds the limits.
    """
    check_path(path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from expressions import model_compiler as m; m.check_main()"
    # -P: nor does it import from the working directory, where a stranger's files may be
    command = [sys.executable, "-Pc", code, str(Path(__file__).parents[1]), action, os.path.abspath(path)]
    # TensorFlow's converter writes temporary files; a process that is stopped leaves them behind
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        variables = os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": folder}
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.DEVNULL}
        try:
            subprocess.run([*command, json.dumps(given)], **streams, env=variables, timeout=MAX_SECONDS)
            output.seek(0)
            first_line, _, content = output.read().partition(b"\n")
            metadata = json.loads(first_line)
        # it was stopped, HDF5 or TensorFlow crashed, or the metadata is nested too deep
        except (subprocess.TimeoutExpired, ValueError, RecursionError):
            metadata = "damaged, or takes more time or memory than a model for faces needs; don't use it"
    if isinstance(metadata, str):  # an error message
        raise UserError(f"{path}: {metadata}")
    return metadata, content
