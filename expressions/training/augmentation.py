"""Keras's ImageDataGenerator with its warps done by OpenCV, and its batches made ahead of time."""

import math
import threading

import cv2
import keras
import numpy as np

# tensorflow.keras's generator, at the one address where Keras offers it with any backend
from keras._tf_keras.keras.preprocessing.image import ImageDataGenerator


def erase(image, chance):
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): fill a random rectangle with noise, so that the network
    learns not to rest on one part of the face. For ImageDataGenerator's `preprocessing_function`.

    image: float32 (height, width, channels), 0 to 255, changed in place. chance: of an image to lose a rectangle.
    Its area is 2 to 20 % of the image, its sides are in a ratio of 1 : 3 to 3 : 1. Returns image.
    """
    if np.random.random() < chance:
        height, width = image.shape[:2]
        area = np.random.uniform(0.02, 0.2) * height * width
        ratio = np.exp(np.random.uniform(-1, 1) * np.log(3))
        rows, columns = min(height, round(np.sqrt(area * ratio))), min(width, round(np.sqrt(area / ratio)))
        top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
        image[top : top + rows, left : left + columns] = np.random.uniform(0, 255, (rows, columns, image.shape[2]))
    return image


class OpenCVImageDataGenerator(ImageDataGenerator):
    """ImageDataGenerator whose rotation, shift, zoom and flip are one OpenCV warp instead of SciPy's.

    It draws the same random numbers for these options; benchmarks/training.py measures how much faster it is, and SciPy
    need not be there. Pixels outside the image repeat its border (`fill_mode="nearest"`, Keras's default). Raises
    ValueError for the options that it doesn't know: shear, vertical flip, brightness, channel shift, other fill modes.
    """

    def apply_transform(self, x, transform_parameters):
        """Warp one image, float32 (height, width, 1), by the parameters that `get_random_transform` drew."""
        drawn = transform_parameters
        others = ("shear", "flip_vertical", "channel_shift_intensity", "brightness")
        if any(drawn.get(name) for name in others) or self.fill_mode != "nearest":
            raise ValueError("OpenCVImageDataGenerator does rotation, shift, zoom and horizontal flip, nearest border")
        angle = math.radians(drawn["theta"])
        cosine, sine = math.cos(angle), math.sin(angle)
        zoom_x, zoom_y = drawn["zx"] * (-1 if drawn["flip_horizontal"] else 1), drawn["zy"]
        # Where a pixel (x, y) of the result comes from, about the centre: mirrored, zoomed, shifted, turned, in the
        # order and with the axes of Keras's own apply_affine_transform.
        centre_x, centre_y = (x.shape[1] - 1) / 2, (x.shape[0] - 1) / 2
        from_x, from_y = drawn["tx"] - zoom_x * centre_x, drawn["ty"] - zoom_y * centre_y
        matrix = np.array(
            [
                [cosine * zoom_x, -sine * zoom_y, centre_x + cosine * from_x - sine * from_y],
                [sine * zoom_x, cosine * zoom_y, centre_y + sine * from_x + cosine * from_y],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(x, matrix, (x.shape[1], x.shape[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return warped[:, :, None]


class Ahead(keras.utils.PyDataset):
    """The batches of another PyDataset, made ahead by threads while the network learns; the same, in the same order.

    Where there is but one thread, Keras leaves this to TensorFlow, whose search for the best number of batches to make
    ahead holds up the end of many an epoch, by as long as the epoch took at worst (seen with TensorFlow 2.21)."""

    def __init__(self, batches):
        super().__init__(workers=2)
        self.batches, self.next, self.turn = batches, 0, threading.Condition()

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        with self.turn:  # one after the other, for they draw random numbers
            self.turn.wait_for(lambda: index in (0, self.next))
            try:
                return self.batches[index]
            finally:
                self.next = index + 1
                self.turn.notify_all()

    def on_epoch_end(self):
        self.batches.on_epoch_end()
