"""Train a facial expression classifier: data -> model -> training -> report.

    python train.py                           the data set in data/; without one, faces drawn by the program
    python train.py --data path/to/fer2013    a data set elsewhere: folder per class, or fer2013.csv
    python train.py --show disgust            look at pictures of one class before training starts
    python train.py --resume                  continue a run that was stopped
    python train.py --network classic         the wide network of many tutorials, as a baseline
    python train.py --start A.h5 --model B.h5 fine-tune a trained model, averaging its weights over the epochs
    python train.py --evaluate models/emotion_model.h5 --split validation        measure a trained model again
    python train.py --evaluate other.h5 --labels angry,disgust,... --scaling unit    or one from another program

A run writes models/NAME.h5 and, next to it, the folder models/NAME with curves, confusion matrix and model card.
"""

import argparse
import contextlib
import functools
import hashlib
import logging
import math
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expressions.files import suppress_output

with suppress_output():  # TensorFlow's greeting
    import keras
    from keras import callbacks, layers

from expressions import EMOTIONS, IMAGE_SIZE, RESCALE, UserError, cli
from expressions.classifier import Classifier
from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.model_compiler import complete_network
from expressions.model_file import (
    SCALINGS,
    convert_to_float16,
    read_metadata,
    read_weights,
    write_metadata,
    write_votes_layer,
)
from expressions.training import dataset, distributed, metrics, report, synthetic
from expressions.training.augmentation import Ahead, ImageDataGenerator, OpenCVImageDataGenerator, erase
from expressions.training.callbacks import Backup, BestModel, Stopwatch, WeightAverage, run_folder
from expressions.training.targets import label_outputs, loss_and_accuracy, targets, votes_layer
from expressions.window import show_image

HERE = Path(__file__).resolve().parent
SYNTHETIC_EPOCHS = 8
SYNTHETIC_FACES = {"train": 200, "validation": 50}  # per class
TEACHER_SHARE = 0.5  # of what teachers say in the label that a network learns from
NO_MEMORY = re.compile(r"out of memory|\bOOM\b|RESOURCE_EXHAUSTED")

HOW_TO_GET_DATA = """\
To get FER2013 (free, for research): download and unzip kaggle.com/datasets/msambare/fer2013 into data/,
so that data/train/angry/ and the others exist, and run this again. Until then: training on drawn faces."""


class Recipe(NamedTuple):
    """How to train: rotation in degrees; shift, zoom and erased (images that lose a part) as shares.

    rare_classes: 0 to 1, by how much the model makes up for expecting a rare class less."""

    epochs: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float  # faces are labelled noisily: people agree with FER2013 about two times in three
    rotation: float
    shift: float
    zoom: float
    erased: float
    rare_classes: float


FROM_SCRATCH = Recipe(
    epochs=100, learning_rate=0.1, weight_decay=5e-3, label_smoothing=0.1,
    rotation=15, shift=0.1, zoom=0.15, erased=0.5, rare_classes=0.3,
)  # fmt: skip
# with --start: learns the training images by heart, or nearly, which alone makes a network worse at other images; the
# mean of its weights along the way is better at both
FINE_TUNING = Recipe(
    epochs=40, learning_rate=0.012, weight_decay=2e-3, label_smoothing=0.05,
    rotation=8, shift=0.08, zoom=0.08, erased=0.15, rare_classes=0,
)  # fmt: skip


def compact_network(outputs, activation):
    """The default: 1.17 M parameters, 96 M multiply-adds a face."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *convolution(32, pooled=True),                      # 24 x 24 x 32
            *convolution(64), *convolution(64, pooled=True),    # 12 x 12 x 64
            *convolution(128), *convolution(128, pooled=True),  # 6 x 6 x 128
            *convolution(256), *convolution(256),               # 6 x 6 x 256
            layers.GlobalAveragePooling2D(),                    # 256
            layers.Dropout(0.3),
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="compact",
    )  # fmt: skip


def large_network(outputs, activation):
    """The compact one, a stage deeper: 3.38 M parameters, 116 M multiply-adds a face."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *convolution(32, pooled=True),                      # 24 x 24 x 32
            *convolution(64), *convolution(64, pooled=True),    # 12 x 12 x 64
            *convolution(128), *convolution(128, pooled=True),  # 6 x 6 x 128
            *convolution(256), *convolution(256, pooled=True),  # 3 x 3 x 256
            *convolution(384), *convolution(384),               # 3 x 3 x 384
            layers.GlobalAveragePooling2D(),                    # 384
            layers.Dropout(0.3),
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="large",
    )  # fmt: skip


def classic_network(outputs, activation):
    """The baseline of many tutorials: 4.48 M parameters, 290 M multiply-adds a face."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *convolution(64), layers.MaxPooling2D(), layers.Dropout(0.25),          # 24 x 24 x 64
            *convolution(128, size=5), layers.MaxPooling2D(), layers.Dropout(0.25), # 12 x 12 x 128
            *convolution(512), layers.MaxPooling2D(), layers.Dropout(0.25),         # 6 x 6 x 512
            *convolution(512), layers.MaxPooling2D(), layers.Dropout(0.25),         # 3 x 3 x 512
            layers.Flatten(),                                                       # 4608
            *dense(256), layers.Dropout(0.25),                                      # 256
            *dense(512), layers.Dropout(0.25),                                      # 512
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="classic",
    )  # fmt: skip


NETWORKS = {"compact": compact_network, "large": large_network, "classic": classic_network}


def convolution(filters, size=3, pooled=False):
    """Convolution, batch normalisation, ReLU. pooled: maxima of 2 x 2 come before, so that the rest has less to do."""
    convolved = layers.Conv2D(filters, size, padding="same", use_bias=False, kernel_initializer="he_normal")
    return convolved, *([layers.MaxPooling2D()] if pooled else []), *normalised()


def dense(units):
    """Fully connected layer, batch normalisation, ReLU."""
    return layers.Dense(units, use_bias=False, kernel_initializer="he_normal"), *normalised()


def normalised():
    # its offset makes a bias before it superfluous; Keras's momentum of 0.99 would average over several epochs of a
    # small data set
    return layers.BatchNormalization(momentum=0.9), layers.ReLU()


def main(arguments=None):
    hint = "no space left on the disk; make room, and --resume continues after the last complete epoch"
    return cli.run("train.py", run, arguments, disk_full=hint)


def run(arguments):
    options = parse(arguments)
    try:
        if options.evaluate:
            evaluate(options)
        else:
            with distributed.joined() as process:
                data = load_data(options)
                with run_folder(options.model) if process == 0 else contextlib.nullcontext(Path()) as folder:
                    train(data, options, folder, process)
    except KeyboardInterrupt:  # outside the epochs, whose end `train` sees to
        hint = "" if options.evaluate else " If an epoch was complete, continue with --resume."
        print(f"\nStopped.{hint}", file=sys.stderr)
        raise


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with a folder per class, or fer2013.csv (default: data/, else drawn faces)")
    add("--network", choices=NETWORKS, help="which network to train (default: compact)")
    add("--start", type=Path, metavar="MODEL", help="fine-tune this model, averaging its weights over the epochs")
    epochs = f"{FROM_SCRATCH.epochs}; {SYNTHETIC_EPOCHS} on drawn faces; {FINE_TUNING.epochs} with --start"
    add("--epochs", type=int, help=f"maximum number of epochs (default: {epochs})")
    add("--batch-size", type=int, default=64, help="images per step (default: 64)")
    add("--seed", type=int, default=0, help="for weights, order, augmentation and drawn faces (default: 0)")
    add("--model", type=Path, help="the .h5 to write (default: models/emotion_model.h5, or synthetic_model.h5)")
    add("--show", metavar="EXPRESSION", help="show pictures of this class in a window before training")
    add("--teacher", type=Path, nargs="+", default=[], metavar="MODEL", help="models to learn from, besides the labels")
    add("--resume", action="store_true", help="continue the stopped run whose state is in the model's folder")
    group = parser.add_argument_group("measuring a model instead of training one")
    add = group.add_argument
    add("--evaluate", type=Path, metavar="MODEL", help="the .h5 to measure")
    add("--split", choices=dataset.SPLITS, help="the images to measure it on (default: validation)")
    add("--labels", help="names of its outputs in order, separated by commas; for a file that doesn't contain them")
    add("--scaling", choices=SCALINGS, help="the pixel range it expects: 0 to 1, -1 to 1, 0 to 255, or standardised")
    options = parser.parse_args(arguments)
    if options.network and options.start:
        parser.error("--start has the network of its model; leave --network out")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if options.evaluate and given - {"evaluate", "data", "split", "labels", "scaling"}:
        parser.error("--evaluate takes only --data, --split, --labels and --scaling")
    if not options.evaluate and (options.split or options.labels or options.scaling):
        parser.error("--split, --labels and --scaling go with --evaluate")
    for name, lowest, highest in (("epochs", 1, 10**6), ("batch_size", 2, 10**6), ("seed", 0, 2**32 - 1)):
        value = getattr(options, name)
        if value is not None and not lowest <= value <= highest:
            parser.error(f"--{name.replace('_', '-')} {value}: takes a whole number from {lowest} to {highest}")
    return options


def evaluate(options):
    """Print the figures of a trained model on one split of the data set, with and without copies of training images."""
    given = {"scaling": options.scaling} if options.scaling else {}
    if options.labels:
        given["labels"] = [label.strip() for label in options.labels.split(",")]
    classifier, name = Classifier.load(options.evaluate, **given), options.split or "validation"
    data = dataset.load(options.data or HERE / "data", training=False)
    describe_data(data)
    if name not in data.splits or not len(data.splits[name].images):
        raise UserError(f"--split {name}: {data.source} has {', '.join(data.splits)} only")
    split = data.splits[name]
    evaluations = metrics.evaluate(classifier, split, data.labels)
    print(f"\n{options.evaluate} on {name}, n = {len(split.images)}:\n{metrics.format_tables(evaluations)}")
    if name == "train" or "train" not in data.splits:
        return
    copies = dataset.duplicate_mask(split, data.splits["train"])
    if copies.all() or not copies.any():
        print(f"\n{'All' if copies.any() else 'None'} of these images also stand in train.")
        return
    own = {name: evaluation.subset(~copies) for name, evaluation in evaluations.items()}
    print(f"\nWithout the {copies.sum()} images that also stand in train, n = {(~copies).sum()}:")
    print(metrics.format_tables(own))


def load_data(options):
    """The data set that the options name, described on the screen. Completes the options that depend on it."""
    if options.data or dataset.find_dataset(HERE / "data"):
        data = dataset.load(options.data or HERE / "data")
        name, epochs = "emotion_model.h5", FROM_SCRATCH.epochs
    else:
        print(f"No data set in {HERE / 'data'}.\n{HOW_TO_GET_DATA}\n")
        # each split has a seed of its own, so that no face stands in both
        splits = {
            split: dataset.Split(*synthetic.draw_faces(per_class, seed=[options.seed, index]))
            for index, (split, per_class) in enumerate(SYNTHETIC_FACES.items())
        }
        data = dataset.prepare(dataset.Dataset("faces drawn by the program", EMOTIONS, splits))
        name, epochs = "synthetic_model.h5", SYNTHETIC_EPOCHS  # never over the model that was trained on real faces
    options.model = options.model or HERE / "models" / name
    options.epochs = options.epochs or (FINE_TUNING.epochs if options.start else epochs)
    if options.model.suffix != ".h5" or options.model.stem.endswith(".weights") or options.model.is_dir():
        raise UserError(f"--model {options.model}: takes a file whose name ends in .h5, and not in .weights.h5")
    for name, models in (("--start", [options.start]), ("--teacher", options.teacher)):
        if any(model and model.resolve() == options.model.resolve() for model in models):
            raise UserError(f"{name} {options.model}: is the model to be written; give that another name with --model")
    if options.show and options.show not in data.labels:
        raise UserError(f"--show {options.show}: the data set has no such class; it has {', '.join(data.labels)}")
    describe_data(data)
    return data


def describe_data(data):
    print(f"Data: {escape_unprintable(data.source)}\n{data.counts().to_string()}")
    for note in data.notes:
        print(f"  {escape_unprintable(note)}")


def train(data, options, folder, process):
    """Train on `data`; leave the model at options.model, and its report in `folder`.

    process: the number of this process; those but 0 take part in the training alone."""
    first = process == 0
    keras.utils.set_random_seed(options.seed)
    # Keras reminds at every save that .h5 is an old format; it is the one that was asked for
    logging.getLogger("absl").addFilter(lambda record: "HDF5 file" not in record.getMessage())
    recipe = FINE_TUNING if options.start else FROM_SCRATCH
    augmented, plain = generators(recipe)
    train_images = flow(augmented, data, "train", options.batch_size, options.teacher)
    validation_images = flow(plain, data, "validation", 256)

    best, history = folder / "best.h5", folder / "history.partial.csv"  # until there is a model of this run
    if options.start:
        options.network, weights = starting_weights(options.start, data)
    else:
        options.network, weights = options.network or "compact", None
    settings = {"network": options.network, "batch size": options.batch_size, "seed": options.seed}
    settings |= {"epochs": options.epochs, "data": data.fingerprint()}
    settings |= {"teachers": list(map(sha256, options.teacher)), "start": options.start and sha256(options.start)}
    distributed.agree(settings | {"--resume": options.resume})
    average = WeightAverage(train_images.x) if options.start else None
    remembering = [BestModel(best)]
    if not options.start:  # else validation loss tells nothing: what is learned by heart makes the network too sure
        remembering += [
            callbacks.EarlyStopping(monitor="val_loss", patience=30, verbose=1),
            callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=15, verbose=1),
        ]
    train_share = distributed.shared(train_images, "--batch-size")
    backup = Backup(
        folder / "state.npz", settings, remembering, history, train_share, average, first, distributed.of_first
    )

    # a run that goes on computes as it began
    state = backup.read() if options.resume else None
    if state:
        policy = state[0]["settings"].get("precision")
    else:
        policy = distributed.of_first(lambda: fastest_policy().encode()).decode()
    settings["precision"] = policy
    with distributed.all_devices():
        keras.config.set_dtype_policy(policy)
        network = NETWORKS[options.network](train_images.y.shape[1], activation=None)
        keras.config.set_dtype_policy("float32")
        try:
            if weights:
                network.set_weights(weights)
        except ValueError:
            raise UserError(
                f"--start {options.start}: is not the {options.network} network that it says it is"
            ) from None
        rates = learning_rates(recipe, options)
        optimizer = keras.optimizers.SGD(rates[0], momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        loss, accuracy = loss_and_accuracy(len(data.labels), recipe.label_smoothing)
        network.compile(optimizer, loss, weighted_metrics=[accuracy])
        network.summary()

        epochs_done, ended = backup.restore(network, *state) if state else backup.start_anew(best)
        if first:
            report.plot_distribution(data, folder / "distribution.png")
            report.plot_samples(data, options.show or data.labels[0], folder / "samples.png")
        if options.show and first:
            show_image(folder / "samples.png")
        # relative to the epoch before, so that what ReduceLROnPlateau takes off stays off
        schedule = callbacks.LearningRateScheduler(
            lambda epoch, rate: rate * rates[epoch] / rates[epoch - 1] if epoch else rate
        )
        writing = [callbacks.CSVLogger(history, append=True), remembering[0]] if first else []
        steps = [callbacks.TerminateOnNaN(), Stopwatch(), schedule, *filter(None, [average]), *writing]
        stop = distributed.StopBetweenSteps()
        steps += [*remembering[1:], backup, stop]
        try:
            if not ended and epochs_done < options.epochs:
                # what a step keeps of each layer, tried here: short of memory, TensorFlow may crash or be killed
                images = min(options.batch_size, len(train_images.x)) // distributed.place()[0]
                kept = sum(math.prod(layer.output.shape[1:]) for layer in network.layers)
                np.empty((images, kept), "float32" if policy == "float32" else "float16")
                network.fit(
                    Ahead(train_share),
                    validation_data=Ahead(distributed.shared(validation_images)),
                    epochs=options.epochs,
                    initial_epoch=epochs_done,
                    callbacks=steps,
                    shuffle=False,  # the order of batches; the generator shuffles the images
                    verbose=1 if sys.stdout.isatty() else 2,
                )
            complete = True
        except KeyboardInterrupt:
            complete = False
            if best.exists():
                print("\nStopped. The best epoch becomes the model; --resume continues after the last complete epoch.")
        except OSError:  # whatever words are in the names of its files
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):  # each backend has an error of its own
                raise UserError(f"--batch-size {options.batch_size}: no memory for so many images; give less") from None
            raise
        finally:
            stop.give_back()
    if not first:
        return
    if not best.exists():
        raise UserError(f"{folder}: no epoch has ended well, so there is no model; {options.model} is as it was")
    finish(best, data, options, {"started": backup.started, "precision": policy})
    if complete:
        for unneeded in (backup.path, best):  # in this order: without a state there is no run to resume
            unneeded.unlink(missing_ok=True)


def generators(recipe):
    """The augmenting generator of the training images, and the plain one of the validation images."""
    augmented = OpenCVImageDataGenerator(
        rescale=RESCALE, rotation_range=recipe.rotation, zoom_range=recipe.zoom, horizontal_flip=True,
        width_shift_range=recipe.shift, height_shift_range=recipe.shift,
        preprocessing_function=functools.partial(erase, chance=recipe.erased),
    )  # fmt: skip
    return augmented, ImageDataGenerator(rescale=RESCALE)


def flow(generator, data, split, batch_size, teachers=()):
    """Batches of images, float32 (n, 48, 48, 1) in [0, 1], and their targets; see expressions/training/targets.py.

    What the models that `teachers` names say is mixed into the labels (Hinton et al. 2015, arXiv:1503.02531)."""
    images, classes = data.splits[split].images, len(data.labels)
    learned = targets(data.splits[split], classes)
    if teachers:
        taught = np.mean([ask(teacher, images, data.labels) for teacher in teachers], axis=0)
        learned[:, :classes] += TEACHER_SHARE * (taught - learned[:, :classes])
    return generator.flow(images[..., None], learned, batch_size=batch_size, shuffle=split == "train")


def learning_rates(recipe, options):
    """One for each epoch: up to the recipe's in the first tenth, then in a straight line towards nothing; with --start
    always the same, for the mean of the weights does then what a falling one does else."""
    epochs, climb = options.epochs, max(1, options.epochs // 10)
    shares = [1 if options.start else min((i + 1) / climb, (epochs - i) / (epochs - climb + 1)) for i in range(epochs)]
    return [recipe.learning_rate * share for share in shares]


def starting_weights(model, data):
    """The name and the weights of the network in the file `model`, for a run on `data` that goes on from it."""
    metadata, (weights, votes) = read_metadata(model), read_weights(model)
    name, voted = metadata.get("network"), data.splits["train"].votes is not None
    # list: what a file says may be of any type
    if name not in list(NETWORKS) or tuple(metadata["labels"]) != data.labels or bool(votes) != voted:
        knows = f"knows {', '.join(data.labels)}, in this order, and {'has' if voted else 'has not'} learned from votes"
        raise UserError(f"--start {model}: takes a model of train.py that {knows}")
    if voted:  # the outputs for labels and for votes, side by side as they are learned
        (*weights, kernel, bias), (votes_kernel, votes_bias) = weights, votes
        weights += [np.hstack([kernel, votes_kernel]), np.hstack([bias, votes_bias])]
    return name, weights


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ask(teacher, images, labels):
    """What the model in the file `teacher` says of images, float32 (n, classes)."""
    classifier = Classifier.load(teacher)
    if classifier.labels != labels:
        raise UserError(f"--teacher {teacher}: knows {', '.join(classifier.labels)}, not {', '.join(labels)}")
    print(f"{teacher} looks at {len(images)} images ...", flush=True)
    return classifier.predict_proba(images, flip_tta=True)


def fastest_policy():
    """mixed_bfloat16 where this machine multiplies matrices clearly faster in 16 bits than in 32, else float32."""
    seconds = {}
    for policy, dtype in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        matrix = keras.ops.ones((1024, 1024), dtype)
        for _ in range(4):  # the first one warms up
            began = time.perf_counter()
            keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix))
            seconds[policy] = min(seconds.get(policy, math.inf), time.perf_counter() - began)
    return "mixed_bfloat16" if 1.3 * seconds["mixed_bfloat16"] < seconds["float32"] else "float32"


def finish(best, data, options, run):
    """Measure the saved network as the webcam will use it, write the report, and put the model in its place.

    run: facts about this run, such as when it started. The model that was there is kept under another name, unless the
    same run left it."""
    folder, partial = best.parent, options.model.with_suffix(".partial.h5")
    network = NETWORKS[options.network](len(data.labels), "softmax")
    recipe = FINE_TUNING if options.start else FROM_SCRATCH
    weights = keras.models.load_model(best, compile=False).get_weights()
    images_per_class = np.bincount(data.splits["train"].labels)
    network.set_weights(label_outputs(weights, images_per_class, recipe.rare_classes))
    network.save(partial)
    votes = votes_layer(weights, len(data.labels))
    if votes:
        write_votes_layer(partial, *votes)
    convert_to_float16(partial)
    backend = keras.config.backend()
    facts = {
        "name": options.model.stem, "network": options.network, "parameters": network.count_params(),
        "labels": list(data.labels), "scaling": "unit", "temperature": 1,
        "data": data.source, "fingerprint": data.fingerprint(),
        "seed": options.seed, "batch_size": options.batch_size,
        "start": options.start and options.start.name, "teachers": [path.name for path in options.teacher],
        "machine": f"{platform.system()} {platform.machine()} with {os.cpu_count()} processors",
        "versions": f"Keras {keras.__version__} on {backend}, Python {platform.python_version()}",
        **run,
    }  # fmt: skip
    validation = data.splits["validation"]
    weights, votes = ([np.float32(np.float16(each)) for each in part or ()] for part in (network.get_weights(), votes))
    network.set_weights(weights)  # as the file has them
    classifier = Classifier(complete_network(network, votes), facts)
    views = [classifier.predict_proba(images) for images in (validation.images, validation.images[:, :, ::-1])]
    facts["temperature"] = metrics.fit_temperature(views, validation.labels)
    evaluations = metrics.evaluate(classifier, validation, data.labels)
    facts["metrics"] = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
    write_metadata(partial, facts)
    os.replace(folder / "history.partial.csv", folder / "history.csv")
    report.write_report(folder, facts, data, evaluations, megabytes=partial.stat().st_size / 1e6)
    if options.model.exists() and not is_of_run(options.model, run["started"]):
        before = options.model.with_suffix(".previous.h5")
        with atomic_write(before) as copy:
            shutil.copy2(options.model, copy)
        print(f"\nThe model that was there is now {before}.")
    os.replace(partial, options.model)
    print(f"\nValidation, n = {len(validation.images)}, one run, seed {options.seed}:")
    print(metrics.format_tables(evaluations))
    print(f"\nModel:  {options.model}\nReport: {folder}")


def is_of_run(model, started):
    try:
        return read_metadata(model).get("started") == started
    except UserError:  # not one of ours
        return False


if __name__ == "__main__":
    sys.exit(main())
