"""Images as a poor camera sees them: seven corruptions of fixed strength, by which models are compared and chosen."""

import cv2
import numpy as np


def _each(change):
    return lambda images: np.stack([change(image) for image in images])


def _round(levels):
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def _add_noise(images):
    return _round(images + np.random.default_rng(0).normal(0, 10, images.shape))


def _shrink(image):
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _turn(images):  # one to the left, the next to the right
    height, width = images.shape[1:]
    turns = [cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1) for angle in (-20, 20)]
    options = {"dsize": (width, height), "borderMode": cv2.BORDER_REPLICATE}
    return np.stack([cv2.warpAffine(image, turns[row % 2], **options) for row, image in enumerate(images)])


def _compress(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)


CORRUPTIONS = {
    "noise of 10 gray levels": _add_noise,
    "blur of one pixel": _each(lambda image: cv2.GaussianBlur(image, (0, 0), 1)),
    "shrunk to 32 pixels": _each(_shrink),
    "turned by 20 degrees": _turn,
    "JPEG of quality 40": _each(_compress),
    "gamma 2": lambda images: _round(255 * (images / 255) ** 2),
    "half contrast": lambda images: _round(127.5 + (images - 127.5) / 2),
}


def corrupt(images: np.ndarray) -> dict[str, np.ndarray]:
    """All `images`, gray uint8 (n, height, width), with each of CORRUPTIONS; the same every time."""
    return {name: change(images) for name, change in CORRUPTIONS.items()}


def corrupt_in_turn(images: np.ndarray) -> np.ndarray:
    """All `images`, gray uint8 (n, height, width), each with one of CORRUPTIONS in turn: cheap to measure on."""
    corrupted = np.array(images)
    for number, change in enumerate(CORRUPTIONS.values()):
        if len(images) > number:
            corrupted[number :: len(CORRUPTIONS)] = change(images[number :: len(CORRUPTIONS)])
    return corrupted
