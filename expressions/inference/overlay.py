"""Draw the recognized faces on a frame: a box around each, and a plate with its number, label and probabilities."""

import functools
from collections.abc import Sequence
from itertools import accumulate, cycle, pairwise

import cv2
import numpy as np

from expressions import UNCERTAIN
from expressions.inference.types import Box, Face

# the palette of Okabe and Ito (2008), which colour-blind people can tell apart; blue, green, red
COLOURS = {
    "angry": (0, 94, 213),
    "disgust": (115, 158, 0),
    "fear": (167, 121, 204),
    "happy": (66, 228, 240),
    "neutral": (220, 220, 220),
    "sad": (178, 114, 0),
    "surprise": (233, 180, 86),
    UNCERTAIN: (130, 130, 130),
}
OTHER_COLOUR, STATUS_COLOUR = (0, 159, 230), (60, 60, 60)
DARK, LIGHT = (0, 0, 0), (255, 255, 255)
SIDES = range(8)  # of a face, the best first: over it from its left edge or to its right one, under it, right, left
FONT = cv2.FONT_HERSHEY_SIMPLEX
MIN_LINE = 2  # pixels of colour, which are seen on small frames as well
MAX_PLACED = 12  # faces whose plates look for a place; a crowd leaves none, and would make the frame late
MAX_PLACES = 100  # of tracks, whose place is remembered; those that are gone don't come back


def palette(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each label of a model, and of UNCERTAIN. Other classes get colours that are left."""
    spare = cycle([OTHER_COLOUR, *(colour for label, colour in COLOURS.items() if label not in (*labels, UNCERTAIN))])
    return {label: COLOURS.get(label) or next(spare) for label in (*labels, UNCERTAIN)}


class Annotator:
    """Draws the faces in the frames of one source.

    A plate lies beside its face, at another free place with a line to the face, or, where the frame has none, at its
    edge. It stays at its place for as long as that is free.

    Args:
        labels: The model's.
        bars: Whether to draw the probabilities in the plate, as one bar of as many colours.
    """

    def __init__(self, labels: Sequence[str], bars: bool = False):
        self.labels, self.bars, self.colours = labels, bars, palette(labels)
        self.places = {}  # of each track: the side of its face, or the left upper corner of the plate

    def draw(self, frame: np.ndarray, faces: Sequence[Face], taken: Sequence[Box] = ()) -> np.ndarray:
        """Draw the faces on a copy of a frame, BGR uint8 (height, width, 3). Their boxes may reach out of the frame.

        Plates keep clear of what is `taken`.
        """
        image, scale = frame.copy(), _text_scale(frame)
        line, colours = max(MIN_LINE, round(3 * scale)), [self.colours.get(face.label, OTHER_COLOUR) for face in faces]
        plates = self.place_plates(frame, faces, taken)
        self._draw_links(image, frame, faces, plates, colours, line)
        for face, colour in zip(faces, colours, strict=True):
            x, y, width, height = face.box
            corners = (x, y), (x + width - 1, y + height - 1)
            cv2.rectangle(image, *corners, DARK, line + 2)  # a dark rim is seen on any background
            cv2.rectangle(image, *corners, colour, line)
        for face, plate, colour in zip(faces, plates, colours, strict=True):  # last, so that nothing covers a text
            confidence = "" if face.label == UNCERTAIN else f" {face.confidence:.0%}"
            _draw_plate(image, f"{face.track_id} {face.label}{confidence}", plate, scale, colour)
            if self.bars:
                self._draw_bar(image, face, plate, scale)
        return image

    def place_plates(self, frame: np.ndarray, faces: Sequence[Face], taken: Sequence[Box] = ()) -> list[Box]:
        """Choose where the plates of the faces in a frame go.

        First those that have a place, then those with the fewest sides to choose from, last those with none.
        """
        if len(faces) > MAX_PLACED:
            return [_at(SIDES[0], face.box, self._plate_size(frame, face.track_id), frame) for face in faces]
        boxes, plates = [face.box for face in faces], {}
        if len(self.places) > MAX_PLACES:
            self.places = {face.track_id: self.places.get(face.track_id) for face in faces}
        sizes = {face.track_id: self._plate_size(frame, face.track_id) for face in faces}

        def count_free_sides(face):
            if self.places.get(face.track_id) is not None:
                return -1
            around = (_at(side, face.box, sizes[face.track_id], frame) for side in SIDES)
            return sum(not _covers(plate, [*boxes, *taken]) for plate in around) or len(SIDES) + 1

        for face in sorted(faces, key=count_free_sides):
            size, place = sizes[face.track_id], self.places.get(face.track_id)
            others = [*taken, *plates.values()]
            plate = place is not None and _at(place, face.box, size, frame)
            if not plate or _covers(plate, boxes + others):
                place, plate = _choose_place(place, face.box, size, frame, boxes, others)
            self.places[face.track_id], plates[face.track_id] = place, plate
        return [plates[face.track_id] for face in faces]

    def _plate_size(self, frame, track_id):
        """The size for the longest label, so that a plate doesn't change with the label."""
        scale = _text_scale(frame)
        texts = [f"{track_id} {label} 100%" for label in self.labels] + [f"{track_id} {UNCERTAIN}"]
        width, height = _fit(max(texts, key=lambda text: _text_size(text, scale)), scale)
        return width, height + self.bars * _bar_height(scale)

    def _draw_links(self, image, frame, faces, plates, colours, line):
        """Draw a line from each face to a plate that lies elsewhere, behind all faces."""
        links = [_link(face.box, plate) for face, plate in zip(faces, plates, strict=True)]
        for (start, end), colour in zip(links, colours, strict=True):
            if start != end:
                cv2.line(image, start, end, DARK, line + 2, cv2.LINE_AA)
                cv2.line(image, start, end, colour, line, cv2.LINE_AA)
        if any(start != end for start, end in links):
            for x, y, width, height in (face.box for face in faces):
                rows, columns = slice(max(0, y), max(0, y + height)), slice(max(0, x), max(0, x + width))
                image[rows, columns] = frame[rows, columns]

    def _draw_bar(self, image, face, plate, scale):
        left, right, bottom = plate.x + 1, plate.x + plate.width - 1, plate.y + plate.height
        top = bottom - _bar_height(scale)
        cv2.rectangle(image, (plate.x, top), (right, bottom - 1), DARK, cv2.FILLED)
        ends = [left + round(end * (right - left)) for end in accumulate(face.probabilities, initial=0)]
        for label, (start, end) in zip(self.labels, pairwise(ends), strict=False):
            if start < end:
                cv2.rectangle(image, (start, top + 1), (end - 1, bottom - 2), self.colours[label], cv2.FILLED)


def draw_status(image: np.ndarray, text: str) -> None:
    """Draw a line of text in the lower left corner of a BGR image, in place, as small as it has to be to fit."""
    plate, scale = place_status(image, text)
    _draw_plate(image, text, plate, scale, STATUS_COLOUR)


def place_status(image: np.ndarray, text: str) -> tuple[Box, float]:
    """Return where `draw_status` draws, and the scale of its font."""
    scale = _text_scale(image) * 0.75
    scale = min(scale, scale * 0.95 * image.shape[1] / _text_size(text, scale)[0])
    width, height = _fit(text, scale)
    return Box(0, max(0, image.shape[0] - height), width, height), scale


def _at(place, box, size, frame):
    """The plate at a place, moved into the frame if necessary."""
    (x, y, width, height), (plate_width, plate_height) = box, size
    if place in SIDES:
        right, lower = x + width - plate_width, y + height - plate_height
        corners = [(x, y - plate_height), (right, y - plate_height), (x, y + height), (right, y + height)]
        corners += [(x + width, y), (x + width, lower), (x - plate_width, y), (x - plate_width, lower)]
        place = corners[place]
    room = frame.shape[1] - plate_width, frame.shape[0] - plate_height
    return Box(*(max(0, min(corner, most)) for corner, most in zip(place, room, strict=True)), *size)


def _choose_place(before, box, size, frame, boxes, others):
    """Return the best free place of a plate and the plate. Without a free one, it may cover faces but no other plate.

    A free place that touches the frame's edge, a face or another plate exists if any does, so these are tried.
    """
    for side in SIDES:
        if not _covers(plate := _at(side, box, size, frame), boxes + others):
            return side, plate
    first = _at(SIDES[0], box, size, frame)
    edges = np.array([*boxes, *others])
    edges = np.stack([edges[:, :2], edges[:, :2] + edges[:, 2:]], axis=2)  # of each: (left, right), (upper, lower)
    room = np.subtract(frame.shape[1::-1], size)
    corners, covered, distance = [], [], []
    for axis in (0, 1):
        low, high = edges[:, axis, 0], edges[:, axis, 1]
        tried = np.concatenate([[0, room[axis], first[axis]], low - size[axis], high]).clip(0, max(0, room[axis]))
        overlap = np.minimum(tried[:, None] + size[axis], high) - np.maximum(tried[:, None], low)
        corners.append(tried)
        covered.append(overlap.clip(0))
        apart = np.maximum(box[axis] - size[axis] - tried, tried - box[axis] - box[axis + 2]).clip(0)
        distance.append(apart + 0.01 * abs(tried - first[axis]))
    count = len(boxes)
    on_faces, on_others = (covered[0][:, part] @ covered[1][:, part].T for part in (slice(count), slice(count, None)))
    away = size[1] * np.hypot(*np.meshgrid(*distance, indexing="ij"))  # a pixel of way costs what a covered column does
    cost = 1e12 * (on_others > 0) + 1e9 * (on_faces > 0) + on_others + on_faces + away
    best = np.unravel_index(cost.argmin(), cost.shape)
    if before is not None and (on_faces + on_others)[best] and not _covers(_at(before, box, size, frame), others):
        return before, _at(before, box, size, frame)  # no better place is free
    place = int(corners[0][best[0]]), int(corners[1][best[1]])
    return place, Box(*place, *size)


def _covers(plate, boxes):
    x, y, width, height = plate
    return any(
        x < left + across and left < x + width and y < top + down and top < y + height
        for left, top, across, down in boxes
    )


def _link(box, plate):
    """The nearest points of a face's box and its plate; the same one where they touch."""
    points = []
    for axis in (0, 1):
        ends = box[axis], plate[axis], box[axis] + box[axis + 2], plate[axis] + plate[axis + 2]
        low, high = max(ends[:2]), min(ends[2:])
        if low <= high:
            points.append([(low + high) // 2] * 2)
        else:  # one of them ends before the other begins
            points.append([low, high] if box[axis] == low else [high, low])
    return tuple(zip(*points, strict=True))


def _draw_plate(image, text, plate, scale, colour):
    x, y, width, height = plate
    cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), colour, cv2.FILLED)
    luma = np.dot(colour, (0.114, 0.587, 0.299))  # ITU-R BT.601, of blue, green, red
    corner = x + _margin(scale), y + _margin(scale) + _text_size(text, scale)[1]
    cv2.putText(image, text, corner, FONT, scale, DARK if luma > 110 else LIGHT, _thickness(scale), cv2.LINE_AA)


def _text_scale(image):
    return max(0.4, min(image.shape[:2]) / 800)  # legible in an image of any size


def _thickness(scale):
    return max(1, round(2 * scale))


def _margin(scale):
    return max(2, round(6 * scale))


@functools.lru_cache(1000)
def _text_size(text, scale):
    """Width of a text, its height above the baseline, and below it."""
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, _thickness(scale))
    return width, height, baseline


def _fit(text, scale):
    """Width and height of a plate for a text."""
    width, height, below = _text_size(text, scale)
    return width + 2 * _margin(scale), height + below + 2 * _margin(scale)


def _bar_height(scale):
    return max(4, round(12 * scale))  # with a dark line above and under it
