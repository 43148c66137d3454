"""Image files and faces: read an image, crop a face, and turn it into the network's pixels."""

import os
import sys

import cv2
import numpy as np
from tqdm import tqdm

from expressions import IMAGE_SIZE, MAX_IMAGE_BYTES, UserError
from expressions.cli import escape_unprintable
from expressions.image_decoder import decode
from expressions.image_formats import inspect_image


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as `decode_image` does. Raises OSError, and UserError also for more than MAX_IMAGE_BYTES."""
    with open(path, "rb") as file:
        return decode_image(file.read(MAX_IMAGE_BYTES + 1), str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode the content of an image file, which messages call `name`.

    Returns:
        BGR uint8 (height, width, 3). The image is turned upright by its EXIF orientation, unless it has an alpha
        channel. Transparent parts become white, as in most viewers.

    Raises:
        UserError: It is no image of `image_formats.FORMATS`, or damaged, or larger than MAX_IMAGE_PIXELS.
    """
    try:
        if len(data) > MAX_IMAGE_BYTES:
            raise UserError(f"not an image, or too large a one: it has more than {MAX_IMAGE_BYTES >> 20} MB")
        info = inspect_image(data)
        image = decode(info)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if info.several:
        tqdm.write(escape_unprintable(f"{name}: holds several images; only the first is read"), file=sys.stderr)
    return image


def to_gray(image: np.ndarray) -> np.ndarray:
    """Turn an image into gray uint8 (height, width).

    Args:
        image: uint8, gray (height, width) or (height, width, 1), BGR (height, width, 3) or BGRA (height, width, 4).

    Raises:
        UserError: It is something else, such as the None of a file that cv2.imread can't read.
    """
    shape = getattr(image, "shape", ())
    channels = (*shape, 1)[2] if len(shape) in (2, 3) else 0
    if channels not in (1, 3, 4) or image.dtype != np.uint8 or not image.size:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        if image is None:
            found = "None, as cv2.imread returns for a file that it can't read"
        raise UserError(
            "an image must be a NumPy array of uint8, 0 to 255, gray (height, width) or BGR (height, width, 3), "
            f"and this is {found}"
        )
    if channels == 1:
        return image.reshape(image.shape[:2])
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if channels == 3 else cv2.COLOR_BGRA2GRAY)


def preprocess_face(image: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Turn an image of a face into the network's pixels; training and webcam both use this.

    Args:
        image: uint8, gray (height, width) or (height, width, 1), BGR (height, width, 3) or BGRA (height, width, 4).
        size: Of the result, in pixels.

    Returns:
        Gray uint8 (size, size). A gray image of that size comes back bit for bit.
    """
    image = to_gray(image)
    if image.shape != (size, size):
        # averaging avoids aliasing where a large face shrinks; a small one is interpolated
        shrinks = min(image.shape) > size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(image)


def crop(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Cut a box (x, y, width, height in pixels) out of an image (height, width) or (height, width, channels).

    The result is a view. Where the box reaches out of the image it is a copy, in which the image's border is repeated,
    as augmentation does in training.
    """
    x, y, width, height = box
    if x >= 0 and y >= 0 and y + height <= image.shape[0] and x + width <= image.shape[1]:
        return image[y : y + height, x : x + width]
    rows, columns = np.arange(y, y + height), np.arange(x, x + width)
    return image[rows.clip(0, image.shape[0] - 1)[:, None], columns.clip(0, image.shape[1] - 1)]
