"""What it costs to train one network in two processes or on two devices, as ratios within one run.

    python benchmarks/distribution.py        needs JAX (pip install jax), Linux, and two cores that do nothing else

Runs train.py on drawn faces, in single precision, each process pinned to its cores; the first epoch of a run, which
compiles, doesn't count. Two processes, a core each, exchange what they learn from their halves of a batch: against one
process that has such a half alone, on one core, they show what the exchange costs.
"""

import functools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
BATCH, EPOCHS, PER_CLASS = 64, 5, 64
IMAGES = 7 * PER_CLASS
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train
train.DATA = train.Path(sys.argv[1])  # where there is no data set
train.trainer.DRAWN_FACES = {{"train": {PER_CLASS}, "validation": 1}}
sys.exit(train.main(sys.argv[2:]))
"""
# batch size, cores of each process, devices of each
RUNS = {
    "one process, one core": (BATCH, [{0}], 1),
    "the same with half the batch": (BATCH // 2, [{0}], 1),
    "two processes, a core each": (BATCH, [{0}, {1}], 1),
    "one process, two devices, two cores": (BATCH, [{0, 1}], 2),
    "one process, one device, two cores": (BATCH, [{0, 1}], 1),
}


def main():
    milliseconds = {}
    for name, run in RUNS.items():
        milliseconds[name] = measure(*run)
        rate = run[0] / milliseconds[name] * 1000
        print(f"{name}: {milliseconds[name]:.0f} ms a step of {run[0]} images, {rate:.0f} images/s", flush=True)
    one, half, two, devices, plain = milliseconds.values()
    print(f"two processes are {one / two:.2f} times as fast as one on one core; two devices {one / devices:.2f} times,")
    print(f"one device on two cores {one / plain:.2f} times")
    print(f"a step of two processes takes {two / half:.2f} times as long as one of half the batch without exchange")


def measure(batch, cores, devices):
    """The median of milliseconds that a step takes, over the epochs but the first."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if len(cores) > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            environment["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = f"127.0.0.1:{free.getsockname()[1]}"
        environment["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(len(cores))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.h5"
        command = [sys.executable, "-c", PROGRAM, folder, "--model", model, "--epochs", EPOCHS, "--batch-size", batch]
        command += ["--precision", "float32"]
        processes = []
        for number, own in enumerate(cores):
            if len(cores) > 1:
                environment["KERAS_DISTRIBUTION_PROCESS_ID"] = str(number)
            pin = functools.partial(os.sched_setaffinity, 0, own)
            processes.append(
                subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.DEVNULL, preexec_fn=pin)
            )
        if any([process.wait() for process in processes]):
            sys.exit("train.py has failed")
        seconds = pd.read_csv(model.with_suffix("") / "history.csv")["seconds"][1:]
    return 1000 * statistics.median(seconds) / (IMAGES / batch)


if __name__ == "__main__":
    main()
