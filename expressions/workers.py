"""The same work on many things: by processes of this machine, or with Ray by those of many machines.

Both take a task, a function and its arguments, and hand back a Future, so that one loop keeps either busy. A task whose
worker dies is given to another one, and to none after ATTEMPTS.
"""

import contextlib
import functools
import logging
import multiprocessing
import signal
import time
from collections import Counter
from queue import SimpleQueue

from expressions import UserError

ATTEMPTS = 3  # at a task whose worker dies of it
AHEAD = 2  # tasks handed out for each worker, so that none waits for its next one
RECOUNTED = 10  # seconds after which a cluster is asked anew how many workers it has


@contextlib.contextmanager
def processes(count):
    """So many processes of this machine, for `with`: how to hand out a task, and to tell how many they are."""
    from pebble import ProcessPool  # the standard library's pools lose all tasks when one worker dies

    pool = ProcessPool(count, initializer=ignore_ctrl_c, context=multiprocessing.get_context("spawn"))
    try:
        yield lambda function, *arguments: pool.submit(function, None, *arguments), lambda: count
    finally:
        pool.stop()
        pool.join()


def ignore_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; who handed out the work ends it


@contextlib.contextmanager
def cluster(address, folder):
    """The processors of a Ray cluster, one worker each; as `processes`.

    address: of the cluster, such as 192.168.0.9:6379 or auto, or "" for one of this machine alone for this `with`.
    folder: of the program, which the cluster's machines get a copy of. Raises UserError when there is no Ray, or no
    cluster."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray: Ray is not installed; run: pip install ray, or use --workers instead") from None
    try:
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": str(folder), "excludes": ["/.*", "/docs", "/tests", "/data", "/models/*/"]},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no cluster there ({str(error).splitlines()[0]})") from None
    counted = [0.0, 1]

    def workers():
        if time.monotonic() - counted[0] > RECOUNTED:  # machines come and go
            counted[:] = time.monotonic(), max(1, int(ray.cluster_resources().get("CPU", 1)))
        return counted[1]

    task = functools.cache(ray.remote(max_retries=0))  # `work` tries again, for both kinds of workers
    try:
        yield lambda function, *arguments: task(function).remote(*arguments).future(), workers
    finally:
        ray.shutdown()


def work(submit, workers, tasks, urgent):
    """Have tasks done, AHEAD for each worker at a time; yield each with its result, in whatever order they end.

    submit, workers: of `processes` or `cluster`. tasks: tuples of a function and its arguments, taken one by one.
    urgent: a deque of tasks that go before those; the caller may add to it. The result is an exception where all
    workers died that had the task. A UserError that a task raises ends it all."""
    tasks, running, done, died = iter(tasks), {}, SimpleQueue(), Counter()
    while True:
        while len(running) < AHEAD * workers():
            task = urgent.popleft() if urgent else next(tasks, None)
            if task is None:
                break
            future = submit(*task)
            running[future] = task
            future.add_done_callback(done.put)
        if not running:
            return
        future = done.get()
        task = running.pop(future)
        try:
            result = future.result()
        except UserError as error:
            raise getattr(error, "cause", error) from None  # Ray wraps it with its own story
        except Exception as error:
            died[task] += 1
            if died[task] < ATTEMPTS:
                urgent.append(task)
                continue
            result = error
        died.pop(task, None)
        yield task, result
