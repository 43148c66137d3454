"""What every part of the project agrees on: the labels and their order, the size of a face, the way from a picture to
the network's input, and the one exception for what a user can mend.

Training, evaluation and the webcam all go through `prepare` and `SCALE`, so a model sees at the camera exactly what it
saw in training.
"""

import contextlib
import os

import cv2
import numpy as np

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
UNCERTAIN = "uncertain"  # stands in the place of a label where none is likely enough
IMAGE_SIZE = 48  # pixels, width and height
SCALE = 1 / 255  # the network's input is a pixel (0..255) times SCALE


class UserError(Exception):
    """Something the user can mend. Its one line says what is wrong, where, and what to do."""


@contextlib.contextmanager
def quiet():
    """Keep from the screen what libraries tell of themselves there, also those that aren't written in Python."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for stream in kept:
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)


def prepare(image, size=IMAGE_SIZE):
    """Turn a picture of a face into the network's pixels.

    image: uint8 array, (height, width) or (height, width, 1) gray, (height, width, 3) BGR, or (height, width, 4) BGRA.
    size: width and height of the result in pixels.
    Returns a uint8 array (size, size), gray. An image that is gray and of that size already comes back bit for bit.
    """
    if image.ndim == 3:
        if image.shape[2] == 1:
            image = image[:, :, 0]
        else:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if image.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)
    if image.shape != (size, size):
        # averaging keeps a large face from turning into a sieve of single pixels; a small one is interpolated
        shrinks = min(image.shape) > size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(image, dtype=np.uint8)
