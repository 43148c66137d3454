"""Small videos, images, frames and faces that several tests share."""

import shutil
import subprocess
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from conftest import write_video

from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source
from expressions.training import synthetic

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs Debian's package ffmpeg"
)


def video_source(rate=10):
    """What a Recorder needs to know of a source."""
    return SimpleNamespace(is_image=False, live=False, fps=rate, address="")


def gray(value, size=(160, 120)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def record_video(path, times=None, rate=10):
    """A grainy video whose frame at each of `times`, in seconds, is 20 brighter than the one before."""
    source, random = video_source(rate), np.random.default_rng(0)
    with Recorder(path, source) as recorder:
        for index, seconds in enumerate(np.arange(12) / rate if times is None else times):
            image = np.clip(gray(index * 20) + random.integers(-9, 10, (120, 160, 1)), 0, 255)
            recorder.write(np.uint8(image), seconds)
    return path


def write_image(path, value=100):
    cv2.imwrite(str(path), gray(value))
    return path


def levels(path):
    with Source(path) as source:
        return [round(frame.image.mean() / 20) for frame in source]


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-v", "error", *map(str, arguments)], check=True)


class Frame(NamedTuple):
    number: int
    seconds: float


class Face(NamedTuple):
    track_id: int
    label: str
    box: tuple = (1, 2, 30, 40)
    confidence: float = 0.5
    probabilities: tuple[float, ...] = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0)


RATE = 5  # frames a second


def write_scene(path, seconds, codec="MJPG"):
    """Two faces of which one moves about and the other comes and goes, in a scene that changes now and then."""
    random = np.random.default_rng(3)
    faces = [synthetic.draw_face(label, random, 90) for label in ("happy", "surprise")]
    images = []
    for number in range(round(seconds * RATE)):
        now = number / RATE
        frame = np.full((240, 320), 110 + 60 * (now // 45 % 2), np.uint8)
        x = round(40 + 25 * np.sin(now))
        frame[60:150, x : x + 90] = faces[0]
        if now % 10 < 7:
            frame[100:190, 200:290] = faces[1]
        images.append(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    return write_video(path, images, RATE, codec)


FRAMES = {
    "black": np.zeros((480, 640, 3), np.uint8),
    "white": np.full((480, 640, 3), 255, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8),
    "a pixel": np.full((1, 1, 3), 100, np.uint8),
    "a row": np.full((1, 500, 3), 100, np.uint8),
    "a column": np.full((500, 1, 3), 100, np.uint8),
    "8K": np.full((4320, 7680, 3), 100, np.uint8),
}
