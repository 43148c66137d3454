"""Draw the recognized faces on a frame."""

from collections.abc import Sequence

import cv2
import numpy as np

from expressions import UNCERTAIN
from expressions.inference.types import Face

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
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(frame: np.ndarray, faces: Sequence[Face], labels: Sequence[str] = ()) -> np.ndarray:
    """Draw the box, track_id, label and confidence of each face on a copy of a frame, BGR uint8 (height, width, 3).

    Boxes may reach out of the frame. `labels` are the names of the probabilities, to draw a bar for each.
    """
    image, scale, taken = frame.copy(), _text_scale(frame), [face.box for face in faces]
    for face in faces:
        x, y, width, height = face.box
        corners, line = ((x, y), (x + width - 1, y + height - 1)), max(1, round(3 * scale))
        cv2.rectangle(image, *corners, DARK, line + 2)  # a dark rim is seen on any background
        cv2.rectangle(image, *corners, _colour(face.label), line)
        if labels:
            taken.append(_draw_bars(image, face, labels, scale, taken))
    for face in faces:  # last, so that nothing covers a text
        confidence = "" if face.label == UNCERTAIN else f" {face.confidence:.0%}"
        _draw_label(image, f"{face.track_id} {face.label}{confidence}", face.box[:2], scale, _colour(face.label))
    return image


def _draw_bars(image, face, labels, scale, taken):
    """Draw the bars of a face beside it, on the side with more room, or else on its chin; return their box."""
    row, margin = round(24 * scale), round(6 * scale)
    name_width = max(cv2.getTextSize(label, FONT, scale * 0.7, 1)[0][0] for label in labels)
    bar_width = round(90 * scale)
    width, height = name_width + bar_width + 3 * margin, row * len(labels) + margin
    x, y, box_width, box_height = face.box
    beside = max(y, 2 * row)  # below the label at the upper edge
    places = [(x + box_width + margin, beside), (x - margin - width, beside)]
    if image.shape[1] - x - box_width < x:
        places.reverse()
    places.append((x + (box_width - width) // 2, y + box_height - height))
    for left, top in places:
        left = max(0, min(left, image.shape[1] - width))
        top = max(0, min(top, image.shape[0] - height))
        place = left, top, width, height
        if not any(_overlap(place, other) for other in taken):
            break
    panel = image[top : top + height, left : left + width]
    panel[:] = panel // 4  # darker, but the scene stays visible
    thickness, start = max(1, round(1.5 * scale)), 2 * margin + name_width
    for bottom, label, probability in zip(range(row, height, row), labels, face.probabilities, strict=True):
        cv2.putText(panel, label, (margin, bottom - row // 6), FONT, scale * 0.7, LIGHT, thickness, cv2.LINE_AA)
        end = start + round(bar_width * float(probability))
        cv2.rectangle(panel, (start, bottom - row + margin), (end, bottom), _colour(label), cv2.FILLED)
    return place


def _overlap(one, other):
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def draw_status(image: np.ndarray, text: str) -> None:
    """Draw a line of text in the lower left corner of a BGR image, in place, as small as it has to be to fit."""
    scale = _text_scale(image) * 0.75
    fitting = scale * 0.95 * image.shape[1] / cv2.getTextSize(text, FONT, scale, 1)[0][0]
    _draw_label(image, text, (0, image.shape[0]), min(scale, fitting), STATUS_COLOUR)


def _draw_label(image, text, corner, scale, colour):
    """Draw text on a plate of a colour; `corner` is its lower left one, moved into the image if necessary."""
    thickness = max(1, round(2 * scale))
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    margin = max(2, round(6 * scale))
    plate_width, plate_height = width + 2 * margin, height + baseline + 2 * margin
    left = max(0, min(corner[0], image.shape[1] - plate_width))
    top = max(0, min(corner[1], image.shape[0]) - plate_height)
    cv2.rectangle(image, (left, top), (left + plate_width, top + plate_height), colour, cv2.FILLED)
    luma = np.dot(colour, (0.114, 0.587, 0.299))  # ITU-R BT.601, of blue, green, red
    text_colour = DARK if luma > 110 else LIGHT
    cv2.putText(image, text, (left + margin, top + margin + height), FONT, scale, text_colour, thickness, cv2.LINE_AA)


def _colour(label):
    return COLOURS.get(label, OTHER_COLOUR)


def _text_scale(image):
    return max(0.4, min(image.shape[:2]) / 800)  # legible in an image of any size
