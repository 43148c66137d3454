"""What the parts of the live loop pass to one another."""

from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """image: BGR uint8 (height, width, 3). number: counts from 0 the frames that the source gave. seconds: its time in
    the film; in a live source the time since the first frame; 0 for an image."""

    image: np.ndarray
    number: int
    seconds: float


class Box(NamedTuple):
    """A rectangle in a frame, in pixels; x and y are its left and top edges."""

    x: int
    y: int
    width: int
    height: int


class Face(NamedTuple):
    """A face and what was read in it.

    label: one of the classifier's, or UNCERTAIN. confidence: the label's probability, beside UNCERTAIN the likeliest
    one's, 0 to 1. track_id: the face's identity, from 1. probabilities: float32 (classes,), smoothed over time.
    """

    box: Box
    label: str
    confidence: float
    track_id: int
    probabilities: np.ndarray
