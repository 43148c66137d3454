"""Write annotated images to a video or image file."""

import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

from expressions import UserError
from expressions.files import lock_file, suppress_output
from expressions.image_formats import WRITTEN_SUFFIXES
from expressions.inference.sources import DEFAULT_FPS, LOST_TIMEOUT, Source

# what OpenCV's wheels can write: browsers play WebM alone, most players all three; per frame of 640x480 VP8 takes 25
# times as long as mp4v, and VP9, which browsers would play in .mp4, 200 times
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
MIN_FREE_BYTES = 2**20  # left free on the disk, because finishing a video takes some space


class Recorder:
    """Write annotated images to a file in a `with` block: a video, or an image where the source is one.

    The file is NAME.partial.SUFFIX until the block ends, also by an exception; then it gets its name, unless
    `frame_count` is 0. A video has the source's frame rate (DEFAULT_FPS where that has none) and no sound. Each frame
    is shown at its own time: a gap is filled with the frame before it; of frames that are closer than the frame rate
    allows, the first is kept. In a live source, a gap of more than LOST_TIMEOUT is a pause by the user, left out.

    Raises:
        UserError: The suffix doesn't fit, the file exists and `overwrite` is False, another program is writing it, or
            it can't be written. What was written stays in NAME.partial.SUFFIX, and an older file is unchanged.
    """

    def __init__(self, path: Path, source: Source, overwrite: bool = False) -> None:
        self.path, self.source, self.overwrite = Path(path), source, overwrite
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self.writer, self.frame_count = None, 0
        fps = source.fps or DEFAULT_FPS
        self.fps = round(fps, 3 if fps < 65 else 2)  # MPEG-4 can't count more than 65535 ticks a second
        suffixes = WRITTEN_SUFFIXES if source.is_image else CODECS
        if self.path.suffix.lower() not in suffixes:
            kind = "an image" if source.is_image else "a video"
            self._fail(f"{kind} is written as {', '.join(sorted(suffixes))}; choose such an ending")
        if not self.path.resolve().parent.is_dir():
            self._fail(f"there is no folder {self.path.parent}; make it first")
        for path in (self.path, self.partial):
            if path.exists() and os.path.exists(source.address) and path.samefile(source.address):
                self._fail(f"{path} is the source itself; choose another name")
        self._check_overwrite()
        try:
            self.lock = open(self.partial, "ab")
        except OSError as error:
            self._fail(f"can't be written ({error.strerror}); choose another folder or name")
        lock_file(self.lock, f"--save {self.path}")
        if sys.platform == "win32":  # where OpenCV can't write a file that is open here
            self.lock.close()
        if self.partial.stat().st_size and not overwrite:
            self.lock.close()
            self._fail(f"{self.partial} exists already; choose another name or remove it, or add --overwrite")

    def __enter__(self) -> "Recorder":
        return self

    def _fail(self, reason):
        self.frame_count = 0  # so that the partial file doesn't get its name
        raise UserError(f"--save {self.path}: {reason}")

    def _check_overwrite(self, note=""):
        if self.path.is_dir() or (self.path.exists() and not self.overwrite):
            self._fail(f"exists already; choose another name or remove it, or add --overwrite{note}")

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Write the frame that the source had at `seconds`, BGR uint8 (height, width, 3).

        A video resizes it to its first one; an image file keeps the last one.
        """
        if self.source.is_image:
            return self._write_image(image)
        if self.writer is None:
            self._open_writer(image.shape[1::-1])
            self.start = self.latest_seconds = seconds
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size)
        if seconds - self.latest_seconds > LOST_TIMEOUT and self.source.live:
            self.start += seconds - self.latest_seconds - 1 / self.fps
        position = round((seconds - self.start) * self.fps)
        while self.frame_count <= position:
            self._check_free_space(image)
            self.writer.write(image if self.frame_count == position else self.latest_image)
            self.frame_count += 1
        self.latest_image, self.latest_seconds = image, seconds

    def _write_image(self, image):
        try:
            self.partial.write_bytes(cv2.imencode(self.path.suffix, image)[1])
        except (OSError, cv2.error) as error:
            self.partial.unlink(missing_ok=True)
            self._fail(f"can't be written ({getattr(error, 'strerror', None) or 'too large for this ending'})")
        self.frame_count = 1

    def _open_writer(self, size):
        codec = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
        with suppress_output():  # OpenCV warns of the tag of every WebM file, though it knows it
            self.writer = cv2.VideoWriter(os.fsencode(os.path.abspath(self.partial)), codec, self.fps, size)
        if not self.writer.isOpened():
            self._fail(f"OpenCV can't write a video of {size[0]}x{size[1]} pixels in this format; try .avi")
        self.size = size

    def _check_free_space(self, image):
        """Fail while there is space to finish the video: OpenCV doesn't tell when the disk is full."""
        needed = MIN_FREE_BYTES + image.nbytes + 64 * self.frame_count  # 64: per frame in the index, written last
        try:
            total, _, free = shutil.disk_usage(self.partial.parent)
        except OSError as error:
            self._fail(f"its folder can't be written to any more ({error.strerror})")
        if total and free < needed:
            self._fail(f"the disk is full; what there is lies in {self.partial}")

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.release()
        self.lock.close()
        if not self.frame_count:
            if self.partial.exists() and not self.partial.stat().st_size:
                self.partial.unlink()
            return
        if not self.partial.exists():
            self._fail("was removed while it was written")
        if self.writer and not self._is_complete():
            self._fail(f"could not be written whole; is the disk full? What there is lies in {self.partial}")
        self._check_overwrite(f"; the new one is {self.partial}")
        try:
            os.replace(self.partial, self.path)
        except OSError as error:
            self._fail(f"can't be replaced ({error.strerror}); the new one is {self.partial}")

    def _is_complete(self):
        """Read the last frame back, because OpenCV's writer doesn't tell when something went wrong."""
        last, capture = self.frame_count - 1, cv2.VideoCapture(os.fsencode(os.path.abspath(self.partial)))
        capture.set(cv2.CAP_PROP_POS_FRAMES, last)
        return capture.read()[0] and round(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 * self.fps) == last
