"""Keep what a training run has reached: the best model, whole at any moment, and what a killed run needs to go on."""

import io
import json
import os
import time
from pathlib import Path

import keras
import numpy as np

from expressions import RESCALE, UserError
from expressions.files import atomic_write
from expressions.training import distributed

# what Keras's callbacks remember from epoch to epoch, and forget when a run starts
MEMORY = {"best", "best_loss", "wait", "best_epoch", "stopped_epoch", "cooldown_counter"}


class AtomicModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """ModelCheckpoint of the best validation accuracy; a run killed while it saves leaves the model of before.

    Among equally accurate epochs, and few images make many, it keeps the one with the lowest validation loss.
    `path` ends in .keras, which Keras makes in memory: HDF5 crashes where the disk fills up while it writes an .h5.
    """

    def __init__(self, path: Path):
        self.path, self.partial = path, path.with_stem(f"{path.stem}.new")
        name = str(self.partial).replace("{", "{{").replace("}", "}}")  # Keras takes it for a pattern
        super().__init__(name, monitor="val_accuracy", mode="max", save_best_only=True)
        self.best_loss = np.inf

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save the network if it is the best so far, then replace the file at `path` in one step."""
        self.partial.unlink(missing_ok=True)  # half a file, from a run that was killed while it wrote
        if np.isfinite(logs["loss"]):
            if logs["val_accuracy"] == self.best and logs["val_loss"] < self.best_loss:
                self.best = -np.inf  # so that Keras saves it
            with distributed.this_process_alone():  # only the primary process saves; Keras makes an optimizer for it
                super().on_epoch_end(epoch, logs)
        if self.partial.exists():
            os.replace(self.partial, self.path)
            self.best_loss = logs["val_loss"]


class EpochTimer(keras.callbacks.Callback):
    """Add the seconds that an epoch took, validation included, to its logs, for the CSVLogger after it."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stop the clock."""
        logs["seconds"] = round(time.perf_counter() - self.start, 2)


class StochasticWeightAveraging(keras.callbacks.Callback):
    """Validate and save, after each epoch, the mean of the weights that the epochs so far ended with.

    As in the paper (Izmailov et al. 2018, arXiv:1803.05407), the means and variances of batch normalisation are
    measured anew for the averaged weights, in MEASURED of the training images, uint8 (n, height, width, 1).
    """

    MEASURED = 6144

    def __init__(self, images: np.ndarray):
        super().__init__()
        picked = np.random.default_rng(0).permutation(len(images))[: self.MEASURED]
        self.images, self.count, self.mean, self.latest = images[picked] * np.float32(RESCALE), 0, None, None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Go on from the weights that the latest epoch ended with."""
        if self.latest:
            self.model.set_weights(self.latest)

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Put the mean in the place of the weights of this epoch, whose training is done."""
        self.latest, self.count = self.model.get_weights(), self.count + 1
        before = self.mean or self.latest
        self.mean = [old + (new - old) / self.count for old, new in zip(before, self.latest, strict=True)]
        self.model.set_weights(self.mean)
        layers = [layer for layer in self.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        momentums = [layer.momentum for layer in layers]
        for number, images in enumerate(np.array_split(self.images, -(-len(self.images) // 128))):
            for layer in layers:
                layer.momentum = number / (number + 1)  # the mean of all batches
            mirrored = images[:, :, :: 1 - 2 * (number % 2)]  # every other batch
            self.model(distributed.replicate(mirrored), training=True)
        for layer, momentum in zip(layers, momentums, strict=True):
            layer.momentum = momentum


class TrainingState(keras.callbacks.Callback):
    """Save the state of a run after every epoch, so that a killed run goes on as if nothing had happened.

    The state is every variable of the network (those that drive dropout included) and the optimizer, what the other
    callbacks remember, and the history. The images of an epoch follow from seed and epoch alone, see `Batches`. Put it
    behind the callbacks that do something at an epoch's end, so that it sees what they did. `started`, the time of the
    start, tells runs apart. `settings`, JSON values by name, are what a resumed run must have in common with this one.
    """

    def __init__(self, directory: Path, settings: dict, callbacks: list, average: StochasticWeightAveraging | None):
        super().__init__()
        self.path, self.history = directory / "state.npz", directory / "history.partial.csv"
        self.settings, self.callbacks, self.average = settings, callbacks, average
        self.memory, self.started = None, time.strftime("%Y-%m-%d %H:%M:%S")

    def start(self, best: Path) -> None:
        """Remove what an earlier run left, but raise UserError if it was stopped, so that it can be resumed."""
        if distributed.is_primary():
            if self.path.exists():
                anew = f"or remove {self.path.name} there to start anew"
                raise UserError(f"{self.path.parent}: holds a run that was stopped; go on with --resume, {anew}")
            self.history.unlink(missing_ok=True)
            best.unlink(missing_ok=True)

    def read(self) -> tuple[dict, list[np.ndarray]]:
        """The saved state and the values of the variables, in order. Raises UserError if missing or damaged."""
        if distributed.is_primary() and not self.path.exists():
            raise UserError(f"{self.path}: no run to resume; start one without --resume")
        content = io.BytesIO(distributed.broadcast(self.path.read_bytes))
        try:
            with np.load(content) as file:
                state = json.loads(str(file["state"]))
                return state, [file[f"variable{index}"] for index in range(state["variables"])]
        except Exception:  # whatever NumPy and zipfile make of a damaged file
            raise UserError(f"{self.path}: damaged; remove it and start anew") from None

    def restore(self, network: keras.Model, state: dict, values: list[np.ndarray]) -> int:
        """Put a compiled network back where the run stood when it saved what `read` returned.

        Returns how many epochs are done; all of them when the run had ended by itself. Raises UserError when it had
        other settings.
        """
        changed = [name for name, value in self.settings.items() if state["settings"].get(name) != value]
        if changed:
            before = ", ".join(f"{name} was {state['settings'].get(name)}" for name in changed)
            raise UserError(f"{self.path}: can't resume with other settings ({before}); use the same, or start anew")
        network.optimizer.build(network.trainable_variables)
        if self.average:
            *values, done = values
            count, self.average.count = len(network.weights), int(done)
            values, self.average.latest = values[:-count], values[-count:]
        try:
            variables = [*network.variables, *network.optimizer.variables]
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        except ValueError:
            raise UserError(f"{self.path}: belongs to a network of other layers; remove it to start anew") from None
        if self.average:
            self.average.mean = network.get_weights()
        self.memory, self.started = state["memory"], state["started"]
        if distributed.is_primary():
            self.history.write_text(state["history"], encoding="utf-8")
        return self.settings["epochs"] if state["ended"] else state["epochs"]

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Give the other callbacks, which have just forgotten everything, their memory back."""
        for callback, memory in zip(self.callbacks, self.memory or (), strict=False):
            for name in MEMORY & memory.keys():
                setattr(callback, name, memory[name])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save the state."""
        if not distributed.is_primary() or not np.isfinite(logs["loss"]):
            return  # the last good state is worth more
        memory = [
            {name: getattr(callback, name) for name in MEMORY if hasattr(callback, name)} for callback in self.callbacks
        ]
        variables = [*self.model.variables, *self.model.optimizer.variables]
        values = [keras.ops.convert_to_numpy(variable) for variable in variables]
        if self.average:
            values += [*self.average.latest, self.average.count]  # the mean is in the network
        state = {"settings": self.settings, "started": self.started, "memory": memory, "variables": len(values)}
        state |= {"epochs": epoch + 1, "ended": bool(self.model.stop_training)}
        state["history"] = self.history.read_text(encoding="utf-8")
        values = {f"variable{index}": value for index, value in enumerate(values)}
        with atomic_write(self.path) as partial:  # float: JSON doesn't know NumPy's scalars
            np.savez(partial, state=np.array(json.dumps(state, default=float)), **values)
