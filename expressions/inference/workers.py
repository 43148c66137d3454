"""The same work on many things: by processes of this machine, or with Ray by those of many machines.

Either takes a task, a function and its arguments, and gives a Future, so that one loop keeps both busy. A task whose
worker dies is given to another one, until ATTEMPTS have died of it.
"""

import contextlib
import functools
import logging
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import Empty, SimpleQueue
from typing import NamedTuple

from expressions import UserError
from expressions.cli import escape_unprintable

try:
    import resource
except ImportError:  # Windows
    resource = None

ATTEMPTS = 5  # machines may be taken away again and again
AHEAD = 2  # tasks that a cluster has for each worker, so that none waits for its next one
ANSWERS = 10  # seconds in which a cluster has to answer
RECOUNTED = 10  # seconds after which a cluster is asked again how many workers it has


class Workers(NamedTuple):
    """submit: hands out a task, submit(function, *arguments), and returns a concurrent.futures.Future. most: tells how
    many tasks may be out at a time. died: the exceptions of such a Future that tell that its worker died."""

    submit: Callable
    most: Callable
    died: tuple


@contextlib.contextmanager
def processes(count):
    """So many processes of this machine, as Workers for `with`."""

    def hire():
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with)

    if resource:  # a pool has six files open, and a system may allow 256
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 10 * count + 256 if most == resource.RLIM_INFINITY else min(10 * count + 256, most)
        if allowed != resource.RLIM_INFINITY and allowed < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    free = [hire() for _ in range(count)]  # a pool each, for when a process dies all tasks of its pool are lost

    def submit(function, *arguments):
        pool, heeded = free.pop(), signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a process begins with it
        try:
            future = pool.submit(function, *arguments)
        except BrokenProcessPool:  # it died with nothing to do
            pool = hire()
            future = pool.submit(function, *arguments)
        finally:
            signal.signal(signal.SIGINT, heeded)
        future.add_done_callback(lambda _: free.append(pool))
        return future

    try:
        yield Workers(submit, lambda: count, (BrokenProcessPool,))
    finally:
        for process in multiprocessing.active_children():
            process.kill()


def end_with():
    """What a process begins with: it ends when the program does, however that ends, and not at a Ctrl-C of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def cluster(address, folder):
    """The processors of a Ray cluster, each a worker, as Workers for `with`.

    address: of the cluster, such as 192.168.0.9:6379 or auto, or "" for one of this machine alone for this `with`.
    folder: of the program, which all its machines get a copy of. Raises UserError where Ray or the cluster is missing.
    """
    try:
        import ray
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
    except ImportError:
        raise UserError("--ray: Ray is not installed; run: pip install ray, or use --workers instead") from None
    place = re.fullmatch("(?:ray://)?(.+):([0-9]{1,5})", address)
    try:
        if place:  # Ray itself would try for minutes
            socket.create_connection((place[1].strip("[]"), int(place[2])), ANSWERS).close()
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": str(folder), "excludes": [".git", "/docs", "/tests"]},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no cluster there ({last_line(error)}); start one with: ray start") from None
    counted = [0, 0.0]

    def count():
        if not counted[0] or time.monotonic() - counted[1] > RECOUNTED:  # machines come and go
            counted[:] = max(1, int(ray.cluster_resources().get("CPU", 1))), time.monotonic()
        return counted[0]

    task = functools.cache(ray.remote(max_retries=0))  # `work` tries again, whatever the workers
    try:
        yield Workers(
            lambda function, *arguments: task(function).remote(*arguments).future(),
            lambda: AHEAD * count(),
            (WorkerCrashedError, NodeDiedError, OutOfMemoryError, LocalRayletDiedError),
        )
    finally:
        ray.shutdown()


def work(workers, tasks, urgent):
    """Have tasks done by Workers; yields each with its result, in whatever order they end.

    tasks: an iterable of tuples, a function and its arguments. urgent: a deque of tasks that go before those; the
    caller may add to it. The result of a task that ATTEMPTS workers died of is the last exception.
    Raises UserError for what a task itself raises: it is the workers that are unfit then, and all tasks would fail."""
    tasks, running, done, deaths = iter(tasks), {}, SimpleQueue(), Counter()
    while True:
        while len(running) < workers.most():
            task = urgent.popleft() if urgent else next(tasks, None)
            if task is None:
                break
            future = workers.submit(*task)
            running[future] = task
            future.add_done_callback(done.put)
        if not running:
            return
        while True:
            try:
                future = done.get(timeout=0.1)  # not longer: Windows heeds Ctrl-C between waits only
                break
            except Empty:
                pass
        task = running.pop(future)
        try:
            result = future.result()
        except Exception as error:
            if not isinstance(error, workers.died):
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
    return escape_unprintable((str(error).strip() or type(error).__name__).splitlines()[-1])
