"""Take a trained network elsewhere: as a LiteRT or ONNX file, and beside it what goes in and what comes out."""

import argparse
import json
from pathlib import Path

from expressions.classifier import Classifier, CompiledNetwork
from expressions.files import atomic_write
from expressions.model_file import run_sandboxed

VALUES = {  # what a network takes of a pixel, by the names of `model_file.SCALINGS`
    "unit": "pixel / 255",
    "symmetric": "pixel / 127.5 - 1",
    "pixels": "pixel",
    "standardised": "(pixel - mean of the image) / max(standard deviation of the image, 1e-6)",
}


def export(options: argparse.Namespace, model: Path) -> None:
    """Write the network of options.model, by default `model`, to options.export, and FILE.json beside it.

    Another process, with limits, converts it and compares it with Keras's network on images. Raises UserError, and
    writes nothing, where that goes wrong.
    """
    path, model = options.export, options.model or model
    print(f"Converting {model}, and comparing the result with Keras: this takes some seconds ...", flush=True)
    given = {name: value for name in ("labels", "scaling") if (value := getattr(options, name))}
    metadata, content = run_sandboxed("compile", model, **given)
    description = describe(Classifier(CompiledNetwork(content), metadata)) | {"file": path.name}
    if path.suffix == ".onnx":
        content = run_sandboxed("onnx", model, **given)[1]
    beside = path.with_name(f"{path.name}.json")
    with atomic_write(path) as network, atomic_write(beside) as text:
        network.write_bytes(content)
        text.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Network: {path}, {len(content) / 1e6:.1f} MB\nLabels and preprocessing: {beside}")


def describe(classifier: Classifier) -> dict:
    """What a program has to know to use the network of a classifier, as JSON can hold it."""
    network, classes = classifier.network, len(classifier.labels)
    votes = {"votes": f"softmax(output[:, {classes}:{2 * classes}])"} if classifier.has_votes else {}
    return {
        "labels": classifier.labels,
        "input": {
            "shape": ["faces", *network.input_shape[1:]],
            "type": "float32",
            "color": "gray" if classifier.channels == 1 else "gray, in each channel",
            "size": "by the mean of areas (OpenCV: INTER_AREA) where a face shrinks, else bilinear",
            "value": VALUES[classifier.metadata["scaling"]],
        },
        "output": {
            "shape": ["faces", *network.output_shape[1:]],
            "temperature": classifier.metadata.get("temperature", 1),
            "probabilities": f"softmax(output[:, :{classes}] / temperature)",
            **votes,
        },
    }
