"""Run one function on many tasks: by processes of this machine, or by the machines of a Ray cluster.

Both hand out a task as a Future, so one loop keeps either of them busy. A task whose worker crashes goes to another
worker, until ATTEMPTS workers have crashed on it.
"""

import contextlib
import functools
import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from expressions import UserError, cli

ATTEMPTS = 5  # machines of a cluster may be taken away again and again
TASKS_PER_WORKER = 2  # that a cluster has at a time, so that no worker waits for its next one
RAY_VERSION = (2, 52)  # the first in which RAY_AUTH_MODE=token is heeded; others let everybody in
CONNECT_SECONDS = 10  # in which a cluster has to answer
RECOUNT_SECONDS = 10  # after which a cluster is asked again how many workers it has
FILES_PER_WORKER, OTHER_FILES = 8, 64  # that the program has open


class Workers(NamedTuple):
    """What `run_tasks` needs: the two kinds of workers differ in this."""

    submit: Callable[[Callable, Hashable], Future]  # hands out function(task)
    capacity: Callable[[], int]  # how many tasks may be out at a time
    crashes: tuple[type[Exception], ...]  # what a Future raises when its worker crashed


@contextlib.contextmanager
def processes(count: int) -> Iterator[Workers]:
    """Start `count` processes on this machine; fewer, and a note, where the limit of open files allows no more."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else -1  # none on Windows
    allowed = max(1, (limit - OTHER_FILES) // FILES_PER_WORKER)
    if limit > 0 and count > allowed:
        print(f"--workers {count}: only {allowed} are started, as open files are limited to {limit} (see ulimit -n)")
        count = allowed
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as pools:

        def new_pool():  # one for each process: when it crashes, its pool loses all tasks
            return pools.enter_context(ProcessPoolExecutor(1, context, _exit_with_parent))

        def submit(function, task):  # a process that starts now inherits that Ctrl-C is ignored
            pool = free.pop()
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if cli.in_main_thread() else None
            try:
                future = pool.submit(function, task)
            except BrokenProcessPool:  # it crashed while it was idle
                pool = new_pool()
                future = pool.submit(function, task)
            finally:
                if handler is not None:  # SIG_DFL is 0
                    signal.signal(signal.SIGINT, handler)
            future.add_done_callback(lambda _: free.append(pool))
            return future

        free = [new_pool() for _ in range(count)]
        try:
            yield Workers(submit, lambda: count, (BrokenProcessPool,))
        finally:
            for process in multiprocessing.active_children():
                process.kill()


def _exit_with_parent():
    """Make a worker process end when its parent does, however that ends, and ignore Ctrl-C itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def cluster(address: str, folder: Path) -> Iterator[Workers]:
    """Use the processors of a Ray cluster, each a worker. Raises UserError without Ray or the cluster.

    The address is such as 192.168.0.9:6379 or auto; "" starts a cluster on this machine for the `with` block, which no
    other machine and no other user can reach. All machines get a copy of the program's folder.
    """
    if not address:  # 0: Ray listens on loopback alone, on Linux as well
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()  # Ray's own lies in a file that others may read
    try:
        import ray
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
    except ImportError:
        raise UserError("--ray: Ray is not installed; run: pip install ray, or use --workers instead") from None
    if tuple(map(int, re.findall("[0-9]+", ray.__version__)[:2])) < RAY_VERSION:
        raise UserError(f"--ray: Ray {ray.__version__} can't keep strangers out; run: pip install --upgrade ray")
    host = re.fullmatch("(?:ray://)?(.+):([0-9]{1,5})", address)
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host[1].strip("[]"), int(host[2])), CONNECT_SECONDS).close()
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": str(folder), "excludes": [".git", "/docs", "/tests"]},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no cluster there ({_last_line(error)}); start one with: ray start") from None

    @functools.lru_cache(1)
    def processors(period):  # counted once in a period: machines come and go
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    remote = functools.cache(ray.remote(max_retries=0))  # run_tasks itself tries again
    try:
        yield Workers(
            lambda function, task: remote(function).remote(task).future(),
            lambda: TASKS_PER_WORKER * processors(time.monotonic() // RECOUNT_SECONDS),
            (WorkerCrashedError, NodeDiedError, OutOfMemoryError, LocalRayletDiedError),
        )
    finally:
        ray.shutdown()


def run_tasks(workers: Workers, function: Callable, tasks: Iterable, priority_tasks: deque) -> Iterator[tuple]:
    """Yield each task with what `function(task)` returned, in the order in which they end.

    Tasks are hashable. `priority_tasks` go before the others; the caller may add to them. None is returned for a task
    on which ATTEMPTS workers crashed. Raises UserError for what `function` raises: then the workers are unfit, and all
    tasks would fail.
    """
    tasks, running, done, crash_counts = iter(tasks), {}, SimpleQueue(), Counter()
    while True:
        while len(running) < workers.capacity():
            task = priority_tasks.popleft() if priority_tasks else next(tasks, None)
            if task is None:
                break
            future = workers.submit(function, task)
            running[future] = task
            future.add_done_callback(done.put)
        if not running:
            return
        future = None
        while not future:
            with contextlib.suppress(Empty):
                future = done.get(timeout=0.1)  # not longer: Windows sees a Ctrl-C only between waits
        task, result = running.pop(future), None
        try:
            result = future.result()
        except workers.crashes:
            crash_counts[task] += 1
            if crash_counts[task] < ATTEMPTS:
                priority_tasks.append(task)
                continue
        except Exception as error:
            raise UserError(f"the workers can't work: {_last_line(error)}") from None
        del crash_counts[task]
        yield task, result


def _last_line(error):  # before it, Ray tells of the error's origin
    return cli.escape_unprintable((str(error).strip() or type(error).__name__).splitlines()[-1])
