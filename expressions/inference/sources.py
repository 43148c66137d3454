"""Images from cameras, live streams, video files and image files."""

import ctypes
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import cv2

from expressions import MAX_IMAGE_PIXELS, UserError
from expressions.image_formats import IMAGE_SUFFIXES
from expressions.images import decode_image, read_image
from expressions.inference.names import URL, VIDEO_SUFFIXES, is_camera
from expressions.inference.types import Frame

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when OpenCV first uses FFmpeg

DEFAULT_FPS = 30  # where a source doesn't tell
STALL_TIMEOUT = 2  # seconds without a frame, after which a camera or stream is opened again
LOST_TIMEOUT = 5  # seconds without a frame, after which it is given up
MIN_STEP, MAX_STEP = 0.001, 600  # seconds between two frames of a video; files may claim anything
SEEK_MARGIN = 5  # seconds to start before the wanted time: right after a jump, frames may lack those they build on
MAX_BROKEN_LIVE, MAX_BROKEN_FILE = 3, 1000  # frames in a row, before a stream is opened again, a file ended
STREAM_SCHEMES = set("rtmp rtmps rtp rtsp rtsps srt tcp udp".split())  # live, whatever suffix the path has
# OpenCV's own choice takes half a minute on Windows
CAMERA_API = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}
CAMERA_ADVICE = {
    "linux": "plug it in, close other programs that use it, join the group that may (sudo usermod -aG video $USER)",
    "win32": "plug it in, close other programs that use it, let desktop apps use it (Settings, Privacy, Camera)",
    "darwin": "plug it in, let the terminal use it (System Settings, Privacy & Security, Camera) and start anew",
}


class Source:
    """The frames of a camera, a live stream, a video file or an image: iterate over it in a `with` block.

    A file gives every frame, in order. A live source gives the newest one, so that a slow program can't fall behind.
    Raises UserError if it can't be opened or read, and, while iterating, if a live source is lost for LOST_TIMEOUT.

    Args:
        source: One of `names.expand_sources`.
        size: (width, height) in pixels to ask of a camera.
        start: Where to begin in a video, in seconds; there may be no frames from there on. A few files can't be sought.

    Attributes:
        name: The source, without the user and password of a URL.
        live: Whether it is a camera or a stream.
        fps, frame_count: What a video file says of itself; None if unknown or another kind of source.
        skipped, dropped: How many broken frames were left out, and live ones replaced by newer ones, so far.
        missing_seconds: By how much a video, read to its end, is shorter than it says, if by more than a second.
    """

    def __init__(self, source: str | os.PathLike, size: tuple[int, int] | None = None, start: float = 0.0) -> None:
        self.address, self.size, self.start = str(source), size, start
        self.camera, self.url = is_camera(self.address), URL.match(self.address)
        self.name = re.sub("//[^/]*@", "//", self.address) if self.url else self.address
        suffix = Path(self.url[2] if self.url else self.address).suffix.lower()
        streamed = self.url and (self.url[1].lower() in STREAM_SCHEMES or suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        self.live = self.camera or bool(streamed)
        self.is_image = suffix in IMAGE_SUFFIXES and not self.live
        self.fps = self.frame_count = self.capture = self.thread = None
        self.skipped, self.dropped, self.missing_seconds = 0, 0, 0.0
        self.newest = deque(maxlen=1)  # of a live source: the newest frame, its time and number; empty once taken
        self.arrived, self.closing = threading.Event(), threading.Event()
        if not (self.camera or self.url or os.path.isfile(self.address)):  # opening a pipe could block for ever
            self._fail("no such video or image; give a file, an address, or the index of a camera such as 0")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our one line says it better
        self.frames = self._read_live() if self.live else self._read_image() if self.is_image else self._read_video()
        try:
            first = next(self.frames, None)
        except OSError as error:
            self._fail(f"can't be read ({error.strerror})")
        except BaseException:
            self.__exit__()
            raise
        if first:
            self.frames = chain([first], self.frames)
        elif not start:
            self._fail(f"not {'an image' if self.is_image else 'a video'} that OpenCV can read, or too large a one")

    def __iter__(self) -> Iterator[Frame]:
        for number, (image, seconds) in enumerate(self.frames):
            yield Frame(image, number, seconds)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        if self.thread:
            self.thread.join(0.5)  # if it is stuck in a read, leave it: it ends by itself, or with the program
        elif self.capture:
            _release(self.capture)
        self.frames = iter(())  # a generator refers to this object: a cycle would keep both, and their frames, for long

    def _fail(self, reason):
        if self.camera:
            advice = CAMERA_ADVICE.get(sys.platform, "plug it in")
            raise UserError(f"camera {self.name}: {reason}; {advice}, or name another with --source")
        raise UserError(f"{self.name}: {reason}" + ("; look at the network and at the address" if self.url else ""))

    def _open(self):
        """Open the source. The result isn't open if that fails, or if the frames are too large."""
        if self.camera:
            index = int(self.address) if self.address.isdecimal() else self.address
            capture = cv2.VideoCapture(index, CAMERA_API.get(sys.platform, cv2.CAP_ANY))
            if not capture.isOpened():
                capture = cv2.VideoCapture(index)
            if self.size:
                # larger frames come at a few per second without compression: USB 2 is too slow
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[0])
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[1])
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        elif self.url:
            options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(1000 * LOST_TIMEOUT)]
            options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(1000 * STALL_TIMEOUT)]
            options += [cv2.CAP_PROP_N_THREADS, 1] * self.live  # each further thread of the decoder holds a frame back
            capture = cv2.VideoCapture(os.fsencode(self.address), cv2.CAP_FFMPEG, options)  # a str must be UTF-8
        else:
            capture = cv2.VideoCapture(os.fsencode(os.path.abspath(self.address)))  # 12:30.mp4 looks like a URL
        if capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT) > MAX_IMAGE_PIXELS:
            capture.release()  # before the first frame is decoded, which memory may not hold
        return capture

    def _read_image(self):
        if self.url:
            capture = self._open()
            capture.set(cv2.CAP_PROP_FORMAT, -1)  # the file's bytes, because FFmpeg would neither turn nor blend it
            data = capture.read()[1]
            image = None if data is None else decode_image(data.tobytes(), self.name)
        else:
            image = read_image(self.address)
        if image is not None:
            yield image, 0.0

    def _read_video(self):
        if not self.url:
            open(self.address, "rb").close()  # for its error: OpenCV doesn't tell why it can't
        self.capture = self._open()
        fps, frame_count = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = 0.1 <= fps <= 500  # files may say 0, NaN or a clock's ticks
        self.fps = fps if known else DEFAULT_FPS
        self.frame_count = int(frame_count) if known and 0 < frame_count < 1e9 else None
        end = self.frame_count / self.fps if self.frame_count else float("inf")
        after_seek = self.start > SEEK_MARGIN
        if after_seek:
            self.capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (self.start - SEEK_MARGIN))
        expected, broken, failing_since = 0.0, 0, 0.0  # expected: time of the next frame
        # a read fails on a broken frame just as after the last one, but the next read goes on behind it
        while broken < MAX_BROKEN_FILE and (not broken or time.perf_counter() - failing_since < LOST_TIMEOUT):
            good, image = self.capture.read()
            if not good:
                failing_since = failing_since if broken else time.perf_counter()
                broken += 1
                continue
            self.skipped, broken = self.skipped + broken, 0
            reported = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            expected, after_seek = reported if after_seek else expected, False
            latest = expected - 1 / self.fps
            credible = latest + MIN_STEP < reported < latest + MAX_STEP and reported < end + 1
            seconds = reported if credible else expected  # some frames lack their time
            expected = seconds + 1 / self.fps
            if seconds >= self.start:
                yield image, seconds
        self.missing_seconds = end - expected if self.frame_count and end - expected > 1 else 0.0

    def _read_live(self):
        """Yield the newest frame each time. A thread reads them, so that neither they nor Ctrl-C have to wait."""
        if self.camera:
            self.capture = self._open()  # not in the thread: macOS asks the user for permission in the main one only
        self.thread = threading.Thread(target=self._capture_loop, daemon=True)
        self.thread.start()
        start, taken = None, 0
        while True:
            deadline = time.perf_counter() + LOST_TIMEOUT * (1 if taken else 2)
            while not self.newest:
                if not self.thread.is_alive() or time.perf_counter() > deadline:  # it ends if it can't open the source
                    self._fail(f"lost, and not back in {LOST_TIMEOUT} seconds" if taken else "can't be opened")
                self.arrived.wait(0.1)  # not longer: Windows heeds Ctrl-C between waits only
                self.arrived.clear()
            image, seconds, number = self.newest.pop()
            start = start or seconds
            self.dropped, taken = self.dropped + number - taken - 1, number
            yield image, seconds - start

    def _capture_loop(self):
        """Keep the newest frame, and open the source again when it is lost; runs in the thread."""
        capture = self.capture or self._open()
        opened, broken, number, latest = capture.isOpened(), 0, 0, time.perf_counter()
        while opened and not self.closing.is_set():
            good, image = capture.read()
            if good:
                self.skipped, broken = self.skipped + broken, 0
                latest, number = time.perf_counter(), number + 1
                self.newest.append((image, latest, number))
                self.arrived.set()
                continue
            broken += 1
            if broken > MAX_BROKEN_LIVE or time.perf_counter() - latest > STALL_TIMEOUT:
                _release(capture)
                self.closing.wait(0.2)
                capture, broken, latest = self._open(), 0, time.perf_counter()
        _release(capture)


def _release(capture):
    """Close a capture and return its memory to the system; glibc would keep most of it, and take more for the next."""
    capture.release()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
