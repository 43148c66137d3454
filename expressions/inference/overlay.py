"""Draw what was found on a frame."""

import cv2
import numpy as np

from expressions import UNCERTAIN

# Okabe and Ito's palette (2008), which colour-blind people can tell apart; blue, green, red
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
OTHER_COLOUR = (0, 159, 230)
DARK, LIGHT = (0, 0, 0), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(frame, faces, labels=()):
    """Draw each face's box, number, label and confidence on a copy of the frame, and bars of all its probabilities
    where `labels` names them.

    frame: BGR uint8 (height, width, 3). faces: with box (x, y, width, height in pixels), number (None is not drawn),
    label, confidence (0 to 1) and probabilities (0 to 1, in the order of `labels`).
    """
    picture, scale, bars = frame.copy(), scale_of(frame), []
    for face in faces:
        colour = COLOURS.get(face.label, OTHER_COLOUR)
        x, y, width, height = face.box
        line = max(1, round(3 * scale))
        for outline, ink in ((line + 2, DARK), (line, colour)):  # the dark rim is seen on any background
            cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), ink, outline)
        if labels:
            bars.append(draw_bars(picture, face, labels, scale, [*(other.box for other in faces), *bars]))
    for face in faces:  # last, so that nothing covers a text
        sureness = "" if face.label == UNCERTAIN else f" {face.confidence:.0%}"
        colour = COLOURS.get(face.label, OTHER_COLOUR)
        draw_label(picture, f"{face.track_id} {face.label}{sureness}", face.box[:2], scale, colour)
    return picture


def draw_bars(picture, face, labels, scale, taken):
    """A bar for each probability of a face, beside its box: on the side where there is more room, or the other one, or
    on its chin where both would cover one of the boxes `taken`. Returns the place of the bars, a box like those."""
    row, margin = round(24 * scale), round(6 * scale)
    names = max(cv2.getTextSize(label, FONT, scale * 0.7, 1)[0][0] for label in labels)
    longest = round(90 * scale)
    width, height = names + longest + 3 * margin, row * len(labels) + margin
    x, y, box_width, box_height = face.box
    beside = max(y, 2 * row)  # under a label at the upper edge
    places = [(x + box_width + margin, beside), (x - margin - width, beside)]
    if picture.shape[1] - x - box_width < x:
        places.reverse()
    places.append((x + (box_width - width) // 2, y + box_height - height))
    for left, top in places:
        left = max(0, min(left, picture.shape[1] - width))
        top = max(0, min(top, picture.shape[0] - height))
        place = left, top, width, height
        if all(disjoint(place, other) for other in taken):
            break
    panel = picture[top : top + height, left : left + width]
    panel[:] = panel // 4  # darkened, so that the scene stays to be seen
    for index, (label, probability) in enumerate(zip(labels, face.probabilities, strict=True)):
        bottom = (index + 1) * row
        cv2.putText(
            panel, label, (margin, bottom - row // 6), FONT, scale * 0.7, LIGHT, max(1, round(1.5 * scale)), cv2.LINE_AA
        )
        start, end = 2 * margin + names, 2 * margin + names + round(longest * float(probability))
        cv2.rectangle(
            panel, (start, bottom - row + margin), (end, bottom), COLOURS.get(label, OTHER_COLOUR), cv2.FILLED
        )
    return place


def disjoint(one, other):
    """Whether two boxes (x, y, width, height) have nothing in common."""
    return any(one[i] + one[i + 2] <= other[i] or other[i] + other[i + 2] <= one[i] for i in (0, 1))


def draw_status(picture, text):
    """Write a small line of text into the lower left corner of a picture, in place, as small as it has to be to fit."""
    scale = scale_of(picture) * 0.75
    fits = scale * 0.95 * picture.shape[1] / cv2.getTextSize(text, FONT, scale, 1)[0][0]
    draw_label(picture, text, (0, picture.shape[0]), min(scale, fits), (60, 60, 60))


def scale_of(picture):
    """The size of letters, so that they can be read in a picture of any size."""
    return max(0.4, min(picture.shape[:2]) / 800)


def draw_label(picture, text, corner, scale, colour):
    """Write text on a plate of `colour` whose lower left corner is at `corner`, moved into the picture if need be."""
    thickness = max(1, round(2 * scale))
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    margin = max(2, round(6 * scale))
    plate_width, plate_height = width + 2 * margin, height + below + 2 * margin
    left = max(0, min(corner[0], picture.shape[1] - plate_width))
    top = max(0, min(corner[1], picture.shape[0]) - plate_height)
    cv2.rectangle(picture, (left, top), (left + plate_width, top + plate_height), colour, cv2.FILLED)
    luma = np.dot(colour, (0.114, 0.587, 0.299))  # ITU-R BT.601, of blue, green, red
    ink = DARK if luma > 110 else LIGHT
    cv2.putText(picture, text, (left + margin, top + margin + height), FONT, scale, ink, thickness, cv2.LINE_AA)
