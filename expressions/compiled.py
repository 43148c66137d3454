"""The network of a model file compiled for speed: a LiteRT file beside the .h5, which needs no TensorFlow to run.

Its name holds the digest of the .h5 that it was made from, so that another model never meets a stale one.
"""

import contextlib
import glob
import hashlib
import os
from pathlib import Path

import numpy as np

from expressions import quiet

TOLERANCE = 1e-4  # by which a probability of the compiled network may differ from Keras's
DIGITS = 12  # of the digest, in a file's name
SAMPLES = 64  # pictures that both have to agree on


class CompiledNetwork:
    """What `Classifier` needs of a network, done by LiteRT. content: a LiteRT file, bytes.

    input_shape, output_shape: as Keras has them. Raises ImportError without LiteRT, ValueError for another content."""

    def __init__(self, content):
        from ai_edge_litert.interpreter import Interpreter  # here, for the program works without it

        # a thread more than there are cores for this program makes it slower; more than four do not pay
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with quiet():  # it tells which of its parts it uses
            self.interpreter = Interpreter(model_content=content, num_threads=min(4, cores))
            self.interpreter.allocate_tensors()
        [taken], [given] = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.input, self.output, self.batch = taken["index"], given["index"], None
        self.input_shape, self.output_shape = ((None, *part["shape"][1:].tolist()) for part in (taken, given))

    def predict_on_batch(self, inputs):
        """The logits of float32 (n, height, width, channels): float32 (n, columns)."""
        if len(inputs) != self.batch:
            self.interpreter.resize_tensor_input(self.input, inputs.shape)
            self.interpreter.allocate_tensors()
            self.batch = len(inputs)
        self.interpreter.set_tensor(self.input, inputs)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output)


def load(model):
    """The compiled network of the .h5 file `model` as a CompiledNetwork; None when there is none, or no LiteRT."""
    try:
        return CompiledNetwork(place(model).read_bytes())
    except (ImportError, OSError, ValueError):
        return None


def build(classifier, model):
    """Compile the network of `classifier`, a Classifier of the .h5 file `model`; keep it beside the file for `load`.

    Returns a CompiledNetwork, or None where LiteRT or TensorFlow's converter to it is missing, or the result differs
    from Keras's: labels have to be the same, and probabilities within TOLERANCE."""
    try:
        import tensorflow  # the one place that needs it by name: its converter has no other home

        with quiet():
            content = tensorflow.lite.TFLiteConverter.from_keras_model(classifier.network).convert()
        compiled = CompiledNetwork(content)
    except Exception:  # whatever the converter makes of a network, or of another backend of Keras
        return None
    # enlarged to a face's size, these are soft blobs; on mere noise networks are certain, and so hard to tell apart
    faces = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8), np.uint8)
    expected, network = classifier.probabilities(faces), classifier.network
    classifier.network = compiled
    given, classifier.network = classifier.probabilities(faces), network
    same = (given.argmax(axis=1) == expected.argmax(axis=1)).all()
    if not same or np.abs(given - expected).max() > TOLERANCE:
        return None
    target = place(model)
    with contextlib.suppress(OSError):  # a folder that can't be written to: compiled anew each time
        digest = "[0-9a-f]" * DIGITS
        for old in target.parent.glob(f"{glob.escape(Path(model).stem)}.{digest}.tflite"):
            old.unlink()
        partial = target.with_suffix(".partial")
        partial.write_bytes(content)
        os.replace(partial, target)
    return compiled


def place(model):
    """Where the compiled network of the .h5 file `model` is kept."""
    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()[:DIGITS]
    return Path(model).with_suffix(f".{digest}.tflite")
