"""Time from a cold start to an accuracy on validation: train.py against the classic network trained as tutorials do it.

    python benchmarks/time_to_accuracy.py --data data/fer2013                      both, one after the other
    python benchmarks/time_to_accuracy.py --data data/fer2013 --only classic --minutes 120

Each runs as a process of its own, which is stopped when an epoch reaches the target or its time is over. The classic
recipe: the classic network in single precision, the labels alone, mirrored images by Keras's own generator, Adam at
5e-4, a tenth of that (1e-5 at least) whenever validation loss has not fallen for two epochs, the end when it has not
for six. Ours: train.py with so many epochs that its last ones reach the target, by the accuracy that it writes into
its history, that of the labels' own outputs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
EPOCHS = 20  # of train.py: its learning rate falls with them, so fewer are sooner at their best, and more reach higher


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="FER2013")
    parser.add_argument("--target", type=float, default=0.66, help="top-1 on validation, single view (default: 0.66)")
    parser.add_argument("--minutes", type=float, default=120, help="at most, for each (default: 120)")
    parser.add_argument("--only", choices=["ours", "classic"], help="run one of the two")
    parser.add_argument("--history", type=Path, help=argparse.SUPPRESS)  # where the classic process writes
    options = parser.parse_args()
    if not 0 < options.target < 1 or not options.data.exists():
        parser.error("--data takes an existing data set, --target a share such as 0.66")
    if options.history:
        return train_classic(options.data, options.history)

    minutes = {}
    with tempfile.TemporaryDirectory() as folder:
        model, history = Path(folder) / "ours.h5", Path(folder) / "classic.csv"
        runs = {
            "ours": (
                Path(folder) / "ours" / "history.partial.csv",
                [ROOT / "train.py", "--data", options.data, "--epochs", EPOCHS, "--model", model],
            ),
            "classic": (history, [__file__, "--data", options.data, "--history", history]),
        }
        for name, (history, command) in runs.items():
            if options.only in (None, name):
                minutes[name] = measure(name, history, command, options)
    if None not in minutes.values() and len(minutes) == 2:
        print(f"classic / ours: {minutes['classic'] / minutes['ours']:.1f}")


def measure(name, history, command, options):
    """Run a training until an epoch reaches the target. Print what it did; returns the minutes, None if it didn't."""
    began, seen, best, seconds = time.monotonic(), 0, 0.0, float("nan")
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=words, stderr=subprocess.STDOUT)
        reached, ended = None, False
        try:
            while not (reached or ended):
                ended = process.poll() is not None or time.monotonic() - began > options.minutes * 60
                time.sleep(0.5)
                lines = history.read_text().splitlines() if history.exists() else []
                if len(lines) - 1 > seen:
                    table, seen = pd.read_csv(history), len(lines) - 1
                    minutes = (time.monotonic() - began) / 60
                    last, best = table["val_accuracy"].iloc[-1], table["val_accuracy"].max()
                    seconds = table["seconds"].median()
                    print(f"{name}: epoch {seen}, {minutes:.1f} minutes: {last:.2%}, best {best:.2%}", flush=True)
                    reached = minutes if last >= options.target else None
        finally:
            process.kill()
            if process.wait() > 0:  # it ended by itself, with an error
                words.seek(0)
                sys.exit(f"{name} failed:\n{words.read()[-2000:]}")
    outcome = f"after {reached:.1f} minutes" if reached else f"not reached, best {best:.2%}"
    print(f"{name}: {options.target:.0%} {outcome}; {seconds:.0f} seconds an epoch (median of {seen})")
    return reached


def train_classic(data, history):
    import train
    from expressions import RESCALE
    from expressions.training import dataset
    from expressions.training.augmentation import ImageDataGenerator
    from expressions.training.callbacks import EpochTimer
    from train import callbacks, keras  # set up as in the program

    keras.utils.set_random_seed(0)
    faces = dataset.load(data)
    faces = faces._replace(splits={name: split._replace(votes=None) for name, split in faces.splits.items()})
    generators = {"train": ImageDataGenerator(rescale=RESCALE, horizontal_flip=True)}
    generators["validation"] = ImageDataGenerator(rescale=RESCALE)
    flows = {
        name: generator.flow(*train.trainer.images_and_targets(faces, name), batch_size=64, shuffle=name == "train")
        for name, generator in generators.items()
    }
    network = train.classic_network(len(faces.labels), "softmax")
    network.compile(keras.optimizers.Adam(5e-4), "categorical_crossentropy", metrics=["accuracy"])
    plateau = callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.1, patience=2, min_lr=1e-5)
    ending = callbacks.EarlyStopping(monitor="val_loss", patience=6)
    steps = [plateau, ending, EpochTimer(), callbacks.CSVLogger(history)]
    network.fit(flows["train"], validation_data=flows["validation"], epochs=1000, callbacks=steps, verbose=0)


if __name__ == "__main__":
    main()
