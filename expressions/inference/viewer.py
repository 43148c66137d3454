"""The window that shows the recognized faces, and its keys."""

import time
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from expressions.files import atomic_write
from expressions.inference.overlay import Annotator, draw_status, place_status
from expressions.inference.recognizer import NEUTRAL, ExpressionRecognizer
from expressions.inference.sources import Source
from expressions.inference.types import Face
from expressions.window import Window

KEYS = "q quit  s save  p pause  b bars  m mirror  n neutral  h hide"
IMAGE_KEYS = "q quit  s save  space next  left back  b bars  m mirror  h hide"
QUIT_KEYS = ("q", "Q", "\x1b", None)  # \x1b is Esc; None: the window was closed
NEXT_KEYS, BACK_KEYS = (" ", "right"), ("left",)
FPS_GAIN = 0.1  # weight of the newest frame in the frame rate that is shown


class Viewer:
    """Shows what a recognizer finds in its `window`, to be opened by `with`; `bars`: whether to draw them at first."""

    def __init__(self, recognizer: ExpressionRecognizer, bars: bool):
        self.window, self.annotator, self.source = Window("Expressions"), Annotator(recognizer.labels, bars), None
        self.recognizer = recognizer
        self.keys = KEYS if NEUTRAL in recognizer.labels else KEYS.replace("n neutral  ", "")
        self.mirrored, self.keys_hidden = False, False  # mirrored: compared to what is usual for the source
        self.last, self.fps = None, 0.0  # time of the last frame; frames per second, smoothed
        self.images = []  # source and faces of each one shown so far, to go back to

    def show(self, image: np.ndarray, faces: list[Face], source: Source) -> bool:
        """Show a frame and react to keys; an image or a paused video waits for one. Returns whether to go on."""
        if source is not self.source:
            self.source, self.annotator = source, Annotator(self.annotator.labels, self.annotator.bars)
        if source.is_image:
            return self._show_images(image, faces, source)
        now, paused = time.perf_counter(), False
        if self.last:
            fps = 1 / max(now - self.last, 1e-6)
            self.fps += FPS_GAIN * (fps - self.fps) if self.fps else fps
        self.last = now
        while (key := self._show(image, faces, source)) not in QUIT_KEYS:
            paused ^= key == "p"
            if not paused:
                return True
            time.sleep(0.02)
        return False

    def _show_images(self, newest, faces, source):
        """Show an image until the next one is asked for. The user can go back to those before it meanwhile."""
        self.images.append((source, faces))
        self.last, index = None, len(self.images) - 1
        while index < len(self.images):
            shown, faces = self.images[index]
            image = newest if shown is source else next(iter(Source(shown.address))).image
            self.annotator = Annotator(self.annotator.labels, self.annotator.bars)
            while (key := self._show(image, faces, shown)) not in (*NEXT_KEYS, *BACK_KEYS):
                if key in QUIT_KEYS:
                    return False
                time.sleep(0.02)
            index = max(0, index + (1 if key in NEXT_KEYS else -1))
        return True

    def _show(self, image, faces, source):
        """Show a frame once. Returns the key that was pressed."""
        if source.camera != self.mirrored:  # before a camera people expect a mirror; and before the texts are drawn
            width, image = image.shape[1], cv2.flip(image, 1)
            boxes = [face.box._replace(x=width - face.box.x - face.box.width) for face in faces]
            faces = [face._replace(box=box) for face, box in zip(faces, boxes, strict=True)]
        status = "" if self.keys_hidden else IMAGE_KEYS if source.is_image else self.keys
        fps = f"{self.fps:.0f} frames/s" if self.last and self.fps else ""
        status = "   ".join(filter(None, [fps, self.recognizer.neutral_status, status]))
        drawn = self.annotator.draw(image, faces, [place_status(image, status)[0]] if status else [])
        shown = drawn.copy()
        if status:
            draw_status(shown, status)
        key = self.window.show(shown, source.fps, source.name)
        if key == "s":
            self.save(drawn)
        elif key == "b":
            self.annotator.bars = not self.annotator.bars
        elif key == "m":
            self.mirrored = not self.mirrored
        elif key == "n":
            self._toggle_neutral()
        elif key == "h":
            self.keys_hidden = not self.keys_hidden
        return key

    def _toggle_neutral(self):
        before = self.recognizer.neutral_status
        self.recognizer.toggle_neutral()
        if not (before or self.recognizer.neutral_status):
            known = NEUTRAL in self.recognizer.labels
            reason = "no face of a camera or video is seen" if known else f"the model has no class {NEUTRAL}"
            tqdm.write(f"No neutral face: {reason}")

    def save(self, image: np.ndarray) -> None:
        """Write an image to the working directory, named after the current second."""
        stem = time.strftime("expressions-%Y%m%d-%H%M%S")
        paths = (Path(f"{stem}{'' if number == 1 else f'-{number}'}.png") for number in count(1))
        path = next(path for path in paths if not path.exists())
        try:
            with atomic_write(path) as partial:
                partial.write_bytes(cv2.imencode(".png", image)[1])
        except OSError as error:
            tqdm.write(f"{path}: can't be written ({error.strerror})")
        else:
            tqdm.write(f"Saved {path}")
