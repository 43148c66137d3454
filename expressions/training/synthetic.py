"""Faces drawn by the program: seven expressions told apart by brows, eyes and mouth, no photograph needed.

They let anyone try the training and run the tests without a data set. A network trained on them knows drawings only.
"""

import cv2
import numpy as np

from expressions import EMOTIONS, IMAGE_SIZE

CANVAS = 256  # pixels; drawn large with smooth edges, then shrunk

# What each expression does to a face, after the action units of the Facial Action Coding System (Ekman and Friesen
# 1978). Lengths are shares of the face's half width.
#   brow_inner, brow_outer: height of the brow's ends above its rest (negative: lowered)
#   eye: opening of the lids (1 at rest)      mouth_curve: height of its corners above its middle
#   mouth_open: gap between the lips          mouth_width: half its width      nose: wrinkles beside its root, 0 or 1
EXPRESSIONS = {
    #           brow_inner brow_outer   eye  curve  open  width nose
    "angry":    (-0.17,     0.08,      0.75, -0.05, 0.03, 0.28, 0),
    "disgust":  (-0.10,    -0.05,      0.45, -0.13, 0.12, 0.28, 1),
    "fear":     (0.17,      0.02,      1.45, -0.08, 0.13, 0.38, 0),
    "happy":    (0.03,      0.03,      0.75,  0.20, 0.14, 0.44, 0),
    "neutral":  (0.00,      0.00,      1.00,  0.00, 0.03, 0.33, 0),
    "sad":      (0.12,     -0.10,      0.70, -0.15, 0.03, 0.28, 0),
    "surprise": (0.17,      0.17,      1.50,  0.00, 0.36, 0.22, 0),
}  # fmt: skip


def draw_face(emotion, random, size=IMAGE_SIZE):
    """Draw one face: a uint8 gray image (size, size), framed as FER2013 frames faces.

    emotion: one of EMOTIONS. random: a numpy Generator, which decides pose, light, scale, shape and noise.
    """
    brow_inner, brow_outer, eye, curve, mouth_open, width, nose = EXPRESSIONS[emotion]
    strength = random.uniform(0.75, 1.2)  # of the expression
    brow_inner, brow_outer, curve = (value * strength for value in (brow_inner, brow_outer, curve))
    eye, mouth_open = 1 + (eye - 1) * strength, 0.03 + (mouth_open - 0.03) * strength

    skin = random.uniform(120, 215)
    dark = skin * random.uniform(0.15, 0.35)  # brows, pupils, lips' line
    hair = random.uniform(10, 110)
    background = random.uniform(20, 235)
    canvas = np.full((CANVAS, CANVAS), background, np.float32)

    unit = CANVAS * random.uniform(0.37, 0.43)  # half the face's width in pixels
    height = random.uniform(1.22, 1.4)  # of the face, in units
    turn = random.uniform(-0.12, 0.12)  # features move sideways as the head turns
    nod = random.uniform(-0.06, 0.06)
    tilt = random.normal(0, 6)  # degrees
    centre = np.array([CANVAS / 2, CANVAS * 0.52]) + random.uniform(-0.03, 0.03, 2) * CANVAS
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))

    def place(x, y):
        """Face coordinates (units, x right, y down, origin between nose and eyes) to canvas pixels."""
        return centre + unit * np.array([cosine * x - sine * y, sine * x + cosine * y])

    def ellipse(x, y, half_width, half_height, shade, start=0, end=360, thickness=-1):
        axes = (max(1, round(unit * half_width)), max(1, round(unit * half_height)))
        line = thickness if thickness < 0 else max(1, round(unit * thickness))
        at = tuple(int(value) for value in place(x, y).round())
        cv2.ellipse(canvas, at, axes, tilt, start, end, shade, line, cv2.LINE_AA)

    def stroke(points, shade, thickness):
        curve_points = np.array([place(x, y) for x, y in points]).round().astype(np.int32)
        cv2.polylines(canvas, [curve_points], False, shade, max(1, round(unit * thickness)), cv2.LINE_AA)

    ellipse(0, -0.25, 1.06, height + 0.02, hair)  # hair, then the face over it
    ellipse(0, 0.72, 0.62, 1.0, skin * 0.72)  # neck
    ellipse(0, 0.08, 0.92, height, skin)
    ellipse(0, -0.12, 0.9, 0.3, skin * 0.93)  # the eyes lie in shadow, forehead and cheeks in light
    ellipse(turn, 0.2, 0.15, 0.45, skin * 1.06)
    for side in (-1, 1):
        ellipse(side * 0.5 + turn * 0.7, 0.32, 0.25, 0.2, skin * 1.05)

    eye_y, eye_gap = -0.1 + nod, random.uniform(0.37, 0.43)
    brow_y = eye_y - random.uniform(0.26, 0.31)
    brow_thickness = random.uniform(0.06, 0.11)
    eye_size = random.uniform(0.16, 0.19)
    gaze = random.uniform(-0.04, 0.04)
    for side in (-1, 1):
        x = side * eye_gap + turn
        opening = eye_size * 0.55 * max(eye, 0.25) * random.uniform(0.92, 1.08)
        ellipse(x, eye_y, eye_size * 1.25, opening + 0.06, skin * 0.8)
        ellipse(x, eye_y, eye_size, opening, min(255, skin * 1.25 + 20))
        ellipse(x + gaze, eye_y, min(0.085, opening), min(0.085, opening), dark * 0.6)
        ellipse(x, eye_y, eye_size, opening, dark, 180, 360, 0.035)  # the upper lid
        brow = [
            (x - side * 0.2, brow_y - brow_inner),
            (x, brow_y - (brow_inner + brow_outer) / 2 - 0.05),
            (x + side * 0.24, brow_y + 0.03 - brow_outer),
        ]
        stroke(brow, dark, brow_thickness)
        if nose:
            for line in (0, 0.09):
                stroke([(turn + side * 0.06, 0.02 + line), (turn + side * 0.2, 0.1 + line)], skin * 0.6, 0.03)
            stroke([(turn + side * 0.2, 0.36), (turn + side * 0.42, 0.6)], skin * 0.65, 0.04)

    nose_y = 0.3 + nod - 0.05 * nose
    stroke([(turn * 1.3 + 0.05, eye_y + 0.1), (turn * 1.4 + 0.09, nose_y)], skin * 0.82, 0.04)
    for side in (-1, 1):
        ellipse(turn * 1.4 + side * 0.09, nose_y + 0.04, 0.05, 0.03, skin * 0.45)

    mouth_x, mouth_y = turn, 0.72 + nod - curve * 0.3
    width *= random.uniform(0.92, 1.08)
    across = np.linspace(-1, 1, 13)
    # a parabola for the line between the lips; where the mouth is open, the lips part most in the middle
    rest = mouth_y - curve * across**2
    gap = mouth_open * np.sqrt(1 - across**2)
    upper = [(mouth_x + width * t, y - g * (0.9 if nose else 0.4)) for t, y, g in zip(across, rest, gap, strict=True)]
    lower = [(mouth_x + width * t, y + g * (0.3 if nose else 0.8)) for t, y, g in zip(across, rest, gap, strict=True)]
    inside = np.array([place(x, y) for x, y in upper + lower[::-1]]).round().astype(np.int32)
    teeth = emotion in ("happy", "fear", "disgust") and random.random() < 0.7
    cv2.fillPoly(canvas, [inside], min(255, skin * 1.3 + 20) if teeth else dark * 0.7, cv2.LINE_AA)
    lip = skin * random.uniform(0.45, 0.6)
    stroke(upper, lip, 0.06)
    stroke(lower, lip, 0.07)

    # light from one side, then shrink, blur and noise like a small camera's
    direction = random.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    light = np.cos(direction) * ramp[None, :] + np.sin(direction) * ramp[:, None]
    canvas *= 1 + random.uniform(0, 0.3) * light
    face = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    blur = random.uniform(0, 0.8) * size / IMAGE_SIZE
    if blur > 0.2:
        face = cv2.GaussianBlur(face, (0, 0), blur)
    face = face * random.uniform(0.8, 1.1) + random.uniform(-15, 15)
    face += random.normal(0, random.uniform(1, 7), face.shape)
    return np.clip(face, 0, 255).astype(np.uint8)


def draw_faces(per_class, seed):
    """Draw `per_class` faces of every expression: uint8 (7 * per_class, 48, 48), and their labels, int64.

    The same seed gives the same pictures.
    """
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(EMOTIONS)), per_class)
    return np.stack([draw_face(EMOTIONS[label], random) for label in labels]), labels
