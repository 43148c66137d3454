"""Take a trained network elsewhere: as a LiteRT or ONNX file, with a description of what goes in and what comes out."""

import argparse
import importlib.util
import json
from pathlib import Path

from expressions import UserError
from expressions.classifier import Classifier, CompiledNetwork
from expressions.files import atomic_write
from expressions.model_file import run_sandboxed

ACTIONS = {".tflite": "compile", ".onnx": "onnx"}  # of the limited process
SCALINGS = {
    "unit": "pixel / 255",
    "symmetric": "pixel / 127.5 - 1",
    "pixels": "pixel",
    "standardised": "(pixel - mean of the image) / max(standard deviation of the image, 1e-6)",
}


def export(options: argparse.Namespace, model: Path) -> None:
    """Write the network of options.model, by default `model`, to options.export, and FILE.json beside it.

    Another process, with limits, converts it and compares it with Keras's network on images.

    Raises:
        UserError: It can't be converted, or gives other results than Keras's network; there is no file then.
    """
    path, model = options.export, options.model or model
    if path.suffix not in ACTIONS or not path.parent.is_dir():
        raise UserError(f"--export {path}: takes a file whose name ends in .tflite or .onnx, in a folder that exists")
    if path.suffix == ".onnx" and not importlib.util.find_spec("tf2onnx"):
        raise UserError(f"--export {path}: tf2onnx, which makes ONNX files, is missing: pip install tf2onnx")
    print(f"Converting {model}, and comparing the result with Keras: this takes some seconds ...", flush=True)
    given = {"labels": options.labels, "scaling": options.scaling}
    given = {name: value for name, value in given.items() if value}
    metadata, content = run_sandboxed("compile", model, **given)
    description = _describe(Classifier(CompiledNetwork(content), metadata), path)
    if path.suffix == ".onnx":
        content = run_sandboxed("onnx", model, **given)[1]
    beside = path.with_name(f"{path.name}.json")
    with atomic_write(path) as network, atomic_write(beside) as text:
        network.write_bytes(content)
        text.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Network: {path}, {len(content) / 1e6:.1f} MB\nLabels and preprocessing: {beside}")


def _describe(classifier, path):
    metadata, classes, taken = classifier.metadata, len(classifier.labels), classifier.network.input_shape
    outputs = {"labels": {"columns": [0, classes], "temperature": metadata.get("temperature", 1)}}
    if classifier.has_votes:
        outputs["votes"] = {"columns": [classes, 2 * classes], "temperature": 1}
    return {
        "file": path.name,
        "model": metadata.get("name"),
        "labels": classifier.labels,
        "input": {
            "shape": ["faces", *taken[1:]],
            "type": "float32",
            "color": "gray" if classifier.channels == 1 else "gray, three times",
            "resize": "by the mean of areas (OpenCV: INTER_AREA) where the face shrinks, else bilinear",
            "value": SCALINGS[metadata["scaling"]],
        },
        "output": {
            "shape": ["faces", classifier.network.output_shape[1]],
            "probabilities": "softmax(output[:, columns[0]:columns[1]] / temperature)",
            **outputs,
        },
    }
