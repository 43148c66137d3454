"""Faces drawn by the program: seven expressions told apart by brows, eyes and mouth, no photograph needed.

They let anyone try the training and run the tests without a data set. A network trained on them knows drawings only.
"""

from typing import NamedTuple

import cv2
import numpy as np

from expressions import EMOTIONS, IMAGE_SIZE

CANVAS = 256  # pixels; drawn large with smooth edges, then shrunk

# What each expression does to a face, after the action units of the Facial Action Coding System (Ekman and Friesen
# 1978). Lengths are shares of the face's half width.
#   brow_inner, brow_outer: height of the brow's ends above its rest (negative: lowered)
#   eye: opening of the lids (1 at rest)   curve: height of the mouth's corners above its middle
#   gap: between the lips                  width: half the mouth's   nose: wrinkles beside its root, 0 or 1
EXPRESSIONS = {
    #           brow_inner brow_outer   eye  curve  gap   width nose
    "angry":    (-0.17,     0.08,      0.75, -0.05, 0.03, 0.28, 0),
    "disgust":  (-0.10,    -0.05,      0.45, -0.13, 0.12, 0.28, 1),
    "fear":     (0.17,      0.02,      1.45, -0.08, 0.13, 0.38, 0),
    "happy":    (0.03,      0.03,      0.75,  0.20, 0.14, 0.44, 0),
    "neutral":  (0.00,      0.00,      1.00,  0.00, 0.03, 0.33, 0),
    "sad":      (0.12,     -0.10,      0.70, -0.15, 0.03, 0.28, 0),
    "surprise": (0.17,      0.17,      1.50,  0.00, 0.36, 0.22, 0),
}  # fmt: skip


class _Sketch(NamedTuple):
    """A face that is being drawn. Coordinates: units of half its width, from between nose and eyes, x right, y down."""

    pixels: np.ndarray  # float32 (CANVAS, CANVAS), changed in place
    unit: float  # in pixels
    centre: np.ndarray  # x, y in pixels
    tilt: float  # degrees
    turn: float  # the features move sideways as the head turns
    nod: float
    skin: float  # gray value
    dark: float  # of brows, pupils and the lips' line

    def to_pixels(self, points):
        (x, y), angle = np.transpose(points), np.deg2rad(self.tilt)
        cosine, sine = np.cos(angle), np.sin(angle)
        turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
        return (self.centre + self.unit * turned).round().astype(np.int32)

    def thickness(self, length):
        return max(1, round(self.unit * length))

    def ellipse(self, x, y, half_width, half_height, shade, start=0, end=360, line=None):
        axes = self.thickness(half_width), self.thickness(half_height)
        line = -1 if line is None else self.thickness(line)  # -1: filled
        centre = self.to_pixels([(x, y)])[0].tolist()
        cv2.ellipse(self.pixels, centre, axes, self.tilt, start, end, shade, line, cv2.LINE_AA)

    def stroke(self, points, shade, line):
        cv2.polylines(self.pixels, [self.to_pixels(points)], False, shade, self.thickness(line), cv2.LINE_AA)


def draw_face(emotion: str, rng: np.random.Generator, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a face of one of EMOTIONS, framed as FER2013 frames faces: gray uint8 (size, size)."""
    brow_inner, brow_outer, eye, curve, gap, width, nose = EXPRESSIONS[emotion]
    strength = rng.uniform(0.75, 1.2)  # of the expression
    brow_inner, brow_outer, curve = (value * strength for value in (brow_inner, brow_outer, curve))
    eye, gap = 1 + (eye - 1) * strength, 0.03 + (gap - 0.03) * strength
    skin = rng.uniform(120, 215)
    dark = skin * rng.uniform(0.15, 0.35)
    hair = rng.uniform(10, 110)
    pixels = np.full((CANVAS, CANVAS), rng.uniform(20, 235), np.float32)
    unit = CANVAS * rng.uniform(0.37, 0.43)
    height = rng.uniform(1.22, 1.4)
    turn, nod = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.06)
    tilt = rng.normal(0, 6)
    centre = np.array([CANVAS / 2, CANVAS * 0.52]) + rng.uniform(-0.03, 0.03, 2) * CANVAS
    sketch = _Sketch(pixels, unit, centre, tilt, turn, nod, skin, dark)
    _draw_head(sketch, height, hair)
    _draw_eyes_and_nose(sketch, rng, brow_inner, brow_outer, eye, nose)
    _draw_mouth(sketch, rng, curve, gap, width, nose, teeth=emotion in ("happy", "fear", "disgust"))
    return _photograph(pixels, rng, size)


def _draw_head(sketch, height, hair):
    skin, turn = sketch.skin, sketch.turn
    sketch.ellipse(0, -0.25, 1.06, height + 0.02, hair)  # then the face over it
    sketch.ellipse(0, 0.72, 0.62, 1.0, skin * 0.72)  # neck
    sketch.ellipse(0, 0.08, 0.92, height, skin)
    sketch.ellipse(0, -0.12, 0.9, 0.3, skin * 0.93)  # the eyes lie in shadow, forehead and cheeks in light
    sketch.ellipse(turn, 0.2, 0.15, 0.45, skin * 1.06)
    for side in (-1, 1):
        sketch.ellipse(side * 0.5 + turn * 0.7, 0.32, 0.25, 0.2, skin * 1.05)


def _draw_eyes_and_nose(sketch, rng, brow_inner, brow_outer, eye, nose):
    skin, dark, turn = sketch.skin, sketch.dark, sketch.turn
    eye_y, eye_gap = -0.1 + sketch.nod, rng.uniform(0.37, 0.43)
    brow_y = eye_y - rng.uniform(0.26, 0.31)
    brow_thickness = rng.uniform(0.06, 0.11)
    eye_size, gaze = rng.uniform(0.16, 0.19), rng.uniform(-0.04, 0.04)
    for side in (-1, 1):
        x = side * eye_gap + turn
        opening = eye_size * 0.55 * max(eye, 0.25) * rng.uniform(0.92, 1.08)
        sketch.ellipse(x, eye_y, eye_size * 1.25, opening + 0.06, skin * 0.8)
        sketch.ellipse(x, eye_y, eye_size, opening, min(255, skin * 1.25 + 20))
        sketch.ellipse(x + gaze, eye_y, min(0.085, opening), min(0.085, opening), dark * 0.6)
        sketch.ellipse(x, eye_y, eye_size, opening, dark, 180, 360, 0.035)  # the upper lid
        inner, outer = (x - side * 0.2, brow_y - brow_inner), (x + side * 0.24, brow_y + 0.03 - brow_outer)
        sketch.stroke([inner, (x, brow_y - (brow_inner + brow_outer) / 2 - 0.05), outer], dark, brow_thickness)
        if nose:
            for line in (0, 0.09):
                sketch.stroke([(turn + side * 0.06, 0.02 + line), (turn + side * 0.2, 0.1 + line)], skin * 0.6, 0.03)
            sketch.stroke([(turn + side * 0.2, 0.36), (turn + side * 0.42, 0.6)], skin * 0.65, 0.04)

    nose_y = 0.3 + sketch.nod - 0.05 * nose
    sketch.stroke([(turn * 1.3 + 0.05, eye_y + 0.1), (turn * 1.4 + 0.09, nose_y)], skin * 0.82, 0.04)
    for side in (-1, 1):
        sketch.ellipse(turn * 1.4 + side * 0.09, nose_y + 0.04, 0.05, 0.03, skin * 0.45)


def _draw_mouth(sketch, rng, curve, gap, width, nose, teeth):
    across = np.linspace(-1, 1, 13)
    x = sketch.turn + width * rng.uniform(0.92, 1.08) * across
    # a parabola for the line between the lips; where the mouth is open, the lips part most in the middle
    y = 0.72 + sketch.nod - curve * 0.3 - curve * across**2
    gap = gap * np.sqrt(1 - across**2)
    upper = np.column_stack([x, y - gap * (0.9 if nose else 0.4)])
    lower = np.column_stack([x, y + gap * (0.3 if nose else 0.8)])
    inside = min(255, sketch.skin * 1.3 + 20) if teeth and rng.random() < 0.7 else sketch.dark * 0.7
    cv2.fillPoly(sketch.pixels, [sketch.to_pixels([*upper, *lower[::-1]])], inside, cv2.LINE_AA)
    lip = sketch.skin * rng.uniform(0.45, 0.6)
    sketch.stroke(upper, lip, 0.06)
    sketch.stroke(lower, lip, 0.07)


def _photograph(pixels, rng, size):
    """Light the drawing from one side, then shrink, blur and add noise as a small camera does."""
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    light = np.cos(direction) * ramp[None, :] + np.sin(direction) * ramp[:, None]
    pixels *= 1 + rng.uniform(0, 0.3) * light
    face = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    blur = rng.uniform(0, 0.8) * size / IMAGE_SIZE
    if blur > 0.2:
        face = cv2.GaussianBlur(face, (0, 0), blur)
    face = face * rng.uniform(0.8, 1.1) + rng.uniform(-15, 15)
    face += rng.normal(0, rng.uniform(1, 7), face.shape)
    return np.clip(face, 0, 255).astype(np.uint8)


def draw_faces(per_class: int, seed: int | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw faces of every expression: gray uint8 (n, 48, 48), and the indices of their labels, int64 (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(EMOTIONS)), per_class)
    return np.stack([draw_face(EMOTIONS[label], rng) for label in labels]), labels
