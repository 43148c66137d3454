"""The command line of train.py."""

import argparse
from pathlib import Path

from expressions import UserError, cli
from expressions.model_file import FOLD, SCALINGS
from expressions.training import distributed
from expressions.training.readers import SPLITS


def parse(arguments: list[str] | None, description: str, networks: list[str], epochs: str) -> argparse.Namespace:
    """Read the command line. epochs: the defaults of --epochs, in words."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with a folder per class, or fer2013.csv (default: data/, else drawn faces)")
    add("--network", choices=networks, help="which network to train (default: compact)")
    add("--start", type=Path, metavar="MODEL", help="fine-tune this model, averaging its weights over the epochs")
    add("--epochs", type=cli.int_range(1, 10**6), help=f"maximum number of epochs (default: {epochs})")
    add("--batch-size", type=cli.int_range(2, 10**6), default=64, help="images per step (default: 64)")
    add("--seed", type=cli.int_range(0, 2**32 - 1), default=0, help="of all random numbers (default: 0)")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto",
        help="to compute in (default: auto, which is bfloat16 where the processor has it)")  # fmt: skip
    add("--model", type=Path, help="the .h5 to write (default: models/emotion_model.h5, or synthetic_model.h5)")
    add("--show", metavar="EXPRESSION", help="show images of this class in a window before training")
    add("--teacher", type=Path, nargs="+", default=[], metavar="FILE",
        help="models, or soft labels (.npz), to learn from besides the labels")  # fmt: skip
    add("--soft-labels", type=Path, metavar="FILE", help="write what the teachers say into this .npz, and don't train")
    add("--fold", type=_fold, metavar="K/N", help="leave out the K-th of N parts of the training images")
    add("--resume", action="store_true", help="continue the stopped run whose state is in the model's folder")
    add = parser.add_argument_group("measuring a model instead of training one").add_argument
    add("--evaluate", type=Path, metavar="MODEL", help="the .h5 or .keras to measure")
    add("--split", choices=SPLITS, help="the images to measure it on (default: validation)")
    add("--labels", help="names of its outputs in order, separated by commas; for a file that doesn't contain them")
    add("--scaling", choices=SCALINGS, help="the pixel range it expects: 0 to 1, -1 to 1, 0 to 255, or standardised")
    options = parser.parse_args(arguments)
    if options.soft_labels and not options.teacher:
        parser.error("--soft-labels takes --teacher, the models that it asks")
    if options.network and options.start:
        parser.error("--start has the network of its model; leave --network out")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if options.evaluate and given - {"evaluate", "data", "split", "labels", "scaling"}:
        parser.error("--evaluate takes only --data, --split, --labels and --scaling")
    if not options.evaluate and given & {"split", "labels", "scaling"}:
        parser.error("--split, --labels and --scaling go with --evaluate")
    return options


def _fold(text):
    match = FOLD.fullmatch(text)
    if not match or int(match[1]) > int(match[2]) or match[2] == "1":
        raise argparse.ArgumentTypeError(f"{text}: takes K/N with a K from 1 to N, such as 1/4")
    return text


def check(options: argparse.Namespace, labels: tuple[str, ...]) -> None:
    """Raise UserError where the completed options don't fit one another, or a data set with these labels."""
    distributed.check_batch_size(options.batch_size)
    model = options.model
    if model.suffix != ".h5" or model.stem.endswith(".weights") or model.is_dir():
        raise UserError(f"--model {model}: takes a file whose name ends in .h5, and not in .weights.h5")
    for name, models in (("--start", filter(None, [options.start])), ("--teacher", options.teacher)):
        if any(other.resolve() == model.resolve() for other in models):
            raise UserError(f"{name} {model}: is the model to be written; give that another name with --model")
    if soft := options.soft_labels:
        if soft.suffix != ".npz" or not soft.parent.is_dir():
            raise UserError(f"--soft-labels {soft}: takes a file whose name ends in .npz, in a folder that exists")
        if any(other.resolve() == soft.resolve() for other in options.teacher):
            raise UserError(f"--soft-labels {soft}: is a teacher as well; give the file to be written another name")
    if options.show and options.show not in labels:
        raise UserError(f"--show {options.show}: the data set has no such class; it has {', '.join(labels)}")
