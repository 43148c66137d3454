"""train.py with a network that is soon compiled and trained, for tests of what happens to a run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train


def small_network(outputs, activation):
    convolutions = [*train.conv_bn_relu(8, pooled=True), *train.conv_bn_relu(16, pooled=True)]
    pooled = train.layers.GlobalAveragePooling2D(), train.layers.Dropout(0.3)
    last = train.layers.Dense(outputs, activation)
    return train.keras.Sequential([train.keras.Input((48, 48, 1)), *convolutions, *pooled, last])


train.NETWORKS["compact"] = small_network

if __name__ == "__main__":
    sys.exit(train.main())
