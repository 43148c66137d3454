"""What the parts of the live loop pass to one another."""

from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """One frame of a source."""

    image: np.ndarray  # BGR uint8 (height, width, 3)
    number: int  # counts the frames that the source gave, from 0
    seconds: float  # its time in the video; in a live source the time since the first frame; 0 for an image


class Box(NamedTuple):
    """A rectangle in a frame, in pixels; x and y are its left and top edges."""

    x: int
    y: int
    width: int
    height: int


class Detection(NamedTuple):
    """A face that a detector found, in pixels of the searched frame: a square's centre and width, and its score."""

    x: float
    y: float
    size: float
    score: float = 0.0  # about 4 for faces, 1 for what only resembles one
    angle: float = 0.0  # degrees, clockwise, by which the line through the eyes is turned; 0 where that is not known


class Face(NamedTuple):
    """A face and its expression."""

    box: Box
    label: str  # one of the classifier's, or UNCERTAIN
    confidence: float  # the label's probability, 0 to 1; with UNCERTAIN, that of the likeliest label
    track_id: int  # the identity of the face, from 1
    probabilities: tuple[float, ...]  # of each class, smoothed over time

    @property
    def number(self) -> int:
        """The `track_id`, by its name in earlier versions."""
        return self.track_id
