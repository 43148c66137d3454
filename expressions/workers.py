"""The same work on many things: by processes of this machine, or with Ray by those of many machines.

Either takes a task, a function and its arguments, and gives a Future, so that one loop keeps both busy. A task whose
worker dies is given to another one, until ATTEMPTS have died of it.
"""

import contextlib
import functools
import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from expressions import UserError, printable

ATTEMPTS = 3
AHEAD = 2  # tasks that are handed out for each worker, so that none waits for its next one
RECOUNTED = 10  # seconds after which a cluster is asked again how many workers it has


class Workers(NamedTuple):
    """submit: hands out a task, submit(function, *arguments), and returns a concurrent.futures.Future. count: tells how
    many workers there are. died: whether an exception of such a Future tells that its worker died."""

    submit: Callable
    count: Callable
    died: Callable


@contextlib.contextmanager
def processes(count):
    """So many processes of this machine, as Workers for `with`."""
    from pebble import ProcessExpired, ProcessPool  # where one worker of a standard pool dies, all its tasks are lost

    pool = ProcessPool(count, initializer=ignore_ctrl_c, context=multiprocessing.get_context("spawn"))
    try:
        yield Workers(
            lambda function, *arguments: pool.submit(function, None, *arguments),
            lambda: count,
            lambda error: isinstance(error, ProcessExpired),
        )
    finally:
        pool.stop()
        pool.join()


def ignore_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to them too; who hands out the work ends it


@contextlib.contextmanager
def cluster(address, folder):
    """The processors of a Ray cluster, each a worker, as Workers for `with`.

    address: of the cluster, such as 192.168.0.9:6379 or auto, or "" for one of this machine alone for this `with`.
    folder: of the program, which all its machines get a copy of. Raises UserError where Ray or the cluster is missing.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise UserError("--ray: Ray is not installed; run: pip install ray, or use --workers instead") from None
    try:
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": str(folder), "excludes": [".git", "/docs", "/tests"]},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no cluster there ({last_line(error)})") from None
    counted = [0, 0.0]

    def count():
        if not counted[0] or time.monotonic() - counted[1] > RECOUNTED:  # machines come and go
            counted[:] = max(1, int(ray.cluster_resources().get("CPU", 1))), time.monotonic()
        return counted[0]

    task = functools.cache(ray.remote(max_retries=0))  # `work` tries again, whatever the workers
    try:
        yield Workers(
            lambda function, *arguments: task(function).remote(*arguments).future(),
            count,
            lambda error: isinstance(error, RayError) and not isinstance(error, RayTaskError),
        )
    finally:
        ray.shutdown()


def work(workers, tasks, urgent):
    """Have tasks done, AHEAD at a time for each worker; yields each with its result, in whatever order they end.

    tasks: an iterable of tuples, a function and its arguments. urgent: a deque of tasks that go before those; the
    caller may add to it. The result of a task that ATTEMPTS workers died of is the last exception.
    Raises UserError for what a task itself raises: it is the workers that are unfit then, and all tasks would fail."""
    tasks, running, done, deaths = iter(tasks), {}, SimpleQueue(), Counter()
    while True:
        while len(running) < AHEAD * workers.count():
            task = urgent.popleft() if urgent else next(tasks, None)
            if task is None:
                break
            future = workers.submit(*task)
            running[future] = task
            future.add_done_callback(done.put)
        if not running:
            return
        future = done.get()
        task = running.pop(future)
        try:
            result = future.result()
        except Exception as error:
            if not workers.died(error):
                raise UserError(f"the workers can't work: {last_line(error)}") from None
            deaths[task] += 1
            if deaths[task] < ATTEMPTS:
                urgent.append(task)
                continue
            result = error
        del deaths[task]
        yield task, result


def last_line(error):
    """What an exception says at its end, after what Ray tells of where it came from."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[-1])
