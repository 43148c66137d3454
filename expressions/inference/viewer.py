"""The window that shows the recognized faces, and its keys."""

import time
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from expressions.files import atomic_write
from expressions.inference import overlay
from expressions.inference.sources import Source
from expressions.inference.types import Face
from expressions.window import Window

KEYS = "q quit  s save  p pause  b bars  m mirror  h hide"
QUIT_KEYS = ("q", "Q", "\x1b", None)  # \x1b is Esc; None: the window was closed
FPS_GAIN = 0.1  # weight of the newest frame in the frame rate that is shown


class Viewer:
    """Shows frames in its `window`, to be opened by `with`; `bars`: whether to draw one for each label, at first."""

    def __init__(self, labels: tuple[str, ...], bars: bool):
        self.window, self.labels, self.bars = Window("Expressions"), labels, bars
        self.mirrored, self.keys = False, KEYS  # mirrored: compared to what is usual for the source
        self.last, self.fps = None, 0.0  # time of the last frame; frames per second, smoothed

    def show(self, image: np.ndarray, faces: list[Face], source: Source) -> bool:
        """Show a frame and react to keys; an image or a paused video waits for one. Returns whether to go on."""
        now = time.perf_counter()
        if self.last and not source.is_image:
            fps = 1 / max(now - self.last, 1e-6)
            self.fps += FPS_GAIN * (fps - self.fps) if self.fps else fps
        self.last, waiting = now, source.is_image
        while True:
            drawn = self._draw(image, faces, source.camera != self.mirrored)  # before a camera people expect a mirror
            shown = drawn.copy()
            status = "   ".join(filter(None, [f"{self.fps:.0f} frames/s" if self.fps else "", self.keys]))
            if status:
                overlay.draw_status(shown, status)
            key = self.window.show(shown, source.fps)
            if key in QUIT_KEYS:
                return False
            if key == "s":
                self.save(drawn)
            elif key == "b":
                self.bars = not self.bars
            elif key == "m":
                self.mirrored = not self.mirrored
            elif key == "h":
                self.keys = "" if self.keys else KEYS
            elif key == "p" or (key and source.is_image):
                waiting = not waiting
            if not waiting:
                return True
            time.sleep(0.02)

    def _draw(self, image, faces, mirrored):
        if mirrored:  # before the texts are drawn
            width, image = image.shape[1], cv2.flip(image, 1)
            boxes = [face.box._replace(x=width - face.box.x - face.box.width) for face in faces]
            faces = [face._replace(box=box) for face, box in zip(faces, boxes, strict=True)]
        return overlay.draw(image, faces, self.labels if self.bars else ())

    def save(self, image: np.ndarray) -> None:
        """Write an image to the working directory, named after the current second."""
        stem = time.strftime("expressions-%Y%m%d-%H%M%S")
        paths = (Path(f"{stem}{'' if number == 1 else f'-{number}'}.png") for number in count(1))
        path = next(path for path in paths if not path.exists())
        try:
            with atomic_write(path, path.with_suffix(".partial")) as partial:
                partial.write_bytes(cv2.imencode(".png", image)[1])
        except OSError as error:
            tqdm.write(f"{path}: can't be written ({error.strerror})")
        else:
            tqdm.write(f"Saved {path}")
