"""What train.py's steps are made of: targets, the weights to start from, learning rates, precision."""

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from expressions import EMOTIONS, UserError
from expressions.classifier import file_digest
from expressions.files import lock_file, suppress_output
from expressions.model_file import read_metadata, read_weights
from expressions.training import dataset, distributed, report, synthetic
from expressions.training.corruptions import corrupt_in_turn
from expressions.training.readers import Dataset, Split
from expressions.training.targets import make_targets, mix_soft_labels
from expressions.training.teachers import soft_labels
from expressions.window import show_image

TEACHER_SHARE = 0.5  # of what teachers say in the targets of a network that learns from them
OUT_OF_MEMORY = re.compile(r"out of memory|\bOOM\b|RESOURCE_EXHAUSTED")
CPUINFO = Path("/proc/cpuinfo")
DRAWN_FACES = {"train": 200, "validation": 50}  # per class
HOW_TO_GET_DATA = """\
To get FER2013 (free, for research): download kaggle.com/datasets/msambare/fer2013, unzip it into data/fer2013/,
so that data/fer2013/train/angry/ and the others exist, and run this again. Until then: training on drawn faces."""


def check_options(options: argparse.Namespace, labels: tuple[str, ...]) -> None:
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


@contextlib.contextmanager
def run_directory(model: Path) -> Iterator[Path]:
    """Make and lock the directory beside the model file that its run keeps report and state in."""
    directory = model.with_suffix("")
    if not distributed.is_primary():
        yield directory
        return
    strange = directory.is_dir() and any(".partial." not in entry.name for entry in directory.iterdir())
    if strange and not (directory / "distribution.png").exists():
        raise UserError(f"--model {model}: its report would go into {directory}, which holds other files")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "run.partial.lock", "ab")
    except OSError as error:
        raise UserError(f"--model {model}: can't write into the folder {directory} ({error.strerror})") from None
    lock_file(lock, f"--model {model}")
    try:
        yield directory
    finally:
        lock.close()
        with contextlib.suppress(OSError):
            os.remove(lock.name)


def draw_data(missing: Path, seed: int) -> Dataset:
    """A data set of drawn faces. Tells where a real one was `missing`, and how to get it."""
    print(f"No data set in {missing}.\n{HOW_TO_GET_DATA}\n")
    splits = {  # each has a seed of its own, so that no face is in both
        name: Split(*synthetic.draw_faces(per_class, seed=[seed, index]))
        for index, (name, per_class) in enumerate(DRAWN_FACES.items())
    }
    return dataset.prepare(Dataset("faces drawn by the program", EMOTIONS, splits))


def images_and_targets(data: Dataset, name: str, teachers: list[Path] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split, uint8 (n, 48, 48, 1), and what to learn of them; see expressions/training/targets.py.

    What the `teachers` say is mixed into the labels and votes (Hinton et al. 2015, arXiv:1503.02531).
    """
    split, classes = data.splits[name], len(data.labels)
    targets = make_targets(split.labels, split.votes, classes)
    if teachers:
        targets = mix_soft_labels(targets, soft_labels(teachers, split.images, data.labels), TEACHER_SHARE, classes)
    return split.images[..., None], targets


def validation_data(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The validation images twice, as `images_and_targets`: as they are, and each corrupted in one of seven ways.

    So the validation accuracy, by which an epoch is chosen, is the mean of plain and corrupted accuracy.
    """
    images, targets = images_and_targets(data, "validation")
    return np.concatenate([images, corrupt_in_turn(images[..., 0])[..., None]]), np.concatenate([targets] * 2)


def starting_point(
    options: argparse.Namespace, data: Dataset, networks: dict[str, Callable]
) -> tuple[str, list[np.ndarray], str | None]:
    """What training begins with: the name of the network, its weights, and in words the model --start they are of.

    The last layer keeps the outputs for the classes of the data, and for votes if it has some. Those that the model
    hasn't begin with random weights. Without --start there are no weights and no words.
    All random numbers of Keras follow from options.seed from here on.
    """
    with suppress_output():  # where TensorFlow greets on JAX
        keras.utils.set_random_seed(options.seed)
    if not options.start:
        return options.network or "compact", [], None
    print(f"Reading {options.start} ...", flush=True)
    model, metadata, (weights, votes) = options.start, read_metadata(options.start), read_weights(options.start)
    name, labels = metadata.get("network"), metadata["labels"]
    if name not in list(networks):  # list: what a file says may be of any type
        raise UserError(f"--start {model}: takes a model of train.py, with the network {' or '.join(networks)}")
    known, wanted = _outputs(labels, votes), _outputs(data.labels, data.splits["train"].votes is not None)
    *others, new_kernel, new_bias = networks[name](len(wanted), None).get_weights()
    counts = [len(labels), len(labels) + 1] if votes else [len(labels)]
    expected = [array.shape for array in others] + [shape for n in counts for shape in ((len(new_kernel), n), (n,))]
    if [array.shape for array in (*weights, *(votes or ()))] != expected:
        raise UserError(f"--start {model}: is not the {name} network that it says it is")
    *trunk, kernel, bias = weights
    if votes:
        kernel, bias = np.hstack([kernel, votes[0]]), np.hstack([bias, votes[1]])
    for column, output in enumerate(wanted):
        if output in known:
            new_kernel[:, column], new_bias[column] = kernel[:, known.index(output)], bias[known.index(output)]
    words = model.name
    for change, outputs, others in (("with new", wanted, known), ("without its", known, wanted)):
        names = dict.fromkeys(output[0] for output in outputs if output not in others)
        words += f", {change} outputs for {', '.join(names)}" if names else ""
    print(f"Starting from {words}", flush=True)
    return name, [*trunk, new_kernel, new_bias], words


def _outputs(labels, voted):
    """Names of a network's outputs, tuples: those for labels and those for votes, side by side as they are learned."""
    return [*((label,) for label in labels), *(("votes", label) for label in (*labels, None) if voted)]


def run_settings(options: argparse.Namespace, data: Dataset) -> dict[str, object]:
    """What a resumed run, and all processes of a run, must have in common; JSON values by name."""
    settings = {"network": options.network, "batch size": options.batch_size, "seed": options.seed}
    settings |= {"epochs": options.epochs, "data": data.fingerprint()}
    settings["teachers"] = [file_digest(model) for model in options.teacher]
    settings["start"] = options.start and file_digest(options.start)
    distributed.check_same_settings(settings | {"--resume": options.resume, "--precision": options.precision})
    return settings


def choose_precision(option: str, saved: tuple[dict, list] | None = None) -> str:
    """Keras's dtype policy for the option --precision; for all processes that of the primary one.

    auto: that of the run that is resumed, see `TrainingState.read`. In a new run bfloat16 on a GPU or TPU, and where
    the processor multiplies bfloat16 itself, as far as Linux tells; else float32.
    """
    if option == "auto" and saved:
        return saved[0]["settings"].get("precision")
    flags = CPUINFO.read_text().split() if CPUINFO.exists() else ()
    accelerated = "cpu" not in str(keras.ops.zeros(1).device).lower() or {"avx512_bf16", "amx_bf16"} & set(flags)
    bfloat16 = option == "bfloat16" or option == "auto" and accelerated
    return distributed.broadcast(lambda: b"mixed_bfloat16" if bfloat16 else b"float32").decode()


def learning_rate_schedule(peak: float, options: argparse.Namespace) -> keras.callbacks.Callback:
    """Set the learning rate of every epoch: up to `peak` in the first tenth of them, then in a line towards zero.

    With --start it stays at `peak`: averaging the weights does then what a falling rate does else.
    """
    warmup_epochs = max(1, options.epochs // 10)
    warmup = peak * np.arange(1, warmup_epochs) / warmup_epochs
    rates = np.concatenate([warmup, np.linspace(peak, 0, options.epochs - warmup_epochs + 1, endpoint=False)])
    if options.start:
        rates[:] = peak
    # relative to the epoch before, so that what ReduceLROnPlateau takes off stays off
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: float(rate * (rates[epoch] / rates[epoch - 1]) if epoch else rates[0])
    )


def draw_images(data: Dataset, options: argparse.Namespace, directory: Path) -> None:
    """Draw the data set into `directory`, and show a part of it if the options say so; in the primary process."""
    if distributed.is_primary():
        report.plot_distribution(data, directory / "distribution.png")
        report.plot_samples(data, options.show, directory / "samples.png")
        if options.show:
            show_image(directory / "samples.png")


@contextlib.contextmanager
def out_of_memory_as_user_error(batch_size: int) -> Iterator[None]:
    """Raise UserError where a backend has no memory for a step."""
    try:
        yield
    except OSError:  # whatever words are in the names of its files
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):  # each backend has an error of its own
            raise UserError(f"--batch-size {batch_size}: no memory for so many images; give less") from None
        raise
