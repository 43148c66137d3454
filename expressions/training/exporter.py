"""Take a trained network elsewhere: as a LiteRT or ONNX file, and beside it what goes in and what comes out."""

import argparse
import json
from pathlib import Path

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
    metadata, content = run_sandboxed(path.suffix[1:], model, **given)
    description = describe(metadata) | {"file": path.name}
    beside = path.with_name(f"{path.name}.json")
    with atomic_write(path) as network, atomic_write(beside) as text:
        network.write_bytes(content)
        text.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    print(f"Network: {path}, {len(content) / 1e6:.1f} MB\nLabels and preprocessing: {beside}")


def describe(metadata: dict) -> dict:
    """What a program has to know to use an exported network, from its metadata and shapes, as JSON can hold it."""
    (_, *size, channels), (_, columns) = metadata["input_shape"], metadata["output_shape"]
    classes = len(metadata["labels"])
    votes = {"votes": f"softmax(output[:, {classes}:{2 * classes}])"} if columns > classes else {}
    return {
        "labels": metadata["labels"],
        "input": {
            "shape": ["faces", *size, channels],
            "type": "float32",
            "color": "gray" if channels == 1 else "gray, in each channel",
            "size": "by the mean of areas (OpenCV: INTER_AREA) where a face shrinks, else bilinear",
            "value": VALUES[metadata["scaling"]],
        },
        "output": {
            "shape": ["faces", columns],
            "temperature": metadata.get("temperature", 1),
            "probabilities": f"softmax(output[:, :{classes}] / temperature)",
            **votes,
        },
    }
