"""Draw what was found on a frame."""

import cv2

# Okabe and Ito's palette (2008), which colour-blind people can tell apart; blue, green, red
COLOURS = {
    "angry": (0, 94, 213),
    "disgust": (115, 158, 0),
    "fear": (167, 121, 204),
    "happy": (66, 228, 240),
    "neutral": (220, 220, 220),
    "sad": (178, 114, 0),
    "surprise": (233, 180, 86),
}
OTHER_COLOUR = (0, 159, 230)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(frame, faces, status=""):
    """Draw each face's box, label and confidence, and a line of status, on a copy of the frame.

    frame: BGR uint8 (height, width, 3). faces: with box (x, y, width, height in pixels), label, confidence (0 to 1).
    """
    picture = frame.copy()
    scale = max(0.4, min(frame.shape[:2]) / 800)
    for face in faces:
        colour = COLOURS.get(face.label, OTHER_COLOUR)
        x, y, width, height = face.box
        line = max(1, round(3 * scale))
        cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), (0, 0, 0), line + 2)  # seen on any background
        cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), colour, line)
        write(picture, f"{face.label} {face.confidence:.0%}", (x, y), scale, colour)
    if status:
        write(picture, status, (0, frame.shape[0]), scale * 0.8, (220, 220, 220))
    return picture


def write(picture, text, corner, scale, colour):
    """Write text on a plate of `colour` whose lower left corner is at `corner`, moved into the picture if need be."""
    thickness = max(1, round(2 * scale))
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    margin = max(2, round(6 * scale))
    plate_width, plate_height = width + 2 * margin, height + below + 2 * margin
    left = max(0, min(corner[0], picture.shape[1] - plate_width))
    top = max(0, min(corner[1], picture.shape[0]) - plate_height)
    cv2.rectangle(picture, (left, top), (left + plate_width, top + plate_height), colour, cv2.FILLED)
    blue, green, red = colour
    dark_text = 0.114 * blue + 0.587 * green + 0.299 * red > 110  # ITU-R BT.601 luma
    ink = (0, 0, 0) if dark_text else (255, 255, 255)
    cv2.putText(picture, text, (left + margin, top + margin + height), FONT, scale, ink, thickness, cv2.LINE_AA)
