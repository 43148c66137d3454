"""Find faces in gray frames with a Haar cascade.

A search of a whole frame takes as long as many frames may take. So the tracker asks for less: the surroundings of a
known face (`detect_near`), and one slice of the frame for new faces (`scan_slice`); eight slices cover the frame.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from expressions import UserError
from expressions.inference.types import Box, Detection

MAX_FRAME_SIDE = 640  # pixels; a larger frame is searched at this size, because time grows with the pixels
MIN_FACE_SIZE = 30  # pixels in the searched frame
CASCADE_WINDOW = 24  # pixels, width of the cascade's window
ROI_FACE_SIZE, ROI_SCALE = 52, 1.5  # pixels of the face in a region of interest; its width, in widths of the face

# slices of a frame: (how often it is halved, which band, of how many); they take about the same time, and those for
# small faces alternate with those for large faces
SLICES = [(0, 0, 4), (1, 0, 3), (2, 0, 1), (0, 1, 4), (1, 1, 3), (0, 2, 4), (1, 2, 3), (0, 3, 4)]


class HaarDetector:
    """Finds frontal faces (Viola and Jones 2001, doi:10.1109/CVPR.2001.990517).

    Raises UserError where the cascade's XML file is missing or unfit, or this OpenCV has no cascade classifier.
    """

    def __init__(self, path: str | os.PathLike):
        if not hasattr(cv2, "CascadeClassifier"):
            raise UserError(f"OpenCV {cv2.__version__} has no CascadeClassifier; run: pip install 'opencv-python<5'")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such cascade file; it comes with this project, get it from there")
        self.cascade = cv2.CascadeClassifier()
        with contextlib.suppress(cv2.error):  # raised where the file is no XML
            self.cascade.load(os.fsencode(path))
        if self.cascade.empty():
            raise UserError(f"{path}: not a Haar cascade that OpenCV can read; get the project's own file again")

    def detect(self, gray: np.ndarray) -> list[Detection]:
        """Search a whole frame, uint8 (height, width), from the left; scores are the means of both mirror images."""
        found = []
        for box in self.cascade.detectMultiScale(gray, 1.1, minNeighbors=3, minSize=(MIN_FACE_SIZE, MIN_FACE_SIZE)):
            both = [face for flip in (False, True) for face in self.detect_near(gray, to_detection(box), flip=flip)]
            found += group_detections(both, lambda scores: sum(scores) / 2)
        return sorted(group_detections(found))

    def detect_near(
        self, gray: np.ndarray, place: Detection, roi_scale: float = ROI_SCALE, flip: bool = False
    ) -> list[Detection]:
        """Search closely around a place in a frame, uint8 (height, width), for faces of about its size.

        The region is `roi_scale` times as wide as the place. With `flip`, its mirror image is searched instead; what
        only resembles a face is seldom found in both.
        """
        roi, left, top, scale = crop_roi(gray, place, roi_scale, ROI_FACE_SIZE)
        smallest, largest = round(ROI_FACE_SIZE * 0.8), round(ROI_FACE_SIZE * 1.25)
        if min(roi.shape) < smallest:
            return []
        if flip:
            roi = cv2.flip(roi, 1)
        boxes, _, scores = self.cascade.detectMultiScale3(
            roi, 1.1, minNeighbors=0, minSize=(smallest,) * 2, maxSize=(largest,) * 2, outputRejectLevels=True
        )
        if flip:
            boxes = [(roi.shape[1] - x - width, y, width, height) for x, y, width, height in boxes]
        found = (to_detection(box, left, top, 1 / scale, score) for box, score in zip(boxes, scores, strict=True))
        # the scores are sums over the last stage; this combination of them tells faces better than their maximum
        return group_detections(found, lambda scores: math.sqrt(sum(scores)))

    def scan_slice(self, gray: np.ndarray, index: int) -> list[Detection]:
        """Search one slice of a frame coarsely, the next one with each `index`; most of what is found is no face."""
        halvings, band, bands = SLICES[index % len(SLICES)]
        down, right = divmod(index // len(SLICES) % 4, 2)  # the search skips every other pixel: others each time
        found = []
        while min(gray.shape) >> halvings >= CASCADE_WINDOW:
            height, width = (side >> halvings for side in gray.shape)
            image = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA) if halvings else gray
            left, smallest = band * width // bands + right, max(CASCADE_WINDOW, MIN_FACE_SIZE >> halvings)
            part = image[down:, left : (band + 1) * width // bands + 2 * CASCADE_WINDOW]
            boxes = self.cascade.detectMultiScale(
                part, 1.2, minNeighbors=0, minSize=(smallest,) * 2, maxSize=(2 * CASCADE_WINDOW - 1,) * 2
            )
            # sorted, because the threads of the cascade find them in any order
            found += sorted(to_detection(box, left << halvings, down << halvings, 1 << halvings) for box in boxes)
            if halvings < 2:
                break
            halvings += 1  # the last slice is all that is left: large faces, which are found quickly
        return found


def downscale(gray: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a frame with no side longer than MAX_FRAME_SIDE, and its scale, at most 1."""
    scale = MAX_FRAME_SIDE / max(gray.shape)
    if scale >= 1:
        return gray, 1
    size = [max(1, round(side * scale)) for side in reversed(gray.shape)]
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA), scale


def crop_roi(gray: np.ndarray, place: Detection, roi_scale: float, size: int) -> tuple[np.ndarray, int, int, float]:
    """Cut out the region around a place, `roi_scale` times as wide, and scale it so that the face is `size` wide.

    Returns:
        The region, gray uint8, smaller at the edge of the frame; its left and top edges in the frame; and the scale.
    """
    half, scale = place.size * roi_scale / 2, size / place.size
    left, top = (max(0, round(value - half)) for value in place[:2])
    roi = gray[top : max(top, round(place.y + half)), left : max(left, round(place.x + half))]
    if min(roi.shape) * scale < 1:
        return roi[:0, :0], left, top, scale
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(roi, None, fx=scale, fy=scale, interpolation=method), left, top, scale


def to_detection(box: Box, left: int = 0, top: int = 0, scale: float = 1, score: float = 0) -> Detection:
    """Convert a box in a part of the frame that begins at (left, top) and was shrunk by `scale`."""
    x, y, width, height = (float(value) * scale for value in box)
    return Detection(x + width / 2 + left, y + height / 2 + top, width, float(score))


def iou(one: Detection, other: Detection) -> float:
    """Return the intersection over union of two squares."""
    reach = (one.size + other.size) / 2
    width = min(reach - abs(one.x - other.x), one.size, other.size)
    height = min(reach - abs(one.y - other.y), one.size, other.size)
    intersection = max(0, width) * max(0, height)
    return intersection / (one.size**2 + other.size**2 - intersection)


def group_detections(faces: Iterable[Detection], combine: Callable[[list[float]], float] = max) -> list[Detection]:
    """Replace detections that overlap by their mean, with `combine` of their scores."""
    faces, groups = sorted(faces, key=lambda face: (-face.score, *face)), []  # in whatever order they were found
    while faces:
        same = [face for face in faces if iou(face, faces[0]) > 0.4]
        scores = [max(0, face.score) for face in same]
        x, y, size, _ = np.average(same, axis=0, weights=np.array(scores) + 2)
        groups.append(Detection(x, y, size, combine(scores)))
        faces = [face for face in faces if face not in same]
    return groups
