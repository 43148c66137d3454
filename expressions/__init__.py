"""The contract that training and the webcam share: labels and their order, image size and scale, UserError.

Both sides turn a face into network input by `images.preprocess_face` and RESCALE, so a model sees at the camera exactly
what it saw in training. This package must be imported before OpenCV and TensorFlow, since it sets their environment.
"""

import os
from pathlib import Path

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
UNCERTAIN = "uncertain"  # shown instead of a label where none is likely enough
IMAGE_SIZE = 48  # pixels, width and height
RESCALE = 1 / 255  # the network's input is a pixel (0..255) times RESCALE

_PACKAGE = Path(__file__).resolve().parent
# the folder that has models/ and the Haar cascade: the project's; `pip install .` copies both into the package
ROOT = _PACKAGE if (_PACKAGE / "models").is_dir() else _PACKAGE.parent

MAX_IMAGE_PIXELS = 2**27  # a small file may unpack to an image that no memory holds
MAX_IMAGE_BYTES = 2**27  # of an image file: 45 megapixels of 16 bits aren't half of it

# OpenCV and TensorFlow read these when they are imported
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_IMAGE_PIXELS))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its log hides the program's own output
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster kernels, which are off by default on older processors


class UserError(Exception):
    """An error that the user can fix. Its one-line message says what is wrong, where, and what to do."""
