"""Time what training spends its time on, as ratios within one run: warps, networks, and the peak of the machine.

    python benchmarks/training.py

Warps: images made by train.py's ImageDataGenerator, without and with changes of light and sharpness, against Keras's
own with SciPy's warp, when SciPy is installed (pip install 'scipy<2').
Networks: training steps of the default network against the classic one, each in the precision that train.py chooses for
this machine and in single precision, in turn, so that all meet the same machine.
Peak: a large single-precision matrix product with the same backend; the share of it that training reaches, which passes
100 % where 16 bits are faster.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from expressions import EMOTIONS, RESCALE
from expressions.training import dataset, synthetic
from expressions.training.augmentation import ImageDataGenerator, random_erasing
from expressions.training.trainer import choose_precision
from train import keras  # set up as in the program

IMAGES_IN_FER2013 = 28_218  # train split, without those that stand in validation too
BATCH, ROUNDS, STEPS = 64, 5, 8


def main():
    drawn = dataset.Split(*synthetic.draw_faces(100, seed=0))
    data = dataset.Dataset("drawn", EMOTIONS, {"train": drawn, "validation": drawn})
    recipe, options = train.FROM_SCRATCH, argparse.Namespace(batch_size=BATCH, seed=0, teacher=[], epochs=100)
    batches, _ = train.make_batches(data, recipe, options)
    warped, _ = train.make_batches(data, recipe._replace(photometric=0), options)
    flows = {
        "OpenCV": lambda: [warped[index] for index in range(STEPS)],
        "OpenCV, with photometric changes": lambda: [batches[index] for index in range(STEPS)],
    }
    try:
        import scipy

        random = np.random.default_rng(0)

        def erase(image):
            random_erasing(image[None], recipe.erasing, random)
            return image

        generator = ImageDataGenerator(
            rescale=RESCALE, rotation_range=recipe.rotation, zoom_range=recipe.zoom, horizontal_flip=True,
            width_shift_range=recipe.shift, height_shift_range=recipe.shift,
            preprocessing_function=erase,
        )  # fmt: skip
        flow = generator.flow(batches.images, batches.targets, batch_size=BATCH)
        flows[f"SciPy {scipy.__version__}"] = lambda: [next(flow) for _ in range(STEPS)]
    except ImportError:
        print("SciPy is not installed: OpenCV's warp alone")
    compare("images/s warped", flows)

    batch = batches[0]
    steps, costs = {}, {}
    for policy in dict.fromkeys([choose_precision("auto"), "float32"]):
        keras.config.set_dtype_policy(policy)
        for name, build in train.NETWORKS.items():
            network = build(len(EMOTIONS), "softmax")
            network.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
            name = f"{name}, {policy}"
            steps[name] = lambda network=network: [network.train_on_batch(*batch) for _ in range(STEPS)]
            costs[name] = multiply_adds(network)
            steps[name]()  # compiles
    keras.config.set_dtype_policy("float32")
    rates = compare("images/s trained", steps)
    peak = peak_flops()
    print(f"peak of a matrix product: {peak / 1e9:.0f} GFLOP/s")
    for name, rate in rates.items():
        # forward once, backward twice; a multiply-add is two operations
        share = rate * costs[name] * 3 * 2 / peak
        print(
            f"{name}: {costs[name] / 1e6:.0f} M multiply-adds a face, {share:.0%} of the peak, "
            f"{IMAGES_IN_FER2013 / rate:.0f} s of steps for an epoch of FER2013"
        )


def compare(what, actions):
    """Run the actions in turn, ROUNDS times; print and return the median of images per second of each."""
    rates = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            rates[name].append(STEPS * BATCH / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians))
    for name, values in rates.items():
        print(
            f"{what}, {name}: {medians[name]:.0f} ({min(values):.0f} to {max(values):.0f}), "
            f"{first} is {medians[first] / medians[name]:.2f} times as fast"
        )
    return medians


def multiply_adds(network):
    """Multiply-adds of the convolutions and dense layers for one face."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            height, width = layer.output.shape[1:3]
            total += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total


def peak_flops(size=3000):
    """Operations per second of a single-precision matrix product, the best of five."""
    matrix = keras.ops.convert_to_tensor(np.random.default_rng(0).random((size, size), np.float32))
    best = 0
    for _ in range(6):
        began = time.perf_counter()
        np.asarray(keras.ops.matmul(matrix, matrix))
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
