"""The command line of train.py."""

import argparse
import contextlib
import importlib.util
import os
import re
from pathlib import Path

from expressions import cli
from expressions.model_file import FOLD, SCALINGS

NETWORKS, SPLITS = ("compact", "large", "classic"), ("train", "validation", "test")
MODES = {  # in which nothing is trained, and the options they take
    "evaluate": "--data, --split, --labels and --scaling",
    "export": "--model, --labels and --scaling",
}


def begin(module: str, description: str) -> None:
    """Called before Keras is imported, which takes seconds: answer --help and mistakes, else say what is going on.

    `module` is the script's __name__; nothing happens where another program imports it. Of several processes that
    train together, the first alone prints.
    """
    if module != "__main__":
        return
    parse(None, description)
    if os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0") == "0":
        with contextlib.suppress(OSError):  # nobody reads it any more; `cli.run` sees to that
            print("Loading Keras ...", flush=True)


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    """Read the command line. Loads nothing that takes long."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with a folder per class, or fer2013.csv (default: data/, else drawn faces)")
    add("--network", choices=NETWORKS, help="which network to train (default: compact)")
    add("--start", type=Path, metavar="MODEL", help="fine-tune this model, averaging its weights over the epochs")
    add("--epochs", type=cli.int_range(1, 10**6),
        help="maximum number of epochs (default: 100; 5 on drawn faces; 40 with --start)")  # fmt: skip
    add("--batch-size", type=cli.int_range(2, 10**6), help="images per step (default: 64; 32 on drawn faces)")
    add("--seed", type=cli.int_range(0, 2**32 - 1), default=0, help="of all random numbers (default: 0)")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto",
        help="to compute in (default: auto, which is bfloat16 where the processor has it)")  # fmt: skip
    add("--model", type=Path, metavar="FILE",
        help="the .h5 to write, or to --export (default: models/emotion_model.h5, or synthetic_model.h5)")  # fmt: skip
    add("--show", metavar="EXPRESSION", help="show images of this class in a window before training")
    add("--teacher", type=Path, nargs="+", default=[], metavar="FILE",
        help="models, or soft labels (.npz), to learn from besides the labels")  # fmt: skip
    add("--soft-labels", type=Path, metavar="FILE", help="write what the teachers say into this .npz, and don't train")
    add("--fold", type=_fold, metavar="K/N", help="leave out the K-th of N parts of the training images")
    add("--resume", action="store_true", help="continue the stopped run whose state is in the model's folder")
    add = parser.add_argument_group("measuring a model instead of training one").add_argument
    add("--evaluate", type=Path, metavar="MODEL", help="the .h5 or .keras to measure")
    add("--split", choices=SPLITS, help="the images to measure it on (default: validation)")
    add("--labels", type=lambda names: [name.strip() for name in names.split(",") if name.strip()],
        help="names of its outputs in order, separated by commas; for a file that doesn't contain them")  # fmt: skip
    add("--scaling", choices=SCALINGS, help="the pixel range it expects: 0 to 1, -1 to 1, 0 to 255, or standardised")
    add = parser.add_argument_group("taking a model elsewhere instead of training one").add_argument
    add("--export", type=_network_file, metavar="FILE",
        help="the .tflite or .onnx to write, with its use beside it; takes --labels and --scaling too")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.soft_labels and not options.teacher:
        parser.error("--soft-labels takes --teacher, the models that it asks")
    if options.network and options.start:
        parser.error("--start has the network of its model; leave --network out")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    for mode, others in MODES.items():
        if mode in given and given - {mode, *re.findall(r"--(\w+)", others)}:
            parser.error(f"--{mode} takes only {others}")
    if not given & set(MODES) and given & {"split", "labels", "scaling"}:
        parser.error("--split, --labels and --scaling go with --evaluate, the last two also with --export")
    return options


def _network_file(text):
    path = Path(text)
    if path.suffix not in (".tflite", ".onnx") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: takes a file that ends in .tflite or .onnx, in a folder that exists")
    if path.suffix == ".onnx" and not importlib.util.find_spec("tf2onnx"):
        raise argparse.ArgumentTypeError(f"{text}: tf2onnx, which makes ONNX files, is missing: pip install tf2onnx")
    return path


def _fold(text):
    match = FOLD.fullmatch(text)
    if not match or int(match[1]) > int(match[2]) or match[2] == "1":
        raise argparse.ArgumentTypeError(f"{text}: takes K/N with a K from 1 to N, such as 1/4")
    return text
