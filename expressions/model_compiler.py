"""What runs in the limited process: validate a model file, read its weights, or compile its network.

A LiteRT file needs no TensorFlow to run, and is faster than Keras. `model_file.run_sandboxed` starts the process.
`python -m expressions.model_compiler` compiles the shipped model, after it has changed.
"""

import json
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from expressions import UserError
from expressions.classifier import (
    COMPILED,
    DIGEST_BYTES,
    MAX_BATCH_PIXELS,
    MODEL,
    Classifier,
    CompiledNetwork,
    file_digest,
    seal,
)
from expressions.files import suppress_output
from expressions.image_decoder import limit_resources
from expressions.model_file import MAX_FILE_BYTES, run_sandboxed
from expressions.model_validation import check_finite, dump_weights, read_votes_layer, unpack, validate_model_file

# of this process; DenseNet201 (709 layers, images of 224 pixels) takes 86 s and 2.6 GB
CHECK_SECONDS, COMPILE_SECONDS, MAX_MEMORY_BYTES = 20, 180, 2**32
SAMPLES, TOLERANCE = 64, 1e-4  # faces on which Keras and the compiled network agree, but for that in probability
FLOAT16_TOLERANCE = 1e-3  # the same of one with weights in float16; measured: 4e-4
MAX_OPERATIONS = 2**40  # of floating-point numbers, for that many faces; DenseNet201 takes half of them


def check_main() -> None:
    """Do what `model_file.run_sandboxed` asks for, within limits, and write the result to stdout."""
    action, path, given = sys.argv[2:]
    if hasattr(signal, "SIGXFSZ"):  # not on Windows
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; so too large a file ends the process as well
    with suppress_output():
        result = run(action, path, **json.loads(given))
    sys.stdout.buffer.write(result)


def run(action: str, path: str, **given: object) -> bytes:
    """The metadata as a line of JSON and the content for `action`; or an error message as a JSON text."""
    content = b""
    try:
        with tempfile.TemporaryDirectory() as folder:
            # not AS: TensorFlow reserves far more addresses than it uses
            limit_resources(CPU=CHECK_SECONDS, DATA=MAX_MEMORY_BYTES, FSIZE=2 * MAX_FILE_BYTES)
            hdf5, described = unpack(Path(path), Path(folder))
            metadata, config = validate_model_file(hdf5, described, **given)
            if action == "weights":
                content = dump_weights(hdf5)
            if action in CONVERTERS:
                limit_resources(CPU=COMPILE_SECONDS)
                content, network = compile_network(hdf5, metadata, config, action)
                if action in EXPORTS:
                    metadata |= {"input_shape": network.input_shape, "output_shape": network.output_shape}
    except (UserError, OSError) as error:  # a full disk
        metadata = str(error)[:1000]
    return json.dumps(metadata).encode() + b"\n" + content


def to_litert(network: Any, float16: bool = False) -> tuple[bytes, CompiledNetwork]:
    """Convert a network of Keras on TensorFlow; returns the content of a LiteRT file, and what runs it."""
    import tensorflow  # its converter has no other home

    converter = tensorflow.lite.TFLiteConverter.from_keras_model(network)
    if float16:  # of the weights; it still computes in float32
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tensorflow.float16]
    content = converter.convert()
    return content, CompiledNetwork(content)


def _to_onnx(network):
    import onnx.reference  # it computes what the standard says

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        network.export(path, format="onnx", verbose=False)
        content = path.read_bytes()
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content))
    [name], shapes = evaluator.input_names, {"input_shape": network.input_shape, "output_shape": network.output_shape}
    return content, SimpleNamespace(**shapes, predict_on_batch=lambda faces: evaluator.run(None, {name: faces})[0])


EXPORTS = {"tflite": to_litert, "onnx": _to_onnx}
CONVERTERS = {"compile": to_litert, "compile in float16": lambda network: to_litert(network, True), **EXPORTS}


def compile_network(path: str | Path, metadata: dict, config: dict, action: str = "compile") -> tuple[bytes, Any]:
    """Compile the network of a validated model file by one of CONVERTERS; UserError where that goes wrong.

    Returns the content of a LiteRT or ONNX file, which gives the probabilities that Keras gives, and what runs it.
    """
    # enlarged to a face's size, these are soft blobs; on noise networks are certain, and so hard to tell apart
    faces = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8), np.uint8)
    failed = "Keras can't load this model"
    try:
        network = complete_network(_build_network(path, config, metadata["labels"]), read_votes_layer(path))
        expected = _predict_all(network, metadata, faces)  # may fail where the converter takes minutes to
        failed = f"its network can't be converted to {'ONNX' if action == 'onnx' else 'LiteRT'}"
        content, compiled = CONVERTERS[action](network)
        # a face alone gets what it gets among others, and so does each of many after that
        actual = [_predict_all(compiled, metadata, faces[:count]) for count in (SAMPLES, 1, SAMPLES)]
    except UserError:
        raise
    except ImportError:
        raise UserError("TensorFlow, which compiles models, is missing: pip install -r requirements.txt") from None
    except Exception as error:  # whatever Keras and TensorFlow make of a damaged file
        text = str(error).strip() or type(error).__name__
        # TensorFlow's texts begin with the way to an error
        line = (re.search(r"\w+Error: +(\S.*)", text) or re.search("(.*)", text))[1]
        raise UserError(f"{failed} ({line[:200]}); train it again") from None
    expected, actual = (np.concatenate(each, axis=1) for each in ((expected, expected[:, :1], expected), actual))
    tolerance = FLOAT16_TOLERANCE if "float16" in action else TOLERANCE
    if (actual.argmax(axis=2) != expected.argmax(axis=2)).any() or np.abs(actual - expected).max() > tolerance:
        raise UserError("its compiled network differs from Keras's; train it again")
    return content, compiled


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
            raise UserError(f"takes input of the shape {takes}, not square images with 1 or 3 channels")
        if gives != (None, len(labels)):
            raise UserError(f"gives output of the shape {gives}, not one value for each of {tuple(labels)}")
        if _count_layers({"config": network.get_config()}) < described:  # their weights are in no graph
            raise ValueError("some of its layers lead nowhere")
        # bounds memory on every system: the graph has weights and results of one call, of which only shapes are known
        faces = tensorflow.TensorSpec((max(1, MAX_BATCH_PIXELS // takes[1] ** 2), *takes[1:]))
        graph = tensorflow.function(network).get_concrete_function(faces).graph
        outputs = [output for operation in graph.get_operations() for output in operation.outputs]
        values = sum(output.shape.num_elements() or 0 for output in outputs)
        if 4 * values > MAX_MEMORY_BYTES:
            raise ValueError(f"it takes {4 * values / 1e9:.0f} GB of memory")
        counter = tensorflow.compat.v1.profiler  # TensorFlow 2 has no other
        count_operations = counter.ProfileOptionBuilder(counter.ProfileOptionBuilder.float_operation())
        counted = counter.profile(graph, options=count_operations.with_empty_output().build()).total_float_ops
        if counted * SAMPLES / faces.shape[0] > MAX_OPERATIONS:
            raise ValueError(f"it takes {counted / faces.shape[0] / 1e9:.0f} billion operations a face")
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

    check_finite(network.get_weights(), votes)
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


def compile_shipped_model() -> None:
    """Write the compiled network of the program's own model, and print what `classifier` must say of both files."""
    sealed = seal(*run_sandboxed("compile in float16", MODEL))
    COMPILED.write_bytes(sealed)
    print(f'MODEL_DIGEST = "{file_digest(MODEL)}"\nCOMPILED_DIGEST = "{sealed[:DIGEST_BYTES].hex()}"')


if __name__ == "__main__":
    compile_shipped_model()
