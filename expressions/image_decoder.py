"""Decode images: the usual formats in this process, those whose headers don't tell the cost in one with limits."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from expressions import MAX_IMAGE_PIXELS, UserError
from expressions.files import suppress_output
from expressions.image_formats import LIMITED, ImageInfo

MAX_DECODE_SECONDS = 30  # of processor time, for one image
MAX_WAIT_SECONDS = 120  # for one image, on a busy machine
MAX_DECODE_BYTES = 3 * 2**30  # of memory, with what the libraries take; JPEG 2000 takes 4 bytes for each value
BLENDED_ROWS = 256

_lock = threading.Lock()  # the process decodes one image at a time
_process = None  # stays for the next image


def decode(info: ImageInfo) -> np.ndarray:
    """Decode an image that `inspect_image` has passed; see `images.decode_image`. Messages don't name the file."""
    return _decode_limited(info) if info.format in LIMITED else _decode_here(info)


def _decode_here(info):
    data, image = np.frombuffer(info.data, np.uint8), None
    with contextlib.suppress(cv2.error), suppress_output():  # libraries that OpenCV uses complain on the screen
        if info.format == "HEIC":
            image = _decode_heic(info.data)
        else:
            image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if info.alpha else None
            if not _has_alpha(image):
                image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise UserError("not an image that can be read, or too large a one")
    return _blend_with_white(image, info.format) if _has_alpha(image) else image


def _has_alpha(image):
    return image is not None and image.shape[2:] == (4,) and image.dtype in (np.uint8, np.uint16)


def _blend_with_white(layers, kind):
    highest = 255 if layers.dtype == np.uint8 else 65535
    if kind == "AVIF" and highest > 255:
        highest = 1023 if layers.max() < 1024 else 4095  # 10 or 12 bits
    image = np.empty((*layers.shape[:2], 3), np.uint8)
    for start in range(0, len(layers), BLENDED_ROWS):  # all rows together would take several times the memory
        rows = cv2.convertScaleAbs(layers[start : start + BLENDED_ROWS], alpha=255 / highest)
        opacity = cv2.merge([rows[:, :, 3]] * 3)
        image[start : start + BLENDED_ROWS] = cv2.add(
            cv2.multiply(rows[:, :, :3], opacity, scale=1 / 255), 255 - opacity
        )
    return image


def _decode_heic(data):
    try:
        import pillow_heif
    except ImportError:
        raise UserError("HEIC takes one more package: pip install pillow-heif; or convert it to JPEG") from None
    try:
        image = pillow_heif.open_heif(io.BytesIO(data), bgr_mode=True)
        width, height = image.size
        return np.array(image) if width * height <= MAX_IMAGE_PIXELS else None
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError):  # whatever is wrong with the file
        return None


def _decode_limited(info):
    global _process
    with _lock:
        if _process is None or _process.poll() is not None:
            _process = _start()
        process, done = _process, False
        timer = threading.Timer(MAX_WAIT_SECONDS, process.kill)
        timer.start()
        try:
            order = info.format, len(info.data), MAX_DECODE_SECONDS
            process.stdin.write(json.dumps(order).encode() + b"\n" + info.data)
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            image = np.empty(0 if isinstance(reply, str) else reply, np.uint8)  # a message, or the image's shape
            done = process.stdout.readinto(image) == image.size
        except (OSError, ValueError):  # it was stopped, or crashed
            pass
        finally:
            timer.cancel()
            if not done:
                process.kill()
                process.communicate()
    if not done:
        raise UserError("not an image that can be read, or too large a one: decoding takes too much time or memory")
    if isinstance(reply, str):
        raise UserError(reply)
    return image


def _start():
    code = "import sys; sys.path.insert(0, sys.argv[1]); from expressions import image_decoder as d; d.serve()"
    # -P: nor does it import from the working directory, where a stranger's files may be
    command = [sys.executable, "-Pc", code, str(Path(__file__).parents[1])]
    variables = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread takes memory
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **streams, env=variables)


def serve() -> None:
    """Decode the images that come on stdin until it ends; run in a process of its own.

    An image comes as a line of JSON (its format, how many bytes it has, seconds that it may take) and its content; it
    is answered with a line of JSON, the pixels' shape, and the pixels, or with an error message as a JSON text.
    """
    cv2.setNumThreads(1)
    while line := sys.stdin.buffer.readline():
        kind, size, seconds = json.loads(line)
        pixels = b""
        try:
            limit_resources(CPU=seconds + int(time.process_time()), DATA=MAX_DECODE_BYTES)
            pixels = _decode_here(ImageInfo(kind, sys.stdin.buffer.read(size), alpha=True))
            reply = pixels.shape
        except UserError as error:
            reply = str(error)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.write(pixels)
        sys.stdout.buffer.flush()


def limit_resources(**limits: int) -> None:
    """Limit what this process may take: CPU in seconds since it began, DATA (memory) and FSIZE (of a file) in bytes."""
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        for name, limit in limits.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]  # nobody can raise it, and the user may have lowered it
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
