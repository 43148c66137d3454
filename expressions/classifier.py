"""The classifier: faces -> probabilities of expressions, by a network that was compiled from a model file.

The compiled network of the program's own model is shipped beside it. Others are kept in a folder of the user's own;
what lies beside a stranger's .h5 is as strange as the file. A name there is a digest of the .h5 and of the code that
checks it. A file with a compiled network holds the SHA-256 of the rest, the metadata as a line of JSON, and a LiteRT
file.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from expressions import ROOT, UserError
from expressions.files import atomic_write, suppress_output
from expressions.images import preprocess_face
from expressions.model_file import SCALINGS, check_path, run_sandboxed

MODEL = ROOT / "models" / "emotion_model.h5"
COMPILED = MODEL.with_suffix(".compiled")  # its weights are float16, to be half as large
# SHA-256 of MODEL, and the one that COMPILED begins with; `python -m expressions.model_compiler` prints both
MODEL_DIGEST = "999b5fa3b2248f2286800d5df5656cd1db3e7845fd3a274d38481a14f29f15ac"
COMPILED_DIGEST = "cb92dedafc01e49a1f17cc9d1058056d1ec0cd4e2dc1b27597566395bf06a339"
CHECKS = [Path(__file__).with_name(f"model_{name}.py") for name in ("file", "validation", "compiler")]
MAX_CACHED = 10  # compiled networks, the most recently used
DIGEST_BYTES = 32  # of a SHA-256
MAX_BATCH_PIXELS = 64 * 48 * 48  # in one call of a network; bounds its memory
# of the votes in what the webcam program shows: labels find too few neutral faces, votes too few angry and sad ones; an
# equal share is chosen by no data set, and as good on whole images as a fitted one (docs/model.md)
SHOWN_VOTES = 0.5


class CompiledNetwork:
    """A network from the content of a LiteRT file, with the part of Keras's interface that `Classifier` uses."""

    def __init__(self, content: bytes, threads: int | None = None):
        try:
            from ai_edge_litert.interpreter import Interpreter  # here, since training does without
        except ImportError:
            raise UserError("LiteRT, which runs models, is missing: pip install ai-edge-litert") from None

        # a thread more than there are cores for this program makes it slower; more than four do not pay
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with suppress_output():  # it prints which of its parts it uses
            self.interpreter = Interpreter(model_content=content, num_threads=threads or min(4, cores))
            self.interpreter.allocate_tensors()
        [taken], [given] = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.input, self.output, self.batch = taken["index"], given["index"], None
        self.input_shape, self.output_shape = ((None, *part["shape"][1:].tolist()) for part in (taken, given))

    def predict_on_batch(self, inputs: np.ndarray) -> np.ndarray:
        """The logits, float32 (n, columns), of float32 (n, height, width, channels)."""
        if len(inputs) != self.batch:
            self.interpreter.resize_tensor_input(self.input, inputs.shape)
            self.interpreter.allocate_tensors()
            self.batch = len(inputs)
        self.interpreter.set_tensor(self.input, inputs)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output)


class Classifier:
    """Predicts the expression of faces.

    Attributes:
        network: A CompiledNetwork, or Keras's network that gives logits; see `model_compiler.complete_network`.
        metadata: See `model_file.dump_model`.
        labels: Class names in the order of the probabilities.
        has_votes: Whether the network also predicts how taggers vote.
    """

    def __init__(self, network: CompiledNetwork, metadata: dict):
        self.network, self.metadata = network, metadata
        self.labels = tuple(metadata["labels"])
        self.size, self.channels = network.input_shape[2:]
        self.has_votes = network.output_shape[1] > len(self.labels)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        labels: Sequence[str] | None = None,
        scaling: str | None = None,
        threads: int | None = None,
    ) -> "Classifier":
        """Load a model file. Another process validates and compiles it the first time, unless it is the shipped one.

        `labels` and `scaling` replace the file's own; the file of another program has none. The network uses as many
        `threads` as given, by default as many as pay.

        Raises:
            UserError: The file is missing, damaged or unsafe, or lacks metadata.
        """
        check_path(path)
        given = ({"labels": list(labels)} if labels else {}) | ({"scaling": scaling} if scaling else {})
        model = file_digest(path)
        if model == MODEL_DIGEST and not given:
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # not there, or damaged
                metadata, _, content = _read_sealed(COMPILED, COMPILED_DIGEST).partition(b"\n")
                return cls(CompiledNetwork(content, threads), json.loads(metadata))
        name = cache_name(model, given)
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # not there, damaged, or of another LiteRT
            cached = _cache_folder() / name
            metadata, _, content = _read_sealed(cached).partition(b"\n")
            with contextlib.suppress(OSError):  # it may lie where nothing can be written
                os.utime(cached)  # used just now
            return cls(CompiledNetwork(content, threads), json.loads(metadata))
        print(f"Compiling {path}: this takes some seconds, once ...", flush=True)
        metadata, content = run_sandboxed("compile", path, **given)
        with contextlib.suppress(OSError, RuntimeError):  # nowhere to keep it: compiled anew each time
            write_cached(name, metadata, content)
        return cls(CompiledNetwork(content, threads), metadata)

    @property
    def shown_votes(self) -> float:
        """The weight of the votes in what the webcam program shows, for `predict_proba`."""
        return SHOWN_VOTES if self.has_votes else 0.0

    def predict_proba(self, faces: Sequence[np.ndarray], flip_tta: bool = False, votes: float = 0.0) -> np.ndarray:
        """How likely each expression is, for each face.

        Args:
            faces: n images as `images.preprocess_face` takes them, of any size.
            flip_tta: Average over each face and its mirror image; more accurate, for twice the time.
            votes: The weight, 0 to 1, of the share of people who would choose each label, of those who choose any. The
                rest is the weight of how likely each label is. More than 0 needs `has_votes`.

        Returns:
            float32 (n, classes), rows that add up to 1, in the order of `labels`. How likely labels are is calibrated
            by the model's temperature: softmax(logits / temperature), Guo et al. 2017, arXiv:1706.04599, equation 9.

        Raises:
            UserError: The network's outputs are not finite, or not a row for each face.
        """
        views = [self.predict_logits(faces, mirrored) for mirrored in ([False, True] if flip_tta else [False])]
        return self.probabilities(views, votes)

    def predict_logits(self, faces: Sequence[np.ndarray], mirrored: bool = False) -> np.ndarray:
        """The network's outputs, float32 (n, columns), for n images as `predict_proba` takes them."""
        results = [np.empty((0, self.network.output_shape[1]), np.float32)]
        batch = max(1, MAX_BATCH_PIXELS // self.size**2)
        for start in range(0, len(faces), batch):
            inputs = self.inputs(faces[start : start + batch])
            logits = np.asarray(self.network.predict_on_batch(inputs[:, :, :: 1 - 2 * mirrored]), np.float32)
            if logits.shape != (len(inputs), results[0].shape[1]) or not np.isfinite(logits).all():
                raise UserError("the model gives no numbers but NaN or infinity; train it again")
            results.append(logits)
        return np.concatenate(results)

    def probabilities(self, views: Sequence[np.ndarray], votes: float = 0.0) -> np.ndarray:
        """What `predict_proba` returns, from the logits of some views of the same faces."""
        classes = len(self.labels)
        # votes for other answers, in the last column, are left out
        parts = [(1 - votes, slice(classes), self.metadata.get("temperature", 1)), (votes, slice(classes, -1), 1)]
        weighted = [
            np.float32(weight) * softmax(logits[:, columns], np.float32(temperature))
            for logits in views
            for weight, columns, temperature in parts
            if weight
        ]
        return sum(weighted) / np.float32(len(views))

    def inputs(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """The network's input for n images of faces: float32 (n, size, size, channels)."""
        pixels = np.stack([preprocess_face(face, self.size) for face in faces]).astype(np.float32)
        return SCALINGS[self.metadata["scaling"]](pixels)[..., None].repeat(self.channels, axis=3)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities along the last axis, which may be empty, of `logits`; of the same shape and type."""
    with np.errstate(over="ignore"):
        powers = np.exp((logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)) / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def file_digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises UserError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # without the file's name where reading fails
        raise UserError(f"{path}: can't be read ({error.strerror}); copy it anew, or name another file") from None


def cache_name(model: str, given: dict) -> str:
    """The name of the cached network of a model file of this digest, of which the `given` metadata is replaced.

    It changes with the checks, so that a network that passed others is checked and compiled anew.
    """
    checks = b"".join(path.read_bytes() for path in CHECKS)
    return f"{hashlib.sha256(f'{model} {json.dumps(given)}'.encode() + checks).hexdigest()}.tflite"


def _cache_folder():
    """The folder of compiled networks, made if need be; OSError, or RuntimeError where the user has no home."""
    variable, usual = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}.get(
        sys.platform, ("XDG_CACHE_HOME", ".cache")
    )
    named = os.environ.get(variable, "")
    folder = (Path(named) if os.path.isabs(named) else Path.home() / usual) / "facial-expressions"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    made = folder.stat()
    if hasattr(os, "getuid") and (made.st_uid != os.getuid() or made.st_mode & 0o022):
        raise PermissionError(folder)  # someone else may have put something there
    return folder


def seal(metadata: dict, content: bytes) -> bytes:
    """The content of a file with a compiled network, from the metadata and the content of a LiteRT file."""
    content = json.dumps(metadata).encode() + b"\n" + content
    return hashlib.sha256(content).digest() + content


def _read_sealed(path, expected=None):
    content = path.read_bytes()
    digest = hashlib.sha256(content[DIGEST_BYTES:])
    # LiteRT may crash on a damaged one
    if digest.digest() != content[:DIGEST_BYTES] or expected not in (None, digest.hexdigest()):
        raise ValueError(path)
    return content[DIGEST_BYTES:]


def write_cached(name: str, metadata: dict, content: bytes) -> None:
    """Store the metadata and the content of a LiteRT file, and remove old ones; OSError or RuntimeError if it can't."""
    path = _cache_folder() / name
    with atomic_write(path, path.with_suffix(f".{os.getpid()}")) as partial:
        partial.write_bytes(seal(metadata, content))
    # the folder may be a link to one of the user's, with other files
    cached = [file for file in path.parent.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.tflite", file.name)]
    for old in sorted(cached, key=os.path.getmtime, reverse=True)[MAX_CACHED:]:
        with contextlib.suppress(ValueError):  # something else of such a name
            _read_sealed(old)
            old.unlink()
