"""Keep what a training run has reached: the best model, whole at any moment, and what a killed run needs to go on."""

import contextlib
import io
import json
import os
import time
import zipfile

import keras
import numpy as np

from expressions import RESCALE, UserError
from expressions.files import atomic_write, lock_file

# What Keras's callbacks remember from epoch to epoch, and forget when a run starts.
MEMORY = ("best", "wait", "best_epoch", "stopped_epoch", "cooldown_counter")
# what NumPy and zipfile raise for a damaged file
DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


@contextlib.contextmanager
def run_folder(model):
    """The folder beside the file `model` that its run keeps its report and state in, made if need be, for `with`.

    Raises UserError when it can't be made, holds other files, or another run is at work in it."""
    folder = model.with_suffix("")
    strange = folder.is_dir() and any(".partial." not in entry.name for entry in folder.iterdir())
    if strange and not (folder / "distribution.png").exists():
        raise UserError(f"--model {model}: its report would go into {folder}, which holds other files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "run.partial.lock", "ab")
    except OSError as error:
        raise UserError(f"--model {model}: can't write into the folder {folder} ({error.strerror})") from None
    lock_file(lock, f"--model {model}")
    try:
        yield folder
    finally:
        lock.close()
        with contextlib.suppress(OSError):
            os.remove(lock.name)


class BestModel(keras.callbacks.ModelCheckpoint):
    """ModelCheckpoint of the best validation accuracy, whose .h5 file at `path` is replaced at once: a run killed while
    saving leaves the one before."""

    def __init__(self, path):
        self.path, self.partial = path, path.with_suffix(".partial.h5")
        super().__init__(self.partial, monitor="val_accuracy", mode="max", save_best_only=True)

    def on_epoch_end(self, epoch, logs=None):
        self.partial.unlink(missing_ok=True)  # half a file, from a run that was killed while it wrote
        if np.isfinite(logs["loss"]):
            super().on_epoch_end(epoch, logs)
        if self.partial.exists():
            os.replace(self.partial, self.path)


class Stopwatch(keras.callbacks.Callback):
    """Add the seconds that an epoch took, validation included, to its logs; CSVLogger after it writes them down."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = round(time.perf_counter() - self.start, 2)


class WeightAverage(keras.callbacks.Callback):
    """Validate and save, after each epoch, the mean of the weights that the epochs so far ended with: stochastic weight
    averaging (Izmailov et al. 2018, arXiv:1803.05407). Training goes on from those that the latest epoch ended with.

    images: the training images, (n, height, width, channels), in which batch normalisation's means and variances are
    measured anew for those weights, as in that paper; MEASURED of them do.
    """

    MEASURED = 6144

    def __init__(self, images):
        super().__init__()
        picked = np.random.default_rng(0).permutation(len(images))[: self.MEASURED]
        self.images, self.count, self.mean, self.latest = images[picked] * np.float32(RESCALE), 0, None, None

    def on_epoch_begin(self, epoch, logs=None):
        if self.latest:
            self.model.set_weights(self.latest)

    def on_test_begin(self, logs=None):
        """The epoch's training is done, its validation begins."""
        self.latest, self.count = self.model.get_weights(), self.count + 1
        before = self.mean or self.latest
        self.mean = [old + (new - old) / self.count for old, new in zip(before, self.latest, strict=True)]
        self.model.set_weights(self.mean)
        layers = [layer for layer in self.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        momentums = [layer.momentum for layer in layers]
        for number, images in enumerate(np.array_split(self.images, -(-len(self.images) // 128))):
            for layer in layers:
                layer.momentum = number / (number + 1)  # the mean of all batches
            self.model(everywhere(images[:, :, :: 1 - 2 * (number % 2)]), training=True)  # every other one mirrored
        for layer, momentum in zip(layers, momentums, strict=True):
            layer.momentum = momentum


class Backup(keras.callbacks.Callback):
    """Save the state of a run after every epoch, so that a killed run goes on as if nothing had happened.

    The state is every variable of the network (those that drive dropout included) and the optimizer, what the other
    callbacks remember, and the history; the order and warps of an epoch's images follow from seed and epoch alone.
    It comes after the callbacks that do something at an epoch's end, so that it sees what they did. `started` tells
    runs apart: the time of the start.

    path: the .npz file. settings: what a resumed run must have in common with this one (JSON values).
    callbacks: those that remember something. history: the path of CSVLogger's file. images: the training iterator.
    average: the run's WeightAverage, or None. first: whether this process is the one that saves. of_first: gives, in
    all processes that train together, the bytes that a function returns in that one.
    """

    def __init__(self, path, settings, callbacks, history, images, average, first, of_first):
        super().__init__()
        self.first, self.of_first = first, of_first
        self.path, self.settings, self.callbacks, self.average = path, settings, callbacks, average
        self.history, self.images = history, images
        self.memory, self.started = None, time.strftime("%Y-%m-%d %H:%M:%S")

    def start_anew(self, best):
        """Remove what an earlier run left: its history, and the file `best`. Returns (0, False), as `restore` does.

        Raises UserError when that run was stopped before its end, for it can be resumed."""
        if not self.first:
            return 0, False
        if self.path.exists():
            raise UserError(
                f"{self.path.parent}: holds a run that was stopped; go on with --resume, "
                f"or remove {self.path.name} there to start anew"
            )
        for old in (self.history, best):
            old.unlink(missing_ok=True)
        return 0, False

    def restore(self, network, state, values):
        """Put `network` (compiled) back where the run stood, which `read` returned as state and values.

        Returns (epochs done, whether it had ended by itself). Raises UserError when it was run with other settings."""
        changed = [name for name, value in self.settings.items() if state["settings"].get(name) != value]
        if changed:
            before = ", ".join(f"{name} was {state['settings'].get(name)}" for name in changed)
            raise UserError(f"{self.path}: can't resume with other settings ({before}); use the same, or start anew")
        network.optimizer.build(network.trainable_variables)
        if self.average:
            *values, done = values
            count, self.average.count = len(network.weights), int(done)
            self.average.mean, self.average.latest = values[-2 * count : -count], values[-count:]
            values = values[: -2 * count]
        try:
            for variable, value in zip(self.variables(network), values, strict=True):
                variable.assign(value)
        except ValueError:
            raise UserError(f"{self.path}: belongs to a network of other layers; remove it to start anew") from None
        self.memory, self.started = state["memory"], state["started"]
        if self.first:
            self.history.write_text(state["history"], encoding="utf-8")
        return state["epochs"], state["ended"]

    def read(self):
        """The saved state (a dictionary) and the values of the variables, in order.

        Raises UserError when there is none, or it is damaged."""
        if self.first and not self.path.exists():
            raise UserError(f"{self.path}: no run to resume; start one without --resume")
        content = io.BytesIO(self.of_first(self.path.read_bytes))
        try:
            with np.load(content) as file:
                state = json.loads(str(file["state"]))
                return state, [file[f"variable{index}"] for index in range(state["variables"])]
        except DAMAGE:
            raise UserError(f"{self.path}: damaged; remove it and start anew") from None

    @staticmethod
    def variables(network):
        return [*network.variables, *network.optimizer.variables]

    def on_train_begin(self, logs=None):
        # the other callbacks have just forgotten; a resumed run reminds them
        for callback, memory in zip(self.callbacks, self.memory or (), strict=False):
            for name, value in memory.items():
                setattr(callback, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        np.random.seed([self.settings["seed"], epoch])
        self.images.on_epoch_end()  # shuffles

    def on_epoch_end(self, epoch, logs=None):
        if not self.first or not np.isfinite(logs["loss"]):
            return  # the last good state is worth more
        memory = [
            {name: as_number(getattr(callback, name)) for name in MEMORY if hasattr(callback, name)}
            for callback in self.callbacks
        ]
        values = [keras.ops.convert_to_numpy(variable) for variable in self.variables(self.model)]
        if self.average:
            values += [*self.average.mean, *self.average.latest, self.average.count]
        state = {
            "settings": self.settings,
            "started": self.started,
            "epochs": epoch + 1,
            "ended": bool(self.model.stop_training),
            "memory": memory,
            "history": self.history.read_text(encoding="utf-8"),
            "variables": len(values),
        }
        values = {f"variable{index}": value for index, value in enumerate(values)}
        with atomic_write(self.path) as partial:
            np.savez(partial, state=np.array(json.dumps(state)), **values)


def everywhere(images):
    """`images` on each of the devices that the network is on."""
    distribution = keras.distribution.distribution()
    if not distribution:
        return images
    layout = keras.distribution.TensorLayout([None] * images.ndim, distribution.device_mesh)
    return keras.distribution.distribute_tensor(images, layout)


def as_number(value):
    """A number that JSON can write, whatever kind of scalar it is; None stays None."""
    return value if value is None or isinstance(value, int) else float(value)
