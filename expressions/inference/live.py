"""Cameras and live streams: the newest frame, whatever time the program takes for one."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from expressions.inference import video
from expressions.inference.video import Video, VideoError, trim_memory

MAX_DRIFT = 1  # seconds between the times that a broadcast says and those at which it comes; more is a jump
MAX_BROKEN = 3  # frames in a row, before a stream is opened again
# OpenCV's own choice takes half a minute on Windows
CAMERA_API = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}


class Camera:
    """A camera of this machine, read by OpenCV, with the methods of a Video. Raises VideoError if it can't be opened.

    Args:
        name: Its index, or its path on Linux.
        size: (width, height) in pixels to ask of it.
    """

    live, finite, in_parts, beginning = True, False, False, None

    def __init__(self, name: str, size: tuple[int, int] | None) -> None:
        index = int(name) if name.isdecimal() else name
        self.capture = cv2.VideoCapture(index, CAMERA_API.get(sys.platform, cv2.CAP_ANY))
        if not self.capture.isOpened():
            self.capture = cv2.VideoCapture(index)
        if not self.capture.isOpened():
            raise VideoError("can't be opened")
        if size:
            # larger frames come at a few per second without compression: USB 2 is too slow
            self.capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
            self.capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            self.capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        self.capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> np.ndarray | None:
        """Return the next frame, BGR uint8 (height, width, 3); None if there is none, or a broken one."""
        return self.capture.read()[1]

    def image(self, frame: np.ndarray) -> np.ndarray:
        """Return the frame."""
        return frame

    def close(self) -> None:
        """Close the camera."""
        self.capture.release()
        trim_memory()


class Live:
    """The frames of a live source. When it is lost, it is opened again. A thread reads it, so that nothing has to wait.

    Args:
        reader: The opened source.
        reopen: Opens it again; raises VideoError if it can't.

    Attributes:
        skipped, dropped: How many broken frames were left out, and others replaced by newer ones, so far.
    """

    def __init__(self, reader: Video | Camera, reopen: Callable[[], Video | Camera]) -> None:
        self.reopen, self.in_parts = reopen, reader.in_parts
        self.skipped = self.dropped = 0
        self.newest = deque(maxlen=1)  # the newest frame, its time and number; empty once taken
        self.arrived, self.closing = threading.Event(), threading.Event()
        self.beginning = None  # of the frames before the source was opened again
        # of a broadcast in parts: what was shown last, until when it is old, and when its time 0 was here, in seconds
        self.shown, self.old_until, self.clock = -math.inf, -math.inf, 0.0
        self.thread = threading.Thread(target=self._capture_loop, args=(reader,), daemon=True)
        self.thread.start()

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yield the newest frame each time, and its time in seconds from the first one. Raises VideoError if lost."""
        start, taken = None, 0
        while True:
            patience = self._patience(video.LOST_TIMEOUT)
            deadline = time.perf_counter() + patience * (1 if taken else 2)
            while not self.newest:
                if time.perf_counter() > deadline:
                    raise VideoError(f"lost, and not back in {patience} seconds" if taken else "can't be opened")
                self.arrived.wait(0.1)  # not longer: Windows heeds Ctrl-C between waits only
                self.arrived.clear()
            to_image, frame, seconds, number = self.newest.pop()
            start = start or seconds
            self.dropped, taken = self.dropped + number - taken - 1, number
            yield to_image(frame), seconds - start

    def close(self) -> None:
        """End the thread, which closes the source."""
        self.closing.set()
        self.thread.join(0.5)  # if it is stuck in a read, leave it: it ends by itself, or with the program

    def _patience(self, seconds):
        """A broadcast in parts is silent between them, and this is no loss."""
        return max(seconds, video.PART_SECONDS) if self.in_parts else seconds

    def _capture_loop(self, reader):
        """Keep the newest frame; runs in the thread."""
        broken, number, latest = 0, 0, time.perf_counter()
        while not self.closing.is_set():
            try:
                frame = reader.read() if reader else None
            except EOFError:
                frame, broken = None, MAX_BROKEN
            if frame is not None and reader.beginning and reader.beginning == self.beginning:
                reader.close()  # a recording of unknown length, which would be shown again and again
                reader = frame = None
            if frame is not None:
                self.skipped, broken = self.skipped + broken, 0
                seconds = self._wait_until_due(frame)
                if seconds is not None:
                    latest, number = time.perf_counter(), number + 1
                    self.newest.append((reader.image, frame, seconds, number))
                    self.arrived.set()
                continue
            broken += not self.in_parts  # a read that ends early, for the next part is waited for, is none
            if not reader or broken > MAX_BROKEN or time.perf_counter() - latest > self._patience(video.STALL_TIMEOUT):
                reader, broken, latest = self._open_again(reader), 0, time.perf_counter()
        if reader:
            reader.close()

    def _open_again(self, reader):
        """Return a new reader; None if it can't be opened, or has an end by now: it would be shown from its start."""
        if reader:
            self.beginning = reader.beginning
            reader.close()
        if self.closing.wait(0.2):
            return None
        self.old_until = self.shown
        try:
            reader = self.reopen()
        except VideoError:
            return None
        if reader.finite:
            reader.close()
            return None
        return reader

    def _wait_until_due(self, frame):
        """Wait until it is time for a frame of a broadcast in parts, of which many come at once.

        Returns the frame's time; None if it was shown before: a broadcast that is opened again begins with old parts.
        """
        now = time.perf_counter()
        seconds = frame.time if self.in_parts else None  # by the sender's clock
        if seconds is None:
            return now
        if seconds <= self.old_until:
            return None
        self.old_until, self.shown = -math.inf, seconds
        if abs(self.clock + seconds - now) > MAX_DRIFT:
            self.clock = now - seconds
        self.closing.wait(max(0, self.clock + seconds - now))
        return self.clock + seconds
