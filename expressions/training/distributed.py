"""Train one network on several devices, of one machine or of several, by Keras's DataParallel on JAX.

Each device holds the whole network and computes on its part of every batch. The gradients are averaged in every step,
so the networks stay alike. A process has all devices of its machine; processes find one another by three environment
variables, which are Keras's own.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np

from expressions import UserError, cli
from expressions.files import suppress_output

PREFIX = "KERAS_DISTRIBUTION_"
VARIABLES = ADDRESSES, WORLD_SIZE, RANK = f"{PREFIX}JOB_ADDRESSES", f"{PREFIX}NUM_PROCESSES", f"{PREFIX}PROCESS_ID"
JOIN_TIMEOUT = 120  # seconds in which all processes have to come
HEARTBEAT_TIMEOUT = 20  # seconds without a sign of life, after which a process counts as lost
CONNECTION_ERROR = re.compile("Gloo|NCCL|UNAVAILABLE|Connection (closed|refused|reset)")


class ProcessInfo(NamedTuple):
    """A process among those that train together. coordinator: host:port of rank 0, None for a process of its own."""

    world_size: int = 1
    rank: int = 0
    coordinator: str | None = None


def process_info() -> ProcessInfo:
    """What the environment says about this process. Raises UserError where it contradicts itself."""
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not given or given.get(WORLD_SIZE) == "1":
        return ProcessInfo()
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise UserError(f"{next(iter(given))} is set, but not {' and '.join(missing)}; set all three, or none")
    addresses, size, rank = given[ADDRESSES].split(","), given[WORLD_SIZE], given[RANK]
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"{WORLD_SIZE} {size}: takes how many processes train together, such as 2")
    if not rank.isdecimal() or int(rank) >= int(size):
        raise UserError(f"{RANK} {rank}: takes this process's own number, from 0 to {int(size) - 1}")
    if not re.fullmatch(r"\S+:\d{1,5}", addresses[0]) or len(addresses) not in (1, int(size)):
        raise UserError(f"{ADDRESSES} {given[ADDRESSES]}: takes the first process's host:port, or those of all {size}")
    if keras.config.backend() != "jax":
        raise UserError(f"{WORLD_SIZE} {size}: several processes train on JAX alone; set KERAS_BACKEND=jax")
    return ProcessInfo(int(size), int(rank), addresses[0])


def is_primary() -> bool:
    """Whether this process writes the files: the one of rank 0, or the only one."""
    return process_info().rank == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that train together for the `with` block; does nothing where this one is the only one.

    All but the primary process print nothing but errors. When one of them is lost, the others raise UserError; when one
    has fallen silent, JAX ends them after HEARTBEAT_TIMEOUT.
    """
    info = process_info()
    if info.world_size == 1:
        yield
        return
    from jax.experimental.multihost_utils import sync_global_devices

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if info.rank else sys.stdout):
        try:
            _connect(info)
            yield
            sync_global_devices("all are done")
        except BaseException as error:
            atexit.register(os._exit, 2)  # before JAX, which would wait for the other processes
            if isinstance(error, (RuntimeError, ValueError)) and CONNECTION_ERROR.search(str(error)):  # JAX raises both
                hint = "see what it says there, and go on after the last whole epoch with --resume in all of them"
                lost = f"one of the {info.world_size} processes has ended or can't be reached; {hint}"
                raise UserError(lost) from None
            raise


def _connect(info):
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    where, hint = f"{ADDRESSES} {info.coordinator}", "start all of them, and see that they reach that port"
    late = f"{where}: {info.world_size} processes have not come together there within {JOIN_TIMEOUT} seconds; {hint}"
    timer = threading.Timer(JOIN_TIMEOUT, _exit, [late])  # at JAX's own timeout it aborts with a stack trace
    timer.daemon = True
    timer.start()
    try:
        timeouts = {"initialization_timeout": 2 * JOIN_TIMEOUT, "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
        jax.distributed.initialize(info.coordinator, info.world_size, info.rank, **timeouts)
    except RuntimeError as error:  # the port is taken, or two processes have one rank
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    finally:
        timer.cancel()
    here, total = jax.local_device_count(), jax.device_count()
    if total != info.world_size * here:
        raise UserError(f"{here} of {total} devices are here; give all processes the same number")
    with suppress_output():
        sync_global_devices("all are there")


def _exit(message):
    cli.print_error("train.py", message)
    os._exit(2)


def device_count() -> int:
    """How many devices train together, over all processes."""
    return keras.distribution.get_device_count() if keras.config.backend() == "jax" else 1


def all_devices() -> contextlib.AbstractContextManager:
    """For `with`: the networks made in the block are on all devices, and learn on all of them."""
    if device_count() == 1:
        return contextlib.nullcontext()
    return keras.distribution.DataParallel(auto_shard_dataset=False).scope()


@contextlib.contextmanager
def this_process_alone() -> Iterator[None]:
    """For `with`: Keras makes no variables on all devices, for which it would wait for the other processes."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def replicate(images: np.ndarray) -> np.ndarray:
    """A copy of `images` on each of the devices that the network is on."""
    distribution = keras.distribution.distribution()
    if not distribution:
        return images
    layout = keras.distribution.TensorLayout([None] * images.ndim, distribution.device_mesh)
    return keras.distribution.distribute_tensor(images, layout)


def broadcast(content: Callable[[], bytes]) -> bytes:
    """The bytes that `content()` returns in the primary process, in every process; the others don't call it."""
    if process_info().world_size == 1:
        return content()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    mine = np.frombuffer(content() if is_primary() else b"", np.uint8)
    size = int(broadcast_one_to_all(np.array(len(mine))))
    return broadcast_one_to_all(mine if is_primary() else np.zeros(size, np.uint8)).tobytes()


def check_same_settings(settings: dict[str, object]) -> None:
    """Raise UserError where `settings`, JSON values by name, are not those of the primary process."""
    primary = json.loads(broadcast(lambda: json.dumps(settings).encode()))
    other = [f"{name} is {primary[name]} there" for name, value in settings.items() if primary[name] != value]
    if other:
        raise UserError(f"this process differs from process 0 ({', '.join(other)}); give all the same options and data")


def check_batch_size(batch_size: int) -> None:
    """Raise UserError where a batch can't be divided evenly among the devices."""
    devices = device_count()
    if batch_size % devices:
        nearest = max(1, round(batch_size / devices)) * devices
        raise UserError(f"--batch-size {batch_size}: can't be divided among {devices} devices; give {nearest}")


class GracefulStop(keras.callbacks.Callback):
    """Stop training between two steps when a signal such as Ctrl-C asks for it; in all processes after the same step.

    It is a callback, and a context manager around `fit`, which tells afterwards whether training was `stopped`. Raised
    amid a step, KeyboardInterrupt may get lost in Keras, which reads a step's losses in a `try` with a bare `except`;
    with JAX, that is where the program is most of the time. A process that trains alone stops at once when asked again.
    """

    STEPS = 8  # between two times that processes ask one another

    def __init__(self):
        super().__init__()
        self.requested, self.stopped, self.handlers = False, False, {}
        self.together = process_info().world_size > 1

    def __enter__(self) -> "GracefulStop":
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals() if cli.in_main_thread()}
        interrupts = (signal.default_int_handler, cli.interrupt_once)
        self.handlers = {number: handler for number, handler in handlers.items() if handler in interrupts}
        for number in self.handlers:
            signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type | None, *_: object) -> bool:
        self._restore_handlers()
        self.stopped = kind is KeyboardInterrupt
        return self.stopped

    def _restore_handlers(self):
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self._request:  # else it is ignored by now
                signal.signal(number, handler)

    def _request(self, number, _):
        self.requested = True
        if self.handlers[number] == cli.interrupt_once:
            signal.signal(number, signal.SIG_IGN)
        if not self.together:
            self._restore_handlers()
            with contextlib.suppress(OSError, RuntimeError):  # its terminal closed, or amid another print
                print("\nStopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Raise KeyboardInterrupt if a process was asked to stop."""
        requested = self.requested
        if self.together:
            from jax.experimental.multihost_utils import process_allgather

            requested = batch % self.STEPS == 0 and process_allgather(np.array(requested)).any()
        if requested:
            raise KeyboardInterrupt

    on_test_batch_begin = on_train_batch_begin
