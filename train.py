"""Train a facial expression classifier: data -> model -> training -> report.

    python train.py                           the data set in data/; without one, faces drawn by the program
    python train.py --data path/to/fer2013    a data set elsewhere: folder per class, or fer2013.csv
    python train.py --show disgust            look at pictures of one class before training starts
    python train.py --resume                  go on with a run that was stopped
    python train.py --network classic         the wide network of many tutorials, as a baseline

A run leaves models/NAME.h5, and beside it a folder models/NAME with curves, confusion matrix and model card.
"""

import argparse
import datetime
import os
import platform
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter hides the program's own words

import cv2
import keras
import numpy as np
from keras import layers
# tensorflow.keras's generator, at the one address where Keras offers it with any backend
from keras._tf_keras.keras.preprocessing.image import ImageDataGenerator

from expressions import EMOTIONS, IMAGE_SIZE, SCALE, UserError, dataset, report, synthetic
from expressions.checkpoint import Backup, BestModel, Stopwatch
from expressions.classifier import Classifier, write_facts

HERE = Path(__file__).resolve().parent
LEARNING_RATE = 1e-3
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 takes hundreds of steps to forget the start; a small data set has 30 an epoch
LABEL_SMOOTHING = 0.1  # the labels of faces are noisy: people agree with FER2013's about two times in three
SYNTHETIC_FACES = {"train": 300, "validation": 100}  # per class
SYNTHETIC_EPOCHS, EPOCHS = 8, 60

HOW_TO_GET_DATA = """\
Get FER2013 (free, for research): download and unzip kaggle.com/datasets/msambare/fer2013 into data/,
so that data/train/angry/... exists; then run this again. Until then: training on faces drawn by the program."""


def compact_network(classes):
    """1.76 M parameters, 96 M multiply-adds a face: the default."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *convolution(32, 3), layers.MaxPooling2D(), layers.Dropout(0.1),                         # 24 x 24 x 32
            *convolution(64, 3), *convolution(64, 3), layers.MaxPooling2D(), layers.Dropout(0.1),    # 12 x 12 x 64
            *convolution(128, 3), *convolution(128, 3), layers.MaxPooling2D(), layers.Dropout(0.2),  # 6 x 6 x 128
            *convolution(256, 3), *convolution(256, 3), layers.MaxPooling2D(), layers.Dropout(0.2),  # 3 x 3 x 256
            layers.Flatten(),                                                                        # 2304
            *dense(256), layers.Dropout(0.5),                                                        # 256
            layers.Dense(classes, activation="softmax"),
        ],
        name="compact",
    )  # fmt: skip


def classic_network(classes):
    """4.48 M parameters, 290 M multiply-adds a face: the network of many tutorials, as a baseline."""
    return keras.Sequential(
        [
            keras.Input((IMAGE_SIZE, IMAGE_SIZE, 1)),
            *convolution(64, 3), layers.MaxPooling2D(), layers.Dropout(0.25),   # 24 x 24 x 64
            *convolution(128, 5), layers.MaxPooling2D(), layers.Dropout(0.25),  # 12 x 12 x 128
            *convolution(512, 3), layers.MaxPooling2D(), layers.Dropout(0.25),  # 6 x 6 x 512
            *convolution(512, 3), layers.MaxPooling2D(), layers.Dropout(0.25),  # 3 x 3 x 512
            layers.Flatten(),                                                   # 4608
            *dense(256), layers.Dropout(0.25),                                  # 256
            *dense(512), layers.Dropout(0.25),                                  # 512
            layers.Dense(classes, activation="softmax"),
        ],
        name="classic",
    )  # fmt: skip


NETWORKS = {"compact": compact_network, "classic": classic_network}


def convolution(filters, size):
    """Convolution, batch normalisation (whose offset makes a bias superfluous), ReLU."""
    convolved = layers.Conv2D(filters, size, padding="same", use_bias=False, kernel_initializer="he_normal")
    return convolved, layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM), layers.ReLU()


def dense(units):
    """Fully connected layer, batch normalisation, ReLU."""
    connected = layers.Dense(units, use_bias=False, kernel_initializer="he_normal")
    return connected, layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM), layers.ReLU()


class OpenCVImageDataGenerator(ImageDataGenerator):
    """ImageDataGenerator whose rotation, shift, zoom and flip are one OpenCV warp instead of SciPy's: several times
    faster (benchmarks/training.py measures it), and no SciPy needed."""

    def apply_transform(self, x, transform_parameters):
        """Warp one image, float32 (height, width, 1), by the parameters that `get_random_transform` drew."""
        t = transform_parameters
        angle = np.deg2rad(t["theta"])
        flip = -1 if t["flip_horizontal"] else 1
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # from a pixel (x, y) of the result to the pixel of the image: flip and zoom, turn, then shift, about the centre
        linear = rotation @ np.diag([flip * t["zx"], t["zy"]])
        centre = (np.array([x.shape[1], x.shape[0]]) - 1) / 2
        offset = centre + [t["ty"], t["tx"]] - linear @ centre  # Keras calls the shift of rows tx
        matrix = np.column_stack([linear, offset])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(x, matrix, x.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return warped[:, :, None]


def main(arguments=None):
    options = parse(arguments)
    try:
        data, target = load_data(options)
        train(data, target, options)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with a folder per class, or fer2013.csv (default: data/, else drawn faces)")
    add("--network", choices=NETWORKS, default="compact", help="which network to train")
    add("--epochs", type=int, help=f"at most so many (default: {EPOCHS}, or {SYNTHETIC_EPOCHS} on drawn faces)")
    add("--batch-size", type=int, default=64, help="images a step")
    add("--seed", type=int, default=0, help="of everything random: weights, order, augmentation, drawn faces")
    add("--model", type=Path, help="where the model goes (default: models/emotion_model.h5, or synthetic_model.h5)")
    add("--show", metavar="EXPRESSION", help="show pictures of this class in a window before training")
    add("--resume", action="store_true", help="go on with the run that left its state beside the model")
    options = parser.parse_args(arguments)
    for name, lowest in (("epochs", 1), ("batch_size", 2), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            parser.error(f"--{name.replace('_', '-')} {value}: takes a whole number from {lowest}")
    return options


def load_data(options):
    """The data set that the options name, printed, and the path of the model that comes from it."""
    if options.data or dataset.find(HERE / "data"):
        data = dataset.load(options.data or HERE / "data", options.seed)
        target = options.model or HERE / "models" / "emotion_model.h5"
    else:
        print(f"No data set in {HERE / 'data'}.\n{HOW_TO_GET_DATA}\n")
        # the seeds differ, so that no drawn face stands in both splits
        splits = {
            split: dataset.Split(*synthetic.draw_faces(per_class, seed=[options.seed, index]))
            for index, (split, per_class) in enumerate(SYNTHETIC_FACES.items())
        }
        data = dataset.check(dataset.Dataset("faces drawn by the program", EMOTIONS, splits))
        target = options.model or HERE / "models" / "synthetic_model.h5"
        options.epochs = options.epochs or SYNTHETIC_EPOCHS
    if target.suffix != ".h5":
        raise UserError(f"--model {target}: its name has to end in .h5")
    if options.show and options.show not in data.labels:
        raise UserError(f"--show {options.show}: the data set has no such class; it has {', '.join(data.labels)}")
    print(f"Data: {data.source}\n{data.counts().to_string()}")
    for note in data.notes:
        print(f"  {note}")
    return data, target


def train(data, target, options):
    """Train on `data`, and leave the model at `target` with its report in the folder of the same name."""
    keras.utils.set_random_seed(options.seed)
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown = options.show or data.labels[0]
    report.draw_samples(data.splits["train"], data.labels, shown, folder / "samples.png")
    report.draw_distribution(data.counts(), folder / "distribution.png")
    if options.show:
        show(folder / "samples.png")

    augmented = OpenCVImageDataGenerator(
        rescale=SCALE, rotation_range=10, width_shift_range=0.1, height_shift_range=0.1, zoom_range=0.1,
        horizontal_flip=True,
    )  # fmt: skip
    plain = ImageDataGenerator(rescale=SCALE)
    train_images = flow(augmented, data.splits["train"], data.labels, options.batch_size, shuffle=True)
    validation_images = flow(plain, data.splits["validation"], data.labels, 256, shuffle=False)

    network = NETWORKS[options.network](len(data.labels))
    network.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE, weight_decay=0.05, use_ema=True, ema_momentum=0.99),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
        metrics=["accuracy"],
    )
    network.summary()

    best, history = folder / "best.h5", folder / "history.csv"
    settings = {"network": options.network, "batch size": options.batch_size, "seed": options.seed, "data": data.fingerprint()}
    remembering = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),  # validates and saves the average of the latest weights
        BestModel(best, monitor="val_accuracy"),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=12, verbose=1),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=2, min_delta=0.002, min_lr=1e-6, verbose=1),
    ]
    backup = Backup(folder / "state.npz", settings, remembering, history, train_images)
    epochs_done, ended = backup.restore(network) if options.resume else (0, False)
    if not options.resume:
        for old in (best, history, folder / "state.npz"):
            old.unlink(missing_ok=True)
    try:
        if not ended:
            network.fit(
                train_images,
                validation_data=validation_images,
                initial_epoch=epochs_done,
                epochs=options.epochs or EPOCHS,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[
                    keras.callbacks.TerminateOnNaN(),
                    Stopwatch(),
                    *remembering,
                    keras.callbacks.CSVLogger(history, append=True),
                    backup,
                ],
            )
    except KeyboardInterrupt:
        print("\nStopped. The best epoch so far becomes the model; --resume goes on from the last whole epoch.")


def flow(generator, split, labels, batch_size, shuffle):
    """Batches of (images float32 (n, 48, 48, 1) in [0, 1], one-hot labels float32 (n, classes))."""
    one_hot = keras.utils.to_categorical(split.labels, len(labels))
    return generator.flow(split.images[..., None], one_hot, batch_size=batch_size, shuffle=shuffle)


if __name__ == "__main__":
    sys.exit(main())
