"""Batches of randomly augmented images: Keras's ImageDataGenerator, a batch at a time, and batches made ahead."""

import functools
import math

import cv2
import keras
import numpy as np

# the generator of tensorflow.keras, at the only address where Keras offers it with every backend
from keras._tf_keras.keras.preprocessing.image import ImageDataGenerator

from expressions.training import distributed

GROUP = 4  # images of a batch that share a warp: as four channels they take OpenCV little longer than one of them
STACK = 16  # groups that one call warps: their coordinates stay in the cache of a processor core
STRETCH = 0.25  # of the zoom, as a power: with 0.8 to 1.2 a side is stretched by 0.95 to 1.05
NOISE_DEVIATION = 16  # gray levels; of the noise that is drawn once, and of the strongest that images get
LOG_LEVELS = np.log(np.maximum(np.arange(256, dtype=np.float32), 0.01) / 255)  # of gray levels, for gamma
# of Keras's options
OPTIONS = {
    "rescale", "rotation_range", "width_shift_range", "height_shift_range", "zoom_range", "horizontal_flip",
}  # fmt: skip


class Batches(keras.utils.PyDataset):
    """The batches of each epoch, made ahead by threads while the network learns; see `OpenCVImageDataGenerator.flow`.

    All random numbers follow from (seed, epoch, batch, rank). So it does not matter which thread makes which batch, or
    in which order, and a resumed run sees the same images as an unbroken one. Where several devices train together, all
    get equally many images of every batch; if it can't be divided evenly, some are repeated with a weight of 0.
    """

    def __init__(self, generator, images, targets, batch_size, shuffle, seed):
        # with one worker, Keras leaves making ahead to TensorFlow 2.21, which then holds up the end of many an epoch
        super().__init__(workers=2)
        self.generator, self.images, self.targets = generator, images, targets
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.world_size, self.rank, _ = distributed.process_info()
        self.devices = distributed.device_count()
        starts = range(0, len(images), batch_size)
        self.padded_epoch = sum(self._padded(len(images[start : start + batch_size])) for start in starts)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the order and the random numbers of this epoch; call it before the epoch begins."""
        self.epoch, self.order = epoch, np.arange(len(self.images))
        if self.shuffle:
            self._random_numbers(batch=0, rank=0).shuffle(self.order)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This process's part of a batch: images, float32 (rows, height, width, 1), their targets and weights."""
        rows = self.order[index * self.batch_size :][: self.batch_size]
        padded = self._padded(len(rows))
        # Keras takes the mean over all rows, padding included. Make it the mean over the images: in training those of
        # the batch, from which the network learns; in validation those of the epoch, of which the metrics are.
        weight = padded / len(rows) if self.shuffle else self.padded_epoch / len(self.images)
        weights = np.where(np.arange(padded) < len(rows), np.float32(weight), np.float32(0))
        mine = slice(self.rank * padded // self.world_size, (self.rank + 1) * padded // self.world_size)
        rows = np.resize(rows, padded)[mine]
        random = self._random_numbers(index + 1, self.rank)
        images = self.generator.random_transform(self.images[rows], random)
        return images, self.targets[rows], weights[mine]

    def _random_numbers(self, batch, rank):
        # batch 0 is the order of the epoch: NumPy takes missing numbers of a seed for zeros
        return np.random.default_rng([self.seed, self.epoch, batch, rank])

    def _padded(self, rows):
        return math.ceil(rows / self.devices) * self.devices


class OpenCVImageDataGenerator(ImageDataGenerator):
    """ImageDataGenerator that transforms a batch of images at a time, gray, uint8 (n, height, width, 1).

    It takes Keras's rescale, rotation_range (degrees), width_shift_range, height_shift_range and zoom_range (shares of
    the image) and horizontal_flip. Rotation, shift, zoom and flip are one OpenCV warp of many images. Besides, it takes
    the probabilities of an image to lose a part, see `random_erasing`, and to be changed, see `random_photometry`.

    Raises:
        ValueError: For Keras's other options.
    """

    def __init__(self, erasing_probability: float = 0.0, photometric_probability: float = 0.0, **options):
        if others := set(options) - OPTIONS:
            raise ValueError(f"OpenCVImageDataGenerator does without {', '.join(sorted(others))}")
        super().__init__(**options)
        self.erasing_probability, self.photometric_probability = erasing_probability, photometric_probability

    def flow(self, x: np.ndarray, y: np.ndarray, batch_size: int = 32, shuffle: bool = True, seed: int = 0) -> Batches:
        """Batches of images x and targets y; batch_size is over all devices."""
        return Batches(self, x, y, batch_size, shuffle, seed)

    def random_transform(self, x: np.ndarray, seed: int | np.random.Generator | None = None) -> np.ndarray:
        """Warp the images x, and perhaps change and erase them; then `standardize`: float32 of the same shape."""
        random = np.random.default_rng(seed)  # which leaves a Generator as it is
        images = super().random_transform(x, random)
        random_photometry(images, self.photometric_probability, random)
        random_erasing(images, self.erasing_probability, random)
        return self.standardize(images.astype(np.float32))

    def get_random_transform(self, img_shape: tuple, seed: int | np.random.Generator | None = None) -> dict:
        """Draw the parameters of warps from `seed`, an array (ceil(n / GROUP),) of each.

        Other than Keras, it zooms width and height alike but for a little, for the boxes of detectors are square.
        """
        random, height, width = np.random.default_rng(seed), *img_shape[1:3]
        count = math.ceil(img_shape[0] / GROUP)
        theta, tx, ty = random.uniform(-1, 1, (3, count))
        zoom, stretch = random.uniform(*self.zoom_range, (2, count))
        stretch **= STRETCH
        return {
            "theta": theta * self.rotation_range, "zx": zoom * stretch, "zy": zoom / stretch,
            "tx": tx * self.height_shift_range * height, "ty": ty * self.width_shift_range * width,
            "flip_horizontal": self.horizontal_flip & (random.random(count) < 0.5),
        }  # fmt: skip

    def apply_transform(self, x: np.ndarray, transform_parameters: dict) -> np.ndarray:
        """Warp the images x by the parameters that `get_random_transform` drew."""
        drawn, (height, width) = transform_parameters, x.shape[1:3]
        cosine, sine = np.cos(np.radians(drawn["theta"])), np.sin(np.radians(drawn["theta"]))
        zoom_x, zoom_y = np.where(drawn["flip_horizontal"], -drawn["zx"], drawn["zx"]), drawn["zy"]
        # Where a pixel (x, y) of the result comes from, about the centre: flipped, zoomed, shifted, rotated, in the
        # order and with the axes of Keras's own apply_affine_transform.
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        from_x, from_y = drawn["tx"] - zoom_x * centre_x, drawn["ty"] - zoom_y * centre_y
        to_x = [cosine * zoom_x, -sine * zoom_y, centre_x + cosine * from_x - sine * from_y]
        to_y = [sine * zoom_x, cosine * zoom_y, centre_y + sine * from_x + cosine * from_y]
        return _warp(x, np.float32(to_x).T, np.float32(to_y).T)


def _warp(images, to_x, to_y):
    """Warp images by the rows of two affine matrices, float32 (groups, 3); what lies outside repeats the border.

    The images of a stack stand in one column, of which each group is one channel deep for each of its images. A row
    and a column more than they have keep OpenCV on its fast path.
    """
    groups, (height, width) = len(to_x), images.shape[1:3]
    channels = np.resize(images, (GROUP, groups, height, width))
    warped = np.empty_like(channels)
    grid, maps = np.ones((3, height, width), np.float32), np.empty((2, STACK, height * width), np.float32)
    grid[1::-1] = np.indices((height, width))
    first_row = np.arange(STACK, dtype=np.float32)[:, None] * height
    for start in range(0, groups, STACK):
        here = slice(start, min(start + STACK, groups))
        x, y = maps[:, : here.stop - start]
        np.clip(np.matmul(to_x[here], grid.reshape(3, -1), out=x), 0, width - 1, out=x)
        np.clip(np.matmul(to_y[here], grid.reshape(3, -1), out=y), 0, height - 1, out=y)
        y += first_row[: len(y)]
        stack = cv2.merge([channel[here].reshape(-1, width) for channel in channels])
        stack = cv2.copyMakeBorder(stack, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
        stack = cv2.remap(stack, x.reshape(-1, width), y.reshape(-1, width), cv2.INTER_LINEAR)
        cv2.split(stack, [channel[here].reshape(-1, width) for channel in warped])
    return warped.reshape(-1, height, width, 1)[: len(images)]


def random_erasing(images: np.ndarray, probability: float, random: np.random.Generator) -> None:
    """Fill a random rectangle with noise, so that the network learns not to rely on one part of the face.

    Its area is 2 to 20 % of the image, the ratio of its sides 1 : 3 to 3 : 1 (Zhong et al. 2017, arXiv:1708.04896).
    The images, uint8 (n, height, width, channels), are changed in place.
    """
    rows, (height, width) = np.flatnonzero(random.random(len(images)) < probability), images.shape[1:3]
    area, ratio, top, left = random.random((4, len(rows)))
    area, ratio = (0.02 + 0.18 * area) * height * width, np.exp((2 * ratio - 1) * math.log(3))
    high = np.minimum(height, np.round(np.sqrt(area * ratio)))
    wide = np.minimum(width, np.round(np.sqrt(area / ratio)))
    rectangles = high, wide, top * (height + 1 - high), left * (width + 1 - wide)
    noise = random.integers(0, 256, images.shape[1:], np.uint8)  # one for all: each image shows another part of it
    for row, high, wide, top, left in zip(rows, *(np.int32(each).tolist() for each in rectangles), strict=True):
        images[row, top : top + high, left : left + wide] = noise[top : top + high, left : left + wide]


def random_photometry(images: np.ndarray, probability: float, random: np.random.Generator) -> None:
    """Change images as poor cameras and light do, in place: blur, few pixels, gamma, contrast, brightness and noise.

    The images are uint8 (n, height, width, 1). Of those that are changed, each change meets a part.
    """
    rows, side = np.flatnonzero(random.random(len(images)) < probability), images.shape[1]
    if not rows.size:
        return

    numbers = iter(random.random((16, len(rows)), np.float32))

    def sometimes(share, low, high, otherwise=0.0):
        return np.where(next(numbers) < share, low + (high - low) * next(numbers), np.float32(otherwise))

    blurs = sometimes(0.3, 0, 1) * sometimes(1, 0.2, 1.65)  # pixels
    sizes = (sometimes(0.35, 0.375, 1, 1) * side).astype(int)
    gammas, contrasts = np.exp(sometimes(0.6, -0.9, 0.9)), np.exp(sometimes(0.6, -0.9, 0.4))
    # light gives each of the 256 gray levels a new one; contrast is about what gamma makes of an image's mean
    means = 255 * (images[rows, ::4, ::4].mean((1, 2, 3)) / 255) ** gammas
    shifts = means * (1 - contrasts) + sometimes(0.5, -40, 40)
    levels = np.exp(np.outer(gammas, LOG_LEVELS)) * (255 * contrasts)[:, None] + shifts[:, None]
    levels = np.clip(levels + np.float32(0.5), 0, 255).astype(np.uint8)
    noises, pool = sometimes(0.4, 0, 1), _noise_pool()
    places = random.integers(len(pool) - side * images.shape[2], size=len(rows))
    for row, blur, size, table, noise, place in zip(rows, blurs, sizes, levels, noises, places, strict=True):
        image = images[row, :, :, 0]
        if blur > 0.2:  # less changes nothing
            kernel = cv2.getGaussianKernel(2 * math.ceil(2.5 * blur) + 1, blur, cv2.CV_32F)
            cv2.sepFilter2D(image, -1, kernel, kernel, dst=image, borderType=cv2.BORDER_REPLICATE)
        if size < side:
            small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            cv2.resize(small, image.shape[::-1], dst=image)
        cv2.LUT(image, table, dst=image)
        if noise:
            grain = pool[place : place + image.size].reshape(image.shape)
            cv2.addWeighted(image, 1, grain, noise, -128 * noise, dst=image)


@functools.cache
def _noise_pool():
    """Noise about the level 128, drawn once: drawing it for each image would take longer than all else."""
    normal = np.random.default_rng(0).normal(128, NOISE_DEVIATION, 2**20)
    return np.clip(np.round(normal), 0, 255).astype(np.uint8)
