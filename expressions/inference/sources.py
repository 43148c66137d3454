"""Images from cameras, live streams, video files and image files."""

import contextlib
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from expressions import MAX_IMAGE_BYTES, UserError
from expressions.cli import escape_unprintable
from expressions.image_formats import HEAD_BYTES, IMAGE_SUFFIXES, image_format
from expressions.images import decode_image, read_image
from expressions.inference import video
from expressions.inference.live import Camera, Live
from expressions.inference.names import URL, VIDEO_SUFFIXES, is_camera
from expressions.inference.types import Frame
from expressions.inference.video import ADDRESSES, BUFFER_BYTES, NO_VIDEO, STREAM_SCHEMES, Video, VideoError

MAX_IMAGE_SECONDS = 60  # for an image at an address
CAMERA_ADVICE = {
    "linux": "plug it in, close other programs that use it, join the group that may (sudo usermod -aG video $USER)",
    "win32": "plug it in, close other programs that use it, let desktop apps use it (Settings, Privacy, Camera)",
    "darwin": "plug it in, let the terminal use it (System Settings, Privacy & Security, Camera) and start anew",
}


class Source:
    """The frames of a camera, a live stream, a video or an image: iterate over it in a `with` block.

    A video gives every frame, in order. A live source gives the newest one, so that a slow program can't fall behind.
    Raises UserError if it can't be opened or read, and, while iterating, if a live source is lost.

    Args:
        source: One of `names.expand_sources`.
        size: (width, height) in pixels to ask of a camera.
        start: Where to begin in a video, in seconds; there may be no frames from there on. A few files can't be sought.

    Attributes:
        name: The source; of an address without user, password and query.
        live: Whether it is a camera, or a stream of no known length.
        fps, frame_count: What a video says of itself; None if unknown or another kind of source.
    """

    def __init__(self, source: str | os.PathLike, size: tuple[int, int] | None = None, start: float = 0.0) -> None:
        self.address, self.size, self.start = str(source), size, start
        self.camera, self.url = is_camera(self.address), URL.match(self.address)
        self.scheme = self.url[1].lower() if self.url else None
        # a password may hold any sign, so all before the last @ is left out
        self.name = re.sub("(?s)(//)(?:.*@)?([^?#]*).*", r"\1\2", self.address, count=1) if self.url else self.address
        self.live, self.is_image = self.camera, False
        self.fps = self.frame_count = self.reader = None
        if self.camera or self.url:  # which may take seconds
            tqdm.write(f"Opening {'camera ' * self.camera}{escape_unprintable(self.name)} ...")
        if self.url and self.scheme not in ADDRESSES:
            self._fail(f"no such kind of address is known; known ones begin with {', '.join(ADDRESSES)}")
        if not (self.camera or self.url or os.path.isfile(self.address)):  # opening a pipe could block for ever
            self._fail("no such video or image; give a file, an address, or the index of a camera such as 0")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our one line says it better
        try:
            self.frames = self._find_frames()
            first = next(self.frames, None)
            if not (first or start):
                raise VideoError(NO_VIDEO)
        except VideoError as error:
            self._fail(error)
        except OSError as error:
            self._fail(f"can't be read ({error.strerror})")
        except BaseException:
            self.__exit__()
            raise
        if first:
            self.frames = chain([first], self.frames)

    def __iter__(self) -> Iterator[Frame]:
        try:
            for number, (image, seconds) in enumerate(self.frames):
                yield Frame(image, number, seconds)
        except (VideoError, OSError) as error:  # the latter of pixels that FFmpeg can't convert
            self._fail(getattr(error, "strerror", None) or error)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        if self.reader:
            self.reader.close()
        self.frames = iter(())  # a generator refers to this object: a cycle would keep both, and their frames, for long

    @property
    def skipped(self) -> int:
        """How many broken frames were left out so far."""
        return getattr(self.reader, "skipped", 0)

    @property
    def missing_seconds(self) -> float:
        """By how much a video, read to its end, is shorter than it says, if by more than a second; else 0."""
        return getattr(self.reader, "missing_seconds", 0.0)

    def _fail(self, reason):
        self.__exit__()  # the thread of a live source would open it again and again
        if self.camera:
            advice = CAMERA_ADVICE.get(sys.platform, "plug it in")
            raise UserError(f"camera {self.name}: {reason}; {advice}, or name another with --source")
        raise UserError(f"{self.name}: {reason}" + ("; look at the network and at the address" if self.url else ""))

    def _find_frames(self):
        """Tell an image, a video and a live source apart, by their content. Returns an iterator over the frames."""
        if self.camera:
            self.open = functools.partial(Camera, self.address, self.size)
        else:
            self.open = functools.partial(Video, self.address, self.scheme)
        if self.url:
            opened = _interruptible(self._open_address)
        elif not self.camera and self._is_image_file():
            opened = read_image(self.address)
        else:  # a camera not in a thread: macOS asks the user for permission in the main one only
            opened = self.open()
        self.is_image, self.live = isinstance(opened, np.ndarray), getattr(opened, "live", False)
        if self.is_image:
            return iter([(opened, 0.0)])
        self.reader = Live(opened, self.open) if self.live else opened
        if self.live:
            return self.reader.frames()
        self.fps, self.frame_count = opened.fps, opened.frame_count
        return opened.frames(self.start)

    def _is_image_file(self):
        with open(self.address, "rb") as file:
            kind = image_format(file.read(HEAD_BYTES))
        # JPEGs in a row are a video, which some cameras write
        return kind and (kind != "JPEG" or Path(self.address).suffix.lower() not in VIDEO_SUFFIXES)

    def _open_address(self):
        """Return the image at the address, or a Video."""
        suffix, may_be_image = Path(self.url[2]).suffix.lower(), self.scheme not in STREAM_SCHEMES
        image_first = may_be_image and suffix in IMAGE_SUFFIXES
        data = _read_image_bytes(self.address, self.scheme) if image_first else None
        if data is None:
            try:
                return self.open()
            except VideoError:
                if may_be_image and not image_first:
                    data = _read_image_bytes(self.address, self.scheme)
                if data is None:
                    raise
        return decode_image(data, self.name)


def _interruptible(function):
    """Call a function in a thread, which Ctrl-C needn't wait for."""
    future = Future()

    def work():
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while not wait([future], timeout=0.1).done:  # not longer: Windows heeds Ctrl-C between waits only
        pass
    return future.result()


def _read_image_bytes(address, scheme):
    """Read an image file at an address, up to a packet beyond MAX_IMAGE_BYTES; None if what is there is none."""
    import av

    options = {"protocol_whitelist": ADDRESSES[scheme][0], "raw_packet_size": str(BUFFER_BYTES)}
    deadline, data = time.perf_counter() + MAX_IMAGE_SECONDS, bytearray()
    with contextlib.suppress(av.error.FFmpegError, OSError):  # also where a server that told no size has sent all
        timeouts = video.LOST_TIMEOUT, video.STALL_TIMEOUT
        with av.open(address, format="data", container_options=options, timeout=timeouts) as container:
            for packet in container.demux():
                data += packet
                if not image_format(bytes(data[:HEAD_BYTES])) or time.perf_counter() > deadline:
                    return None
                if len(data) > MAX_IMAGE_BYTES:
                    break
    return bytes(data) or None
