"""What the parts of the live loop pass to one another."""

from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """One frame of a source.

    Attributes:
        image: BGR uint8 (height, width, 3).
        number: Counts the frames that the source gave, from 0.
        seconds: Its time in the video; in a live source the time since the first frame; 0 for an image.
    """

    image: np.ndarray
    number: int
    seconds: float


class Box(NamedTuple):
    """A rectangle in a frame, in pixels; x and y are its left and top edges."""

    x: int
    y: int
    width: int
    height: int


class Detection(NamedTuple):
    """A face that the cascade found: centre and width in pixels of the searched frame, and the cascade's score.

    The score is about 4 for faces, 1 for what only resembles one (see `detector.combine_scores`).
    """

    x: float
    y: float
    size: float
    score: float = 0.0


class Face(NamedTuple):
    """A face and its expression.

    Attributes:
        box: Where it is.
        label: One of the classifier's, or UNCERTAIN.
        confidence: The label's probability, 0 to 1; with UNCERTAIN, that of the likeliest label.
        track_id: The identity of the face, from 1.
        probabilities: float32 (classes,), smoothed over time.
    """

    box: Box
    label: str
    confidence: float
    track_id: int
    probabilities: np.ndarray
