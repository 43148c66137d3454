"""The network of a model file compiled for speed: a LiteRT file, which needs no TensorFlow to run.

It is kept in a folder of the user's own, for what lies beside a stranger's .h5 is as strange. Its name is the digest of
the .h5 that it was made from, so that another model never meets a stale one. Before it in the file stand the SHA-256 of
all the rest and, as a line of JSON, the model's facts.
"""

import contextlib
import copy
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from expressions.files import atomic_write, suppress_output

TOLERANCE = 1e-4  # by which a probability of the compiled network may differ from Keras's
KEPT = 10  # compiled networks, the most recently used
DIGEST = 32  # bytes of a SHA-256
SAMPLES = 64  # pictures that both have to agree on


class CompiledNetwork:
    """What `Classifier` needs of a network, done by LiteRT. content: a LiteRT file, bytes. facts: of the .h5.
    threads: how many it uses.

    input_shape, output_shape: as Keras has them. Raises ImportError without LiteRT, ValueError for another content."""

    def __init__(self, content, facts, threads=None):
        self.facts = facts
        from ai_edge_litert.interpreter import Interpreter  # here, for the program works without it

        # a thread more than there are cores for this program makes it slower; more than four do not pay
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with suppress_output():  # it tells which of its parts it uses
            self.interpreter = Interpreter(model_content=content, num_threads=threads or min(4, cores))
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


def load(model, threads=None):
    """The compiled network of the .h5 file `model`, which was checked when it was compiled, as a CompiledNetwork.

    None when there is none, it is damaged, or LiteRT is missing."""
    try:
        kept = place(model)
        content = kept.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:  # LiteRT may crash on a damaged one
            return None
        facts, _, content = content[DIGEST:].partition(b"\n")
        network = CompiledNetwork(content, json.loads(facts), threads)
        with contextlib.suppress(OSError):  # it may lie where nothing can be written
            os.utime(kept)  # used just now
        return network
    except (ImportError, OSError, ValueError, RuntimeError):
        return None


def build(classifier, model, threads=None):
    """Compile the network of `classifier`, a Classifier of the .h5 file `model`; keep it for `load`.

    Returns a CompiledNetwork, or None where LiteRT or TensorFlow's converter to it is missing, or the result differs
    from Keras's: labels have to be the same, and probabilities within TOLERANCE."""
    try:
        import tensorflow  # the one place that needs it by name: its converter has no other home

        with suppress_output():
            content = tensorflow.lite.TFLiteConverter.from_keras_model(classifier.network).convert()
        compiled = CompiledNetwork(content, classifier.facts, threads)
    except Exception:  # whatever the converter makes of a network, or of another backend of Keras
        return None
    # enlarged to a face's size, these are soft blobs; on mere noise networks are certain, and so hard to tell apart
    faces = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8), np.uint8)
    fast = copy.copy(classifier)
    fast.network = compiled
    expected, given = (
        np.array([each.probabilities(faces, votes=votes) for votes in {False, each.votes}])
        for each in (classifier, fast)
    )
    if (given.argmax(axis=2) != expected.argmax(axis=2)).any() or np.abs(given - expected).max() > TOLERANCE:
        return None
    with contextlib.suppress(OSError, RuntimeError):  # nowhere to keep it: compiled anew each time
        target, kept = place(model), json.dumps(classifier.facts).encode() + b"\n" + content
        with atomic_write(target, target.with_suffix(f".{os.getpid()}")) as partial:
            partial.write_bytes(hashlib.sha256(kept).digest() + kept)
        for old in sorted(target.parent.iterdir(), key=os.path.getmtime, reverse=True)[KEPT:]:
            old.unlink()
    return compiled


def place(model):
    """Where the compiled network of the .h5 file `model` is kept.

    Makes the folder. Raises OSError, or RuntimeError where the user has no home."""
    variable, usual = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}.get(
        sys.platform, ("XDG_CACHE_HOME", ".cache")
    )
    named = os.environ.get(variable, "")
    folder = (Path(named) if os.path.isabs(named) else Path.home() / usual) / "facial-expressions"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    made = folder.stat()
    if hasattr(os, "getuid") and (made.st_uid != os.getuid() or made.st_mode & 0o022):
        raise PermissionError(folder)  # someone else may have put something there
    with open(model, "rb") as file:
        return folder / f"{hashlib.file_digest(file, 'sha256').hexdigest()}.tflite"
