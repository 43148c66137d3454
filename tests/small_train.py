"""train.py with a network that is soon compiled and trained, for tests of what happens to a run."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from expressions.training import report

SMALL_GRID = (4, 2)  # of images in a report, for to draw them takes longer than to train the small network


def small_network(outputs, activation):
    convolutions = [*train.conv_bn_relu(8, pooled=True), *train.conv_bn_relu(16, pooled=True)]
    pooled = train.layers.GlobalAveragePooling2D(), train.layers.Dropout(0.3)
    last = train.layers.Dense(outputs, activation)
    return train.keras.Sequential([train.keras.Input((48, 48, 1)), *convolutions, *pooled, last])


def use_small_network():
    train.NETWORKS["compact"], report.GRID = small_network, SMALL_GRID


def main_in_fork(arguments, environment, output, small):
    """Run as a program of its own, in a process that was forked from one that has imported this module."""
    with open(output, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ |= environment
    if small:
        use_small_network()
    sys.exit(train.main([str(argument) for argument in arguments]))


if __name__ == "__main__":
    use_small_network()
    sys.exit(train.main())
