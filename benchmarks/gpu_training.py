"""Train the shipped network on one GPU, in ten minutes, with JAX alone.

    python benchmarks/gpu_training.py train --data data/fer2013 --results results
    python benchmarks/gpu_training.py export results/matched.npz --data data/fer2013 --model models/emotion_model.h5

`train` does four things, and writes each result when it has it:

1. Teachers: networks of 1.5 times the width, each trained on three of four parts (folds) of the training images.
2. Soft labels: what the teachers that have not seen an image say of it (cross-fitting, arXiv:2104.09732).
3. Students: networks of the shipped size, and a wide one, trained on a mixture of labels and soft labels.
4. The matched network: starts as the best student and learns what the mean of all students says of the very same
   warped images (function matching, arXiv:2106.05237).

train.py makes its batches on the processor, which leaves a GPU idle. Here the images lie on the GPU, and warps, noise,
and a whole epoch of steps are one compiled function: 0.2 s an epoch on an H100. The network is train.py's `large`, with
the same layers, loss and optimizer; `export` makes it a model file.
"""

import argparse
import functools
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from expressions import IMAGE_SIZE, RESCALE

# isort: split
import cv2
import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from expressions.files import suppress_output
from expressions.training import dataset, fer2013, teachers
from expressions.training.corruptions import corrupt

FILTERS, POOLED = (32, 64, 64, 128, 128, 256, 256, 384, 384), (1, 0, 1, 0, 1, 0, 1, 0, 0)  # train.py's large network
BATCH_SIZE, MOMENTUM, WEIGHT_DECAY, WARMUP = 256, 0.9, 5e-3, 0.05  # warm-up as a share of the epochs
FOLDS, ROUNDS, TEACHER_WIDTH, TEACHER_EPOCHS = 4, 2, 1.5, 70
AVERAGE_EPOCHS = 3.0  # half-life of the moving average of the weights, in epochs
# strength of the augmentation: degrees; shares of the side; chances of an image to be erased in part or changed in
# light and sharpness, and of a batch to be mixed
STRONG = {"rotation": 15, "shift": 0.1, "zoom": 0.2, "aspect": 0.05, "erased": 0.5, "photometric": 0.7, "mixup": 0}
# the last quarter of a run is milder, for the images that are measured are not warped
MILD = {"rotation": 10, "shift": 0.07, "zoom": 0.12, "aspect": 0.03, "erased": 0.2, "photometric": 0.6, "mixup": 0}
TEACHER = {"photometric": 0.35}  # in both; its images are not changed when it labels them
# share of soft labels in the targets of the labels and of the votes
STUDENTS = {
    "student1": dict(seed=1, epochs=230, labels_share=0.6, votes_share=0.5),
    "student2": dict(seed=2, epochs=230, labels_share=0.4, votes_share=0.3),
    "student3": dict(
        seed=3,
        epochs=230,
        labels_share=0.8,
        votes_share=0.6,
        strong={"mixup": 0.3, "photometric": 0.6},
        mild={"photometric": 0.5},
    ),
    "wide": dict(seed=4, epochs=160, labels_share=0.6, votes_share=0.5, width=1.5),
}
MATCHED = dict(seed=5, epochs=260, labels_share=0.6, votes_share=0.5, peak=0.2, strong={"mixup": 0.4})
TRUST = 0.8  # of the students' mean in the targets of the matched network
LOGIT_ADJUSTMENT = 0.3  # of train.py from scratch: for rare classes


# ---- the network ----------------------------------------------------------------------------------------------------


def init_network(key, width, columns):
    """The parameters and the batch normalisation statistics of a new network, as lists of dicts, one a layer."""
    parameters, statistics, inputs = [], [], 1
    for filters in (int(filters * width) for filters in FILTERS):
        key, subkey = jax.random.split(key)
        deviation = math.sqrt(2 / (9 * inputs)) / 0.87962566  # He et al. 2015; of a normal truncated at two deviations
        kernel = jax.random.truncated_normal(subkey, -2, 2, (3, 3, inputs, filters)) * deviation
        parameters.append({"kernel": kernel, "gamma": jnp.ones(filters), "beta": jnp.zeros(filters)})
        statistics.append({"mean": jnp.zeros(filters), "variance": jnp.ones(filters)})
        inputs = filters
    limit = math.sqrt(6 / (inputs + columns))
    kernel = jax.random.uniform(key, (inputs, columns), minval=-limit, maxval=limit)
    return [*parameters, {"kernel": kernel, "bias": jnp.zeros(columns)}], statistics


def forward(parameters, statistics, pixels, dropout_key=None):
    """The logits of images, float32 (n, columns), and the updated statistics.

    Args:
        parameters, statistics: Of `init_network`.
        pixels: float32 (n, 48, 48), 0 to 255.
        dropout_key: In training; None to predict.
    """
    x, updated = (pixels * RESCALE)[..., None].astype(jnp.bfloat16), []
    for layer, running, pooled in zip(parameters[:-1], statistics, POOLED, strict=True):
        kernel = layer["kernel"].astype(jnp.bfloat16)
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if pooled:
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        x, used = x.astype(jnp.float32), running
        if dropout_key is not None:
            mean = x.mean((0, 1, 2))
            used = {"mean": mean, "variance": jnp.maximum(0, (x * x).mean((0, 1, 2)) - mean**2)}
            updated.append(jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, used))
        scale = layer["gamma"] * jax.lax.rsqrt(used["variance"] + 1e-3)
        x = jax.nn.relu(x * scale + (layer["beta"] - used["mean"] * scale)).astype(jnp.bfloat16)
    x = x.astype(jnp.float32).mean((1, 2))
    if dropout_key is not None:
        x = jnp.where(jax.random.bernoulli(dropout_key, 0.7, x.shape), x / 0.7, 0)
    return x @ parameters[-1]["kernel"] + parameters[-1]["bias"], updated


def keras_weights(parameters, statistics):
    """The same weights in the order of Keras's `get_weights`."""
    weights = []
    for layer, running in zip(parameters[:-1], statistics, strict=True):
        weights += [layer["kernel"], layer["gamma"], layer["beta"], running["mean"], running["variance"]]
    return [np.asarray(array) for array in (*weights, parameters[-1]["kernel"], parameters[-1]["bias"])]


predict_batch = jax.jit(lambda network, images: forward(*network, images.astype(jnp.float32))[0])


def predict(network, images, size=2048):
    """The logits of uint8 images (n, 48, 48), in batches of one size, since each size is compiled anew."""
    padded = np.resize(images, (-(-len(images) // size) * size, *images.shape[1:]))
    batches = [predict_batch(network, padded[start : start + size]) for start in range(0, len(padded), size)]
    return np.concatenate(batches)[: len(images)]


def softmaxes(logits, classes, library=np):
    """The probabilities of the labels and those of the votes, side by side."""
    parts = (logits[:, :classes], logits[:, classes:])
    powers = [library.exp(part - part.max(axis=1, keepdims=True)) for part in parts]
    return library.concatenate([power / power.sum(axis=1, keepdims=True) for power in powers], axis=1)


# ---- augmentation, on batches of float32 (n, 48, 48), 0 to 255 -----------------------------------------------------


def filter_matrices():
    """Blurs of 0 to 1.6 pixels, and shrinking to 18 to 48 pixels and back, as matrices for rows and columns."""
    identity = np.eye(IMAGE_SIZE, dtype=np.float32)

    def blur(sigma):
        kernel = cv2.getGaussianKernel(15, sigma) if sigma else [1.0]
        return cv2.sepFilter2D(identity, -1, np.float32([1]), np.float32(kernel), borderType=cv2.BORDER_REPLICATE)

    def shrink(size):
        small = cv2.resize(identity, (IMAGE_SIZE, size), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)

    blurs, sizes = [blur(sigma) for sigma in np.linspace(0, 1.6, 33)], range(18, IMAGE_SIZE + 1)
    return jnp.array(blurs), jnp.array([shrink(size) for size in sizes])


def draw(key, count, shape):
    """Independent functions that draw a value for each image: uniform(low, high) and chance(probability)."""
    keys = iter(jax.random.split(key, count))

    def uniform(low, high):
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    return uniform, lambda probability: uniform(0, 1) < probability


def warp(pixels, key, strength):
    """Rotate, shift, zoom, stretch and mirror; pixels outside an image repeat its border."""
    uniform, chance = draw(key, 6, (len(pixels), 1, 1))
    angle = jnp.radians(uniform(-1, 1) * strength["rotation"])
    zoom, aspect = 1 + uniform(-1, 1) * strength["zoom"], jnp.exp(uniform(-1, 1) * strength["aspect"])
    grid, centre = jnp.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2, (IMAGE_SIZE - 1) / 2
    x = grid[None, None] * zoom * aspect * jnp.where(chance(0.5), -1, 1)
    y = grid[None, :, None] * zoom / aspect
    x, y = (side + uniform(-1, 1) * strength["shift"] * IMAGE_SIZE for side in (x, y))
    x, y = jnp.cos(angle) * x - jnp.sin(angle) * y + centre, jnp.sin(angle) * x + jnp.cos(angle) * y + centre
    x, y = (jnp.clip(side, 0, IMAGE_SIZE - 1) for side in (x, y))
    left, top = jnp.floor(x).astype(int), jnp.floor(y).astype(int)
    flat = pixels.reshape(len(pixels), -1)

    def at(row, column):
        places = jnp.minimum(row, IMAGE_SIZE - 1) * IMAGE_SIZE + jnp.minimum(column, IMAGE_SIZE - 1)
        return jnp.take_along_axis(flat, places.reshape(len(pixels), -1), axis=1).reshape(pixels.shape)

    x, y = x - left, y - top
    above, below = (at(row, left) * (1 - x) + at(row, left + 1) * x for row in (top, top + 1))
    return above * (1 - y) + below * y


def compress(pixels, quality):
    """What JPEG at a quality of 1 to 100, (n, 1, 1), leaves of images: rounded cosine transforms of 8 x 8 pixels."""
    table = np.array([  # of ISO/IEC 10918-1, table K.1
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ])  # fmt: skip
    cosines = cv2.dct(np.eye(8, dtype=np.float32), flags=cv2.DCT_ROWS).T
    blocks = (pixels - 128).reshape(len(pixels), IMAGE_SIZE // 8, 8, IMAGE_SIZE // 8, 8)
    scale = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = jnp.clip(jnp.floor((table * scale + 50) / 100), 1, 255)[:, None, :, None, :]
    multiply = functools.partial(jnp.einsum, precision="highest")
    rounded = jnp.round(multiply("ij,najbk,lk->naibl", cosines, blocks, cosines) / steps) * steps
    return multiply("ji,najbk,kl->naibl", cosines, rounded, cosines).reshape(pixels.shape) + 128


def change_photometry(pixels, key, strength, blurs, shrinks):
    """What cameras and light do: blur, few pixels, gamma, contrast, brightness, light from a side, noise, JPEG."""
    uniform, chance = draw(key, 30, (len(pixels), 1, 1))
    changed = chance(strength["photometric"])

    def sometimes(probability, low, high, otherwise=0.0):
        return jnp.where(chance(probability) & changed, uniform(low, high), otherwise)

    def filtered(matrices, choice, images):
        chosen = matrices[choice[:, 0, 0].astype(int)]
        return jnp.einsum("nij,njk,nlk->nil", chosen, images, chosen)

    new = filtered(blurs, uniform(0, 1) * sometimes(0.3, 4, len(blurs)), pixels)
    new = filtered(shrinks, sometimes(0.35, 0, len(shrinks), len(shrinks) - 1), new)
    new = 255 * (jnp.clip(new, 0, 255) / 255) ** jnp.exp(sometimes(0.6, -0.9, 0.9))
    mean = new.mean((1, 2), keepdims=True)
    new = (new - mean) * jnp.exp(sometimes(0.6, -0.9, 0.4)) + mean + sometimes(0.5, -40, 40)
    direction, grid = uniform(0, 2 * math.pi), jnp.linspace(-1, 1, IMAGE_SIZE)
    slope = jnp.cos(direction) * grid[None, None] + jnp.sin(direction) * grid[None, :, None]
    new = jnp.clip(new * (1 + sometimes(0.3, -0.5, 0.5) * slope), 0, 255)
    noise = jax.random.normal(jax.random.fold_in(key, 0), new.shape)
    new = jnp.clip(new + sometimes(0.4, 0, 16) * noise, 0, 255)
    new = jnp.where(chance(0.3), compress(new, uniform(15, 90)), new)
    return jnp.where(changed, jnp.clip(new, 0, 255), pixels)


def erase(pixels, key, strength):
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896), with the rectangles of `augmentation.random_erasing`."""
    uniform, chance = draw(key, 6, (len(pixels), 1, 1))
    area, ratio = uniform(0.02, 0.2) * IMAGE_SIZE**2, jnp.exp(uniform(-1, 1) * math.log(3))
    height, width = (jnp.minimum(IMAGE_SIZE, jnp.round(jnp.sqrt(side))) for side in (area * ratio, area / ratio))
    top, left = (jnp.floor(uniform(0, 1) * (IMAGE_SIZE - side + 1)) for side in (height, width))
    y, x = jnp.arange(IMAGE_SIZE)[None, :, None], jnp.arange(IMAGE_SIZE)[None, None]
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    noise = jax.random.uniform(jax.random.fold_in(key, 0), pixels.shape, maxval=255)
    return jnp.where(inside & chance(strength["erased"]), noise, pixels)


# ---- training -------------------------------------------------------------------------------------------------------


def targets_of(split, classes, soft, labels_share, votes_share):
    """float32 (n, 2 * classes + 1): labels and votes, mixed with soft labels of the same columns.

    An image without votes gets the soft ones alone."""
    labels, votes = np.eye(classes, dtype=np.float32)[split.labels], split.votes
    voted = votes.sum(axis=1, keepdims=True) > 0
    labels = labels + labels_share * (soft[:, :classes] - labels)
    votes = np.where(voted, votes + votes_share * (soft[:, classes:] - votes), soft[:, classes:])
    return np.hstack([labels, votes]).astype(np.float32)


@functools.partial(jax.jit, static_argnames="classes", donate_argnums=0)
def train_epoch(state, images, targets, order, key, hyper, filters, ensemble, classes):
    """Train for an epoch.

    Args:
        state: parameters, statistics, velocity, and the moving average of the first two.
        images, targets: uint8 (n, 48, 48), and of `targets_of`.
        order: The images of each step, int (steps, BATCH_SIZE).
        hyper: rate, average_decay, and the strengths of the augmentation, as float32.
        filters: Of `filter_matrices`.
        ensemble: Networks whose mean prediction for the same pixels is TRUST of the targets; may be empty.

    Returns:
        The new state, and the mean loss.
    """

    def step(state, inputs):
        parameters, statistics, velocity, average = state
        rows, key = inputs
        keys = jax.random.split(key, 6)
        pixels, y = warp(images[rows].astype(jnp.float32), keys[0], hyper), targets[rows]
        pixels = erase(change_photometry(pixels, keys[1], hyper, *filters), keys[2], hyper)
        mixed = jax.random.bernoulli(keys[3], hyper["mixup"])  # Zhang et al. 2018, arXiv:1710.09412
        share = jnp.where(mixed, jax.random.beta(keys[4], 0.4, 0.4), 1)
        pixels, y = share * pixels + (1 - share) * pixels[::-1], share * y + (1 - share) * y[::-1]
        if ensemble:
            said = sum(softmaxes(forward(*network, pixels)[0], classes, jnp) for network in ensemble) / len(ensemble)
            y = (1 - TRUST) * y + TRUST * said

        def loss_of(parameters):
            logits, updated = forward(parameters, statistics, pixels, keys[5])
            likelihoods = [jax.nn.log_softmax(part) for part in (logits[:, :classes], logits[:, classes:])]
            return -(y * jnp.hstack(likelihoods)).sum(1).mean(), updated

        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        rate = hyper["rate"]
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v - rate * g, velocity, gradient)
        parameters = jax.tree.map(
            lambda w, v, g: w * (1 - rate * WEIGHT_DECAY * (w.ndim > 1)) + MOMENTUM * v - rate * g,
            parameters, velocity, gradient,
        )  # fmt: skip
        decay = hyper["average_decay"]
        average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, average, (parameters, statistics))
        return (parameters, statistics, velocity, average), loss

    state, losses = jax.lax.scan(step, state, (order, jax.random.split(key, len(order))))
    return state, losses.mean()


def train(
    images, targets, rows, classes, *, seed, epochs, width=1.0, peak=0.3, strong=None, mild=None, ensemble=(),
    start=None, check=lambda network, epoch: None,
):  # fmt: skip
    """Train a network on the images `rows`; returns the moving average of its weights: parameters and statistics.

    Args:
        images, targets, classes: As `train_epoch` takes them.
        epochs: The rate climbs to `peak` in the first WARMUP of them, and falls as a cosine to zero.
        strong, mild: What differs from STRONG and MILD.
        ensemble: See `train_epoch`.
        start: A network to start from; None for a new one.
        check: Called with the network and the number of each epoch of the last third.
    """
    key, subkey = jax.random.split(jax.random.key(seed))
    network = jax.tree.map(jnp.copy, start or init_network(subkey, width, targets.shape[1]))
    state = (*network, jax.tree.map(jnp.zeros_like, network[0]), jax.tree.map(jnp.copy, network))
    filters, steps, warmup = filter_matrices(), len(rows) // BATCH_SIZE, max(1, round(WARMUP * epochs))
    strong, mild = STRONG | (strong or {}), MILD | (mild or {})
    rows, images, targets = jnp.asarray(rows), jnp.asarray(images), jnp.asarray(targets)
    for epoch in range(epochs):
        cosine = 0.5 + 0.5 * math.cos(math.pi * (epoch - warmup + 1) / (epochs - warmup + 1))
        rate = peak * ((epoch + 1) / warmup if epoch < warmup else cosine)
        mildness = min(1, max(0, (epoch / epochs - 0.75) / 0.1))
        hyper = {name: strong[name] + mildness * (mild[name] - strong[name]) for name in strong}
        average_decay = min(0.5 ** (1 / (AVERAGE_EPOCHS * steps)), 1 - 1 / (10 + epoch * steps))
        hyper = jax.tree.map(jnp.float32, {**hyper, "rate": rate, "average_decay": average_decay})
        key, order_key, epoch_key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, rows)[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        state, loss = train_epoch(state, images, targets, order, epoch_key, hyper, filters, ensemble, classes)
        if epoch >= epochs * 2 // 3 and (epoch % 10 == 0 or epoch == epochs - 1):
            check(state[3], epoch + 1)
    print(f"  loss {loss:.3f} after {epochs} epochs", flush=True)
    return state[3]


def cross_fitted_labels(split, classes, digests):
    """What teachers that have not seen an image say of it: float32 (n, 2 * classes + 1)."""
    folds = digests % FOLDS  # by content, so that copies of an image are in one fold
    uniform = np.full((len(folds), 2 * classes + 1), 1 / classes, np.float32)
    targets = targets_of(split, classes, uniform, labels_share=0.1, votes_share=0)  # label smoothing of 0.1
    count, soft = min(np.bincount(folds, minlength=FOLDS).sum() - np.bincount(folds, minlength=FOLDS)), 0 * uniform
    for number in range(FOLDS * ROUNDS):
        unseen = folds == number % FOLDS
        seen = np.random.default_rng(number).permutation(np.flatnonzero(~unseen))[:count]  # one size: compiled once
        network = train(
            split.images,
            targets,
            seen,
            classes,
            seed=100 + number,
            epochs=TEACHER_EPOCHS,
            width=TEACHER_WIDTH,
            strong=TEACHER,
            mild=TEACHER,
        )
        views = [
            np.stack([teachers.zoom_image(image, zoom) for image in split.images[unseen]]) for zoom in teachers.VIEWS
        ]
        views += [view[:, :, ::-1] for view in views]
        said = np.mean([softmaxes(predict(network, view), classes) for view in views], axis=0)
        soft[unseen] += said / ROUNDS
        right = (said[:, :classes].argmax(1) == split.labels[unseen]).mean()
        print(f"teacher {number}: right on {right:.1%} of the images of its fold", flush=True)
    return soft


class Validation:
    """Measures networks on the validation split, as it is and corrupted; keeps the best epoch of each."""

    def __init__(self, split, classes, results):
        self.split, self.classes, self.results = split, classes, results
        self.corrupted, self.best, self.history = corrupt(split.images), {}, {}

    def top1(self, probabilities):
        return float((probabilities[:, : self.classes].argmax(1) == self.split.labels).mean())

    def check(self, name, network, epoch):
        """Measure a network; write its weights to NAME.npz if it is the best of its name so far."""
        images, history = self.split.images, self.history.setdefault(name, [])
        plain, mirrored = (softmaxes(predict(network, view), self.classes) for view in (images, images[:, :, ::-1]))
        rows = {kind: self.top1(predict(network, view)) for kind, view in self.corrupted.items()}
        row = {"epoch": epoch, "single": self.top1(plain), "mirrored": self.top1(plain + mirrored)}
        history.append({**row, "corrupted": np.mean(list(rows.values())), **rows})
        pd.DataFrame(history).round(4).to_csv(self.results / f"{name}.csv", index=False)
        score = history[-1]["single"] + history[-1]["corrupted"]
        if score > self.best.get(name, 0):
            self.best[name] = score
            np.savez(self.results / f"{name}.npz", *(array.astype(np.float16) for array in keras_weights(*network)))
        print(
            f"  epoch {epoch}: " + ", ".join(f"{key} {history[-1][key]:.2%}" for key in list(history[-1])[1:4]),
            flush=True,
        )


def run_training(options):
    """The four steps; see the module."""
    data, results, started = dataset.load(options.data), options.results, time.perf_counter()
    split, classes = data.splits["train"], len(data.labels)
    results.mkdir(parents=True, exist_ok=True)
    validation, networks = Validation(data.splits["validation"], classes, results), {}
    if (results / "soft_labels.npz").exists():
        soft = np.load(results / "soft_labels.npz")["probabilities"].astype(np.float32)
    else:
        digests = fer2013.original_digests(split.images)
        soft = cross_fitted_labels(split, classes, digests)
        np.savez_compressed(results / "soft_labels.npz", digests=digests, probabilities=soft.astype(np.float16))

    def train_student(name, labels_share, votes_share, **settings):
        print(f"{name}, after {time.perf_counter() - started:.0f} s", flush=True)
        targets = targets_of(split, classes, soft, labels_share, votes_share)
        check = functools.partial(validation.check, name)
        networks[name] = train(split.images, targets, np.arange(len(targets)), classes, check=check, **settings)

    for name, settings in STUDENTS.items():
        train_student(name, **settings)
    best = max((name for name in STUDENTS if "width" not in STUDENTS[name]), key=validation.best.get)
    train_student("matched", ensemble=tuple(networks.values()), start=networks[best], **MATCHED)


def run_export(options):
    """Make a model file, with its report, of weights that `run_training` wrote."""
    with suppress_output():  # TensorFlow's greeting
        from expressions.training.evaluation import write_model
        from expressions.training.networks import large_network

    data, directory = dataset.load(options.data), options.model.with_suffix("")
    with np.load(options.weights) as arrays:
        weights = [arrays[name].astype(np.float32) for name in arrays]
    network = large_network(weights[-1].size, None)
    network.set_weights(weights)
    directory.mkdir(parents=True, exist_ok=True)
    best = directory / "best.partial.keras"
    network.save(best)
    history = pd.read_csv(options.weights.with_suffix(".csv"))
    unknown = dict.fromkeys(("accuracy", "loss", "val_loss", "seconds"), np.nan)
    columns = {"epoch": history["epoch"] - 1, "val_accuracy": history["single"], **unknown}
    pd.DataFrame(columns).to_csv(directory / "history.partial.csv", index=False)
    described = argparse.Namespace(
        model=options.model, network="large", seed=MATCHED["seed"], batch_size=BATCH_SIZE, precision="mixed_bfloat16",
        start_words=None, fold=None, teacher=[Path(name) for name in STUDENTS],
    )  # fmt: skip
    write_model(best, large_network, data, described, LOGIT_ADJUSTMENT, time.strftime("%Y-%m-%d %H:%M:%S"))
    best.unlink()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = history.set_index("epoch")[["single", "mirrored", "corrupted"]].plot(ax=figure.add_subplot(), marker="o")
    axes.set(ylabel="validation accuracy", title="Moving average of the weights")
    figure.savefig(directory / "curves.png", dpi=110)
    shutil.copy(options.weights.with_suffix(".csv"), directory / "history.csv")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("train", run_training), ("export", run_export)):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="FER2013 with FER+ votes, as train.py takes it")
        command.set_defaults(function=function)
        if name == "train":
            command.add_argument("--results", type=Path, default=Path("results"), help="folder for weights and labels")
        else:
            command.add_argument("weights", type=Path, help="an .npz file of `train`")
            command.add_argument("--model", type=Path, required=True, help="the .h5 to write")
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
