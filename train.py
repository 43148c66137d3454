"""Train a facial expression classifier: data -> augmentation -> model -> callbacks -> fit -> report.

    python train.py                           the data set in data/; without one, faces drawn by the program
    python train.py --data path/to/fer2013    a data set elsewhere: folder per class, or fer2013.csv
    python train.py --start A.h5 --model B.h5 fine-tune a trained model, averaging its weights over the epochs
    python train.py --evaluate models/emotion_model.h5    measure a trained model again
    python train.py --export face.tflite --model A.h5     take a trained network elsewhere; or face.onnx

A run writes models/NAME.h5 and, next to it, the folder models/NAME with curves, confusion matrix and model card.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from expressions import IMAGE_SIZE, RESCALE, cli
from expressions.files import suppress_output

cli.begin(__name__)
from expressions.training import command_line

command_line.begin(__name__, __doc__)  # answers --help and mistakes at once, for Keras takes seconds to load
with suppress_output():  # TensorFlow's greeting
    import keras
    from keras import Sequential, callbacks, layers

from expressions.training import dataset, distributed, exporter, teachers, trainer
from expressions.training.augmentation import Batches, OpenCVImageDataGenerator
from expressions.training.callbacks import AtomicModelCheckpoint, EpochTimer, StochasticWeightAveraging, TrainingState
from expressions.training.evaluation import describe_data, evaluate, write_model
from expressions.training.networks import classic_network, conv_bn_relu, large_network
from expressions.training.targets import loss_and_accuracy

DATA, MODELS = (Path(__file__).resolve().parent / name for name in ("data", "models"))


class Recipe(NamedTuple):
    """How to train, by default from scratch."""

    epochs: int = 100  # 0.8 points of accuracy more than with 60
    batch_size: int = 64  # images per step
    learning_rate: float = 0.1  # at its peak, after a tenth of the epochs; from there it falls to zero in a line
    weight_decay: float = 5e-3  # in Keras apart from the momentum, so ten times what it would be in PyTorch
    label_smoothing: float = 0.1  # labels of faces are noisy: people agree with FER2013 about two times in three
    rotation: float = 15  # degrees; heads tilt
    shift: float = 0.1  # share of the image; detectors don't centre a face
    zoom: float = 0.2  # share of the image; Haar's boxes of these faces are mostly 0.8 to 1.13 times as wide
    erasing: float = 0.5  # probability of an image to lose a part, so that no part of the face alone decides
    photometric: float = 0.7  # probability of an image to be changed as poor cameras and light do; less in short runs
    logit_adjustment: float = 0.3  # for rare classes, 0 to 1: recall of disgust from 34 to 50 %, accuracy as before


FROM_SCRATCH = Recipe()
DRAWN_FACES = Recipe(epochs=5, batch_size=32)  # so few images need small steps
# With --start. To learn images by heart makes a network worse at others, but the mean of its weights along the way is
# better at both. So the rate stays high, and images are changed less.
FINE_TUNING = Recipe(
    epochs=40, learning_rate=0.012, weight_decay=2e-3, label_smoothing=0.05,
    rotation=8, shift=0.08, zoom=0.12, erasing=0.15, photometric=0.5, logit_adjustment=0,
)  # fmt: skip


def compact_network(outputs: int, activation: str | None) -> Sequential:
    """The default: 1.17 M parameters, 96 M multiply-adds a face."""
    return Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),             # 48 x 48 x 1
            *conv_bn_relu(32, pooled=True),                       # 24 x 24 x 32
            *conv_bn_relu(64), *conv_bn_relu(64, pooled=True),    # 12 x 12 x 64
            *conv_bn_relu(128), *conv_bn_relu(128, pooled=True),  # 6 x 6 x 128
            *conv_bn_relu(256), *conv_bn_relu(256),               # 6 x 6 x 256
            layers.GlobalAveragePooling2D(), layers.Dropout(0.3), # 256
            layers.Dense(outputs, activation, dtype="float32"),
        ],
        name="compact",
    )  # fmt: skip


NETWORKS = {"compact": compact_network, "large": large_network, "classic": classic_network}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    hint = "no space left on the disk; make room, and --resume continues after the last complete epoch"
    return cli.run("train.py", run, arguments, disk_full=hint)


def run(arguments: list[str] | None) -> None:
    """Do what the command line says."""
    options = command_line.parse(arguments, __doc__)
    try:
        if options.export:
            return exporter.export(options, MODELS / "emotion_model.h5")
        if options.evaluate:
            return evaluate(options, options.data or DATA)
        with distributed.process_group():
            data, recipe = load_data(options)
            if options.soft_labels:
                return teachers.write_soft_labels(options.soft_labels, options.teacher, data)
            with trainer.run_directory(options.model) as directory:
                train(data, recipe, options, directory)
    except KeyboardInterrupt:  # outside the epochs, whose end `fit` sees to
        print("\nStopped.", "" if options.evaluate else "After a complete epoch, --resume continues.", file=sys.stderr)
        raise


def load_data(options: Namespace) -> tuple[dataset.Dataset, Recipe]:
    """The data set that the options name, described on the screen, and its recipe; completes the options by them."""
    if options.data or dataset.find_dataset(DATA):
        data, name, recipe = dataset.load(options.data or DATA), "emotion_model.h5", FROM_SCRATCH
    else:  # never over the model that was trained on real faces
        data, name, recipe = trainer.draw_data(DATA, options.seed), "synthetic_model.h5", DRAWN_FACES
    recipe = FINE_TUNING if options.start else recipe
    options.model, options.epochs = options.model or MODELS / name, options.epochs or recipe.epochs
    options.batch_size = options.batch_size or recipe.batch_size
    trainer.check_options(options, data.labels)
    describe_data(data := teachers.leave_out(data, options.fold))
    return data, recipe


def make_batches(data: dataset.Dataset, recipe: Recipe, options: Namespace) -> tuple[Batches, Batches]:
    """Batches to train on and to validate on: images, float32 (n, 48, 48, 1) from 0 to 1, targets, and weights."""
    augmented = OpenCVImageDataGenerator(
        rescale=RESCALE, rotation_range=recipe.rotation, zoom_range=recipe.zoom, horizontal_flip=True,
        width_shift_range=recipe.shift, height_shift_range=recipe.shift,
        erasing_probability=recipe.erasing, photometric_probability=min(recipe.photometric, options.epochs / 100),
    )  # fmt: skip
    images, targets = trainer.images_and_targets(data, "train", options.teacher)
    batches = augmented.flow(images, targets, options.batch_size, shuffle=True, seed=options.seed)
    return batches, OpenCVImageDataGenerator(rescale=RESCALE).flow(*trainer.validation_data(data), 256, shuffle=False)


def make_network(options: Namespace, recipe: Recipe, classes: int, outputs: int, weights: list | None) -> Sequential:
    """The compiled network. It gives logits: a column for each class, then those for votes, if there are any."""
    keras.config.set_dtype_policy(options.precision)
    network = NETWORKS[options.network](outputs, activation=None)
    keras.config.set_dtype_policy("float32")
    if weights:
        network.set_weights(weights)
    optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss, accuracy = loss_and_accuracy(classes, recipe.label_smoothing)
    network.compile(optimizer, loss, weighted_metrics=[accuracy])
    network.summary()
    return network


def train(data: dataset.Dataset, recipe: Recipe, options: Namespace, directory: Path) -> None:
    """Train on `data`; leave the model at options.model, and its report in `directory`."""
    options.network, weights, options.start_words = trainer.starting_point(options, data, NETWORKS)
    batches, validation = make_batches(data, recipe, options)

    # callbacks
    checkpoint, average = AtomicModelCheckpoint(directory / "best.partial.keras"), None
    plateau = [
        callbacks.EarlyStopping(monitor="val_loss", patience=30, verbose=1),
        callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=15, verbose=1),
    ]
    if options.start:  # validation loss tells nothing then: what is learned by heart makes the network too sure
        plateau, average = [], StochasticWeightAveraging(batches.images)
    state = TrainingState(directory, trainer.run_settings(options, data), [checkpoint, *plateau], average)
    saved = state.read() if options.resume else state.start(checkpoint.path)
    options.precision = state.settings["precision"] = trainer.choose_precision(options.precision, saved)
    schedule = trainer.learning_rate_schedule(recipe.learning_rate, options)
    shuffle = callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch))
    steps = [callbacks.TerminateOnNaN(), EpochTimer(), schedule, shuffle, *filter(None, [average])]
    steps += [callbacks.CSVLogger(state.history, append=True), checkpoint] if distributed.is_primary() else []

    # model
    with distributed.all_devices():
        network = make_network(options, recipe, len(data.labels), batches.targets.shape[1], weights)
        epochs_done = state.restore(network, *saved) if saved else 0
        trainer.draw_images(data, options, directory)

        # training loop
        with distributed.GracefulStop() as stop, trainer.out_of_memory_as_user_error(options.batch_size):
            network.fit(
                batches,
                validation_data=validation,
                epochs=options.epochs,
                initial_epoch=epochs_done,
                callbacks=[*steps, *plateau, state, stop],
                shuffle=False,  # the order of batches, which shuffle the images themselves
                verbose=1 if sys.stdout.isatty() else 2,
            )

    # report
    if stop.stopped and checkpoint.path.exists():
        print("\nStopped. The best epoch becomes the model; --resume continues after the last complete epoch.")
    if distributed.is_primary():
        write_model(checkpoint.path, NETWORKS[options.network], data, options, recipe.logit_adjustment, state.started)
        if not stop.stopped:
            state.path.unlink(missing_ok=True)  # before the best epoch: without a state there is no run to resume
            checkpoint.path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
