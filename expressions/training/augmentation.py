"""Batches of randomly augmented images: Keras's ImageDataGenerator with OpenCV's warps, and batches made ahead."""

import math

import cv2
import keras
import numpy as np

# the generator of tensorflow.keras, at the only address where Keras offers it with every backend
from keras._tf_keras.keras.preprocessing.image import ImageDataGenerator

from expressions.training import distributed


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
        images = [
            self.generator.standardize(self.generator.random_transform(image, random))
            for image in self.images[rows].astype(np.float32)
        ]
        return np.stack(images), self.targets[rows], weights[mine]

    def _random_numbers(self, batch, rank):
        # batch 0 is the order of the epoch: NumPy takes missing numbers of a seed for zeros
        return np.random.default_rng([self.seed, self.epoch, batch, rank])

    def _padded(self, rows):
        return math.ceil(rows / self.devices) * self.devices


class OpenCVImageDataGenerator(ImageDataGenerator):
    """ImageDataGenerator whose rotation, shift, zoom and flip are one OpenCV warp, several times as fast as SciPy's.

    It takes Keras's rescale, rotation_range (degrees), width_shift_range, height_shift_range and zoom_range (shares of
    the image) and horizontal_flip, and the probability of an image to lose a part, see `random_erasing`.

    Raises:
        ValueError: For Keras's other options: shear, vertical flip, brightness, channel shift, other fill modes.
    """

    def __init__(self, erasing_probability: float = 0.0, **options):
        super().__init__(**options)
        self.erasing_probability = erasing_probability
        others = (self.shear_range, self.vertical_flip, self.brightness_range, self.channel_shift_range)
        if any(others) or self.fill_mode != "nearest":
            raise ValueError("OpenCVImageDataGenerator does rotation, shift, zoom and horizontal flip, nearest border")

    def flow(self, x: np.ndarray, y: np.ndarray, batch_size: int = 32, shuffle: bool = True, seed: int = 0) -> Batches:
        """Batches of images x, uint8 (n, height, width, 1), and targets y; batch_size is over all devices."""
        return Batches(self, x, y, batch_size, shuffle, seed)

    def random_transform(self, x: np.ndarray, seed: int | np.random.Generator | None = None) -> np.ndarray:
        """Warp one image, float32 (height, width, 1) with values from 0 to 255, and perhaps erase a part of it."""
        random = np.random.default_rng(seed)  # which leaves a Generator as it is
        return random_erasing(super().random_transform(x, random), self.erasing_probability, random)

    def get_random_transform(self, img_shape: tuple, seed: int | np.random.Generator | None = None) -> dict[str, float]:
        """Draw the parameters of a warp as Keras does, but from `seed` instead of NumPy's global random numbers."""
        random = np.random.default_rng(seed)
        return {
            "theta": random.uniform(-self.rotation_range, self.rotation_range),
            "tx": random.uniform(-self.height_shift_range, self.height_shift_range) * img_shape[0],
            "ty": random.uniform(-self.width_shift_range, self.width_shift_range) * img_shape[1],
            "zx": random.uniform(*self.zoom_range),
            "zy": random.uniform(*self.zoom_range),
            "flip_horizontal": self.horizontal_flip and random.random() < 0.5,
        }

    def apply_transform(self, x: np.ndarray, transform_parameters: dict[str, float]) -> np.ndarray:
        """Warp one image, float32 (height, width, 1), by the parameters that `get_random_transform` drew."""
        drawn, angle = transform_parameters, math.radians(transform_parameters["theta"])
        cosine, sine = math.cos(angle), math.sin(angle)
        zoom_x, zoom_y = drawn["zx"] * (-1 if drawn["flip_horizontal"] else 1), drawn["zy"]
        # Where a pixel (x, y) of the result comes from, about the centre: flipped, zoomed, shifted, rotated, in the
        # order and with the axes of Keras's own apply_affine_transform.
        centre_x, centre_y = (x.shape[1] - 1) / 2, (x.shape[0] - 1) / 2
        from_x, from_y = drawn["tx"] - zoom_x * centre_x, drawn["ty"] - zoom_y * centre_y
        to_x = [cosine * zoom_x, -sine * zoom_y, centre_x + cosine * from_x - sine * from_y]
        to_y = [sine * zoom_x, cosine * zoom_y, centre_y + sine * from_x + cosine * from_y]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size, matrix = (x.shape[1], x.shape[0]), np.array([to_x, to_y])
        return cv2.warpAffine(x, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)[:, :, None]


def random_erasing(image: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """Fill a random rectangle with noise, so that the network learns not to rely on one part of the face.

    Its area is 2 to 20 % of the image, the ratio of its sides 1 : 3 to 3 : 1 (Zhong et al. 2017, arXiv:1708.04896).
    The image, float32 (height, width, channels) with values from 0 to 255, is changed in place.
    """
    if random.random() < probability:
        height, width = image.shape[:2]
        area = random.uniform(0.02, 0.2) * height * width
        ratio = np.exp(random.uniform(-1, 1) * np.log(3))
        rows, columns = min(height, round(np.sqrt(area * ratio))), min(width, round(np.sqrt(area / ratio)))
        top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
        image[top : top + rows, left : left + columns] = random.uniform(0, 255, (rows, columns, image.shape[2]))
    return image
