"""What every part of the project agrees on: the labels and their order, the size of a face, the way from a file to a
picture and on to the network's input; the one exception for what a user can mend; how files and the terminal are used.

Training, evaluation and the webcam all go through `prepare` and `SCALE`, so a model sees at the camera exactly what it
saw in training.
"""

import contextlib
import os
import signal
import sys

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MOST_PIXELS = 2**27  # of a picture: a small file may unpack to one that no memory holds
MOST_BYTES = 2**29  # of its file
# read by OpenCV and TensorFlow when they are imported, which is after this
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its chatter hides the program's own words
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # its faster kernels, which it leaves off on older processors

import cv2
import numpy as np

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
UNCERTAIN = "uncertain"  # stands in the place of a label where none is likely enough
IMAGE_SIZE = 48  # pixels, width and height
SCALE = 1 / 255  # the network's input is a pixel (0..255) times SCALE


class UserError(Exception):
    """Something the user can mend. Its one line says what is wrong, where, and what to do."""


def printable(text):
    """`text` as one line for a terminal: what is not printable in it, such as a line end in the name of a file or a
    command to the terminal, becomes its code."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))


def as_program(work, arguments):
    """The exit status that `work(arguments)` returns, whatever its terminal is like and does.

    Asked to end, or its terminal closed, it ends as after Ctrl-C: by a KeyboardInterrupt. What the terminal has no
    letters for becomes its code. Once nobody reads any more what it prints, it ends quietly."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by what started the program
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # nohup has the program deaf to the second
        number = getattr(signal, name, None)  # Windows has no such
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        status = work(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `head` has read enough
        for stream in (sys.stdout, sys.stderr):  # else Python would complain of it at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141  # as of other programs, which the signal SIGPIPE, 13, ends


@contextlib.contextmanager
def whole(path, partial=None):
    """For `with`: the Path of a file to write, which gets the name `path` once it is whole. If that fails nothing of it
    is left, and what was at `path` stays.

    partial: that Path, where several processes may write at once."""
    partial = partial or path.with_suffix(f".partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def claim(file, name):
    """Keep other programs from writing the open `file` until it is closed, or this program is killed.

    Raises UserError, with `name` for the file, when one is at it; then it is closed."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{name}: another program is writing it; choose another name") from None
    except OSError:  # a file system without locks
        pass


@contextlib.contextmanager
def quiet():
    """Keep from the screen what libraries tell of themselves there, also those that aren't written in Python."""
    kept = {}
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # closed by what started the program
            kept[stream] = os.dup(stream)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for stream in kept:
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)


def read_picture(path):
    """The picture in the file at `path`; see `decode`. None also for a file of more than MOST_BYTES. Raises OSError."""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    return decode(np.frombuffer(data, np.uint8)) if len(data) <= MOST_BYTES else None


def decode(data):
    """The picture in `data`, a file's bytes as a uint8 array; None if OpenCV can't read it or it has more than
    MOST_PIXELS. Returns BGR uint8 (height, width, 3), turned upright as its EXIF data say, but for one with transparent
    parts; they lie on white, as in most viewers."""
    try:
        with quiet():  # libraries that OpenCV uses complain on the screen
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
            layers = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if image is not None else None
    except cv2.error:  # nothing in it, or too much
        return None
    if layers is None or layers.ndim < 3 or layers.shape[2] < 4:
        return image
    if layers.dtype == np.uint16:
        layers = cv2.convertScaleAbs(layers, alpha=255 / 65535)
    opacity = cv2.merge([layers[:, :, 3]] * 3)
    return cv2.add(cv2.multiply(layers[:, :, :3], opacity, scale=1 / 255), 255 - opacity)


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
