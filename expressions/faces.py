"""Find faces in a gray frame with a Haar cascade."""

from pathlib import Path
from typing import NamedTuple

import cv2

from expressions import UserError

WORKING_SIDE = 640  # pixels; a larger frame is searched at this size, for the search takes time with every pixel
SMALLEST_FACE = 30  # pixels in the searched frame


class Box(NamedTuple):
    """A rectangle in a frame, in pixels; x and y are its left and top edges."""

    x: int
    y: int
    width: int
    height: int


class Face(NamedTuple):
    """A face and what was read in it. confidence: the label's probability, 0 to 1."""

    box: Box
    label: str
    confidence: float


class FaceDetector:
    """Finds frontal faces (Viola and Jones 2001, doi:10.1109/CVPR.2001.990517) with the OpenCV cascade at `path`.

    Raises UserError when the file is missing or no cascade, or this OpenCV has no cascade classifier.
    """

    def __init__(self, path):
        if not hasattr(cv2, "CascadeClassifier"):
            raise UserError(f"OpenCV {cv2.__version__} has no CascadeClassifier; run: pip install 'opencv-python<5'")
        if not Path(path).is_file():
            raise UserError(f"{path}: no such cascade file; it comes with this project, get it from there")
        try:
            self.cascade = cv2.CascadeClassifier(str(path))
        except (cv2.error, SystemError):  # OpenCV 4 raises on a file that is no XML, or returns an empty cascade
            self.cascade = None
        if self.cascade is None or self.cascade.empty():
            raise UserError(f"{path}: not a Haar cascade that OpenCV can read; get the project's own file again")

    def detect(self, gray):
        """Find the faces in `gray`, uint8 (height, width). Returns Boxes within the frame, from left to right."""
        height, width = gray.shape
        shrink = min(1, WORKING_SIDE / max(height, width))
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        found = self.cascade.detectMultiScale(
            gray, scaleFactor=1.1, minNeighbors=5, minSize=(SMALLEST_FACE, SMALLEST_FACE)
        )
        boxes = []
        for x, y, box_width, box_height in found:
            left, top = round(x / shrink), round(y / shrink)
            right, bottom = min(width, round((x + box_width) / shrink)), min(height, round((y + box_height) / shrink))
            boxes.append(Box(left, top, right - left, bottom - top))
        return sorted(boxes)


def crop(frame, box):
    """The part of a frame that lies in `box`: a view, (box.height, box.width) and the frame's channels."""
    return frame[box.y : box.y + box.height, box.x : box.x + box.width]
