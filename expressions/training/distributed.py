"""Train one network on several devices, of one machine or of several, by Keras's DataParallel on JAX.

Each device has the whole network and computes on its part of every batch; what they learn from it is averaged in every
step, so that they stay alike. A process has all devices of its machine; processes find one another by three variables
of the environment, which are Keras's own.
"""

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading

import keras
import numpy as np

from expressions import UserError
from expressions.files import suppress_output

ADDRESSES, COUNT, NUMBER = (f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))
PATIENCE = 120  # seconds in which all processes have to come
SILENCE = 20  # seconds without a sign of life, after which a process counts as lost
GONE = re.compile("Gloo|NCCL|UNAVAILABLE|Connection (closed|refused|reset)")  # of a lost process


def place():
    """How many processes train together, the number of this one, and the address of the first, as the environment says;
    (1, 0, None) where it says nothing. Raises UserError where it contradicts itself."""
    given = {name: os.environ[name] for name in (ADDRESSES, COUNT, NUMBER) if os.environ.get(name)}
    if not given or given.get(COUNT) == "1":
        return 1, 0, None
    missing = [name for name in (ADDRESSES, COUNT, NUMBER) if name not in given]
    if missing:
        raise UserError(f"{next(iter(given))} is set, but not {' and '.join(missing)}; set all three, or none")
    addresses, count, number = given[ADDRESSES].split(","), given[COUNT], given[NUMBER]
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"{COUNT} {count}: takes how many processes train together, such as 2")
    if not number.isdecimal() or int(number) >= int(count):
        raise UserError(f"{NUMBER} {number}: takes this process's own number, from 0 to {int(count) - 1}")
    if not re.fullmatch(r"\S+:\d{1,5}", addresses[0]) or len(addresses) not in (1, int(count)):
        raise UserError(f"{ADDRESSES} {given[ADDRESSES]}: takes the first process's host:port, or those of all {count}")
    if keras.config.backend() != "jax":
        raise UserError(f"{COUNT} {count}: several processes train on JAX alone; set KERAS_BACKEND=jax")
    return int(count), int(number), addresses[0]


@contextlib.contextmanager
def joined():
    """The number of this process among those that train together, for `with`: 0 where it is the only one.

    The others print nothing but errors. When a process ends before the others, they end with one line and status 2.
    Raises UserError when the environment contradicts itself."""
    count, number, address = place()
    if count == 1:
        yield 0
        return
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    with one_line() as lost, contextlib.ExitStack() as silence:
        lost.line = f"{ADDRESSES} {address}: {count} processes have not come together there within {PATIENCE} seconds"
        lost.line += "; start all of them, and see that they reach that port"
        if number:
            silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
        try:
            try:
                jax.distributed.initialize(
                    address, count, number, initialization_timeout=PATIENCE, heartbeat_timeout_seconds=SILENCE
                )
            except RuntimeError as error:  # the port is taken, or two processes have one number
                raise UserError(f"{ADDRESSES} {address}: {str(error).splitlines()[0]}") from None
            if jax.device_count() != count * jax.local_device_count():
                here, all_there_are = jax.local_device_count(), jax.device_count()
                raise UserError(f"{here} of {all_there_are} devices are here; give all processes the same number")
            with suppress_output():
                sync_global_devices("all are there")
            lost.line = f"one of the {count} processes has ended or can't be reached; see what it says there, "
            lost.line += "and go on after the last whole epoch with --resume in all of them"
            yield number
            sync_global_devices("all are done")
        except BaseException as error:
            if isinstance(error, (RuntimeError, ValueError)) and GONE.search(str(error)):  # JAX raises both
                lost()
            atexit.register(os._exit, 2)  # before JAX, which would wait for the other processes
            raise


@contextlib.contextmanager
def one_line():
    """A function for `with` that ends the program with status 2 and one line, its attribute `line`.

    JAX aborts a program that has lost another one, with pages of words: in the block they are left out, and the same
    line said instead."""
    stderr, python, once = os.dup(2), sys.stderr, threading.Lock()

    def lost(_signal=None):
        once.acquire()
        os.write(stderr, f"train.py: {lost.line}\n".encode(errors="backslashreplace"))
        os._exit(2)

    # Python's own handlers wait until its thread goes on, which is after the abortion; C's is called at once
    lost.called_by_c = ctypes.CFUNCTYPE(None, ctypes.c_int)(lost)
    set_handler = ctypes.pythonapi.PyOS_setsig
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(lost.called_by_c, ctypes.c_void_p))
    with open(os.devnull, "w") as nowhere, open(os.dup(stderr), "w", buffering=1, errors="backslashreplace") as words:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = words
        try:
            yield lost
        finally:
            sys.stderr = python
            os.dup2(stderr, 2)
            set_handler(signal.SIGABRT, before)


def devices():
    """How many devices train together."""
    return keras.distribution.get_device_count() if keras.config.backend() == "jax" else 1


def all_devices():
    """For `with`: the networks made in it are on all devices, and learn on all of them."""
    return (
        keras.distribution.DataParallel(auto_shard_dataset=False).scope() if devices() > 1 else contextlib.nullcontext()
    )


def of_first(content):
    """The bytes that `content()` returns in the first process, in every process; the others don't call it."""
    count, number, _ = place()
    if count == 1:
        return content()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    mine = np.frombuffer(content() if number == 0 else b"", np.uint8)
    size = int(broadcast_one_to_all(np.array(len(mine))))
    return broadcast_one_to_all(mine if number == 0 else np.zeros(size, np.uint8)).tobytes()


def agree(settings):
    """Raise UserError where `settings`, a dictionary of JSON values, are not those of the first process."""
    first = json.loads(of_first(lambda: json.dumps(settings).encode()))
    other = [f"{name} is {first[name]} there" for name, value in settings.items() if first[name] != value]
    if other:
        raise UserError(f"this process differs from process 0 ({', '.join(other)}); give all the same options and data")


class Share(keras.utils.PyDataset):
    """What this process has of every batch of `images`, a Keras iterator over arrays, and how much each image weighs.

    Those of all processes, one after the other, are the batch. All devices have as many: where a batch can't be divided
    evenly, images of it stand there again, at a weight of 0. Augmentation follows from NumPy's random numbers at the
    start of the epoch, and from the number of the process."""

    def __init__(self, images):
        super().__init__()
        self.images, (self.processes, self.process, _) = images, place()
        self.devices = devices()
        self.rows = sum(self.padded(len(batch)) for batch in map(self.batch, range(len(self))))

    def __len__(self):
        return len(self.images)

    def batch(self, index):
        """The numbers of the images in a batch of all processes, in order."""
        if self.images.index_array is None:
            self.images.on_epoch_end()
        return self.images.index_array[index * self.images.batch_size :][: self.images.batch_size]

    def padded(self, count):
        return -(-count // self.devices) * self.devices

    def __getitem__(self, index):
        batch = self.batch(index)
        rows = self.padded(len(batch))
        # Keras takes the mean over rows, of which some don't count: in training over those of a batch, by which the
        # network learns; in validation over those of the epoch, which is what is told
        weight = rows / len(batch) if self.images.shuffle else self.rows / self.images.n
        weights = np.where(np.arange(rows) < len(batch), np.float32(weight), 0)
        mine = slice(self.process * rows // self.processes, (self.process + 1) * rows // self.processes)
        return *self.images._get_batches_of_transformed_samples(np.resize(batch, rows)[mine]), weights[mine]

    def on_epoch_end(self):
        self.images.on_epoch_end()  # shuffles, in the same way everywhere
        if self.process:
            np.random.seed([np.random.randint(2**31), self.process])


def shared(images, option=None):
    """`images`, a Keras iterator, as it is on one device; else this process's Share of it."""
    count = devices()
    if count == 1:
        return images
    if option and images.batch_size % count:
        nearest = max(1, round(images.batch_size / count)) * count
        raise UserError(f"{option} {images.batch_size}: can't be divided among {count} devices; give {nearest}")
    return Share(images)


class StopBetweenSteps(keras.callbacks.Callback):
    """Ctrl-C, or what else asks a process to end, stops training between two steps; in all processes after the same.

    Raised amid a step, KeyboardInterrupt may get lost in Keras, which reads a step's losses in a `try` with a bare
    `except`; with JAX, that is where the program is most of the time. One process alone, asked again, stops at once."""

    STEPS = 8  # between two times that processes ask one another

    def __init__(self):
        super().__init__()
        self.asked, self.before, self.together = False, {}, place()[0] > 1

    def on_train_begin(self, logs=None):
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == signal.default_int_handler:
                self.before[number] = signal.signal(number, self.ask)

    def ask(self, *_):
        self.asked = True
        if not self.together:
            self.give_back()
            with contextlib.suppress(OSError, RuntimeError):  # its terminal closed, or amid another print
                print("\nStopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    def on_train_batch_begin(self, batch, logs=None):
        asked = self.asked
        if self.together:
            from jax.experimental.multihost_utils import process_allgather

            asked = batch % self.STEPS == 0 and process_allgather(np.array(asked)).any()
        if asked:
            raise KeyboardInterrupt

    on_test_batch_begin = on_train_batch_begin

    def give_back(self):
        """Have signals do what they did before training."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
