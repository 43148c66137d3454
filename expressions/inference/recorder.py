"""Write annotated images to a video or image file."""

import os
import sys
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from expressions import UserError
from expressions.files import lock_file
from expressions.image_formats import WRITTEN_SUFFIXES
from expressions.inference.sound import Sound
from expressions.inference.sources import Source
from expressions.inference.video import DEFAULT_FPS, LOST_TIMEOUT

MAX_AVI_GAP = 60_000  # frames; FFmpeg writes an empty one, of 24 bytes, for each that an .avi lacks


class Format(NamedTuple):
    """How FFmpeg writes a video. Each second of it must be playable as soon as it is written."""

    codec: str
    pixels: str
    codec_options: dict[str, str]
    muxer_options: dict[str, str]
    ticks: int | None  # a second, in which the times of frames are counted; None: the frame rate
    copied_sound: set[str]  # codecs of sound that are copied; FFmpeg could copy others, which browsers don't play
    sound: str  # the encoder for other sound


FORMATS = {
    ".mp4": Format(
        codec="libx264",
        pixels="yuv420p",
        # as fast as MPEG-4 was; the next preset takes up to twice as long. No frame waits in the encoder
        codec_options={"preset": "ultrafast", "tune": "zerolatency"},
        # parts of a second, given in microseconds; at the end they are joined to an ordinary .mp4
        muxer_options={"movflags": "hybrid_fragmented", "frag_duration": "1000000"},
        ticks=90_000,
        copied_sound={"aac", "mp3", "opus", "flac"},
        sound="aac",
    ),
    ".webm": Format(
        codec="libvpx",
        pixels="yuv420p",
        # good quality (4 is the best, 63 the worst), unless that takes more than 8 million bits a second
        codec_options={"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "8M"},
        muxer_options={"cluster_time_limit": "1000"},  # milliseconds
        ticks=1000,
        copied_sound={"opus", "vorbis"},
        sound="libopus",
    ),
    ".avi": Format(
        codec="mjpeg",
        pixels="yuvj420p",
        codec_options={"qmin": "3", "qmax": "3"},  # 2 is the best, 31 the worst
        muxer_options={},
        ticks=None,
        copied_sound={"mp3", "ac3", "pcm_s16le"},
        sound="libmp3lame",
    ),
}


class Recorder:
    """Write annotated images to a file in a `with` block: a video, or an image where the source is one.

    The file is NAME.partial.SUFFIX until the block ends, also by an exception; then it gets its name, unless
    `frame_count` is 0. A partial video can be played, even after a crash, but for its last second or so. Each frame is
    shown at its own time; an .avi has the source's frame rate (DEFAULT_FPS where that has none), and of frames that are
    closer the first is kept. In a live source, a gap of more than LOST_TIMEOUT is a pause by the user, left out. The
    sound of a video file is kept as long as there are frames.

    Attributes:
        frame_count: How many frames were written so far.

    Raises:
        UserError: The suffix doesn't fit, the file exists and `overwrite` is False, another program is writing it, or
            it can't be written. What was written stays in NAME.partial.SUFFIX, and an older file is unchanged.
    """

    def __init__(self, path: Path, source: Source, overwrite: bool = False) -> None:
        self.path, self.source, self.overwrite = Path(path), source, overwrite
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self.container, self.frame_count, self.left_out, self.files = None, 0, 0, ExitStack()
        self.fps = Fraction(source.fps or DEFAULT_FPS).limit_denominator(1001)
        suffixes = WRITTEN_SUFFIXES if source.is_image else FORMATS
        if self.path.suffix.lower() not in suffixes:
            kind = "an image" if source.is_image else "a video"
            self._fail(f"{kind} is written as {', '.join(sorted(suffixes))}; choose such an ending")
        if not self.path.resolve().parent.is_dir():
            self._fail(f"there is no folder {self.path.parent}; make it first")
        for path in (self.path, self.partial):
            # not Path.exists, which raises OSError where a name is too long
            if os.path.exists(path) and os.path.exists(source.address) and path.samefile(source.address):
                self._fail(f"{path} is the source itself; choose another name")
        self._check_overwrite()
        try:
            lock = self.files.enter_context(open(self.partial, "ab"))
        except OSError as error:
            self._fail(f"can't be written ({error.strerror}); choose another folder or name")
        lock_file(lock, f"--save {self.path}")
        if sys.platform == "win32":  # where the lock would keep FFmpeg from writing the byte that is locked
            lock.close()
        if self.partial.stat().st_size and not overwrite:
            lock.close()
            self._fail(f"{self.partial} exists already; choose another name or remove it, or add --overwrite")

    def __enter__(self) -> "Recorder":
        return self

    def _fail(self, reason):
        self.frame_count = 0  # so that the partial file doesn't get its name
        raise UserError(f"--save {self.path}: {reason}")

    def _check_overwrite(self, note=""):
        if os.path.isdir(self.path) or (os.path.exists(self.path) and not self.overwrite):
            self._fail(f"exists already; choose another name or remove it, or add --overwrite{note}")

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Write the frame that the source had at `seconds`, BGR uint8 (height, width, 3).

        A video resizes it to its first one; an image file keeps the last one.
        """
        if self.source.is_image:
            return self._write_image(image)
        if self.container is None:
            self._open_video(image.shape, seconds)
        if seconds - self.latest_seconds > LOST_TIMEOUT and self.source.live:
            self.start += seconds - self.latest_seconds - 1 / self.fps
        self.latest_seconds = seconds
        position = round((seconds - self.start) / self.tick)
        if position <= self.position:
            self.left_out += 1
            return
        if self.format.ticks is None and position - self.position > MAX_AVI_GAP:
            self._fail(f"an .avi can't show a frame for so long, take .mp4; what there is lies in {self.partial}")
        try:
            self.sound.write_until(seconds - self.start)
            self.container.mux(self.video.encode(self._to_video_frame(image, position)))
        except av.FFmpegError as error:
            self._fail(f"can't be written ({error.strerror}); what there is lies in {self.partial}")
        self.position = position
        self.frame_count += 1

    def _write_image(self, image):
        try:
            self.partial.write_bytes(cv2.imencode(self.path.suffix, image)[1])
        except (OSError, cv2.error) as error:
            self.partial.unlink(missing_ok=True)
            self._fail(f"can't be written ({getattr(error, 'strerror', None) or 'too large for this ending'})")
        self.frame_count = 1

    def _open_video(self, shape, seconds):
        (height, width), suffix = shape[:2], self.path.suffix.lower()
        self.shape, self.start, self.latest_seconds, self.position = shape, seconds, seconds, -1
        self.format = FORMATS[suffix]
        self.tick = Fraction(1, self.format.ticks) if self.format.ticks else 1 / self.fps
        # flushed: a packet is in the file at once. file: because the name could look like an address
        options = {"flush_packets": "1", **self.format.muxer_options}
        path = f"file:{os.path.abspath(self.partial)}"
        container = self.files.enter_context(av.open(path, "w", format=suffix[1:], container_options=options))
        self.video = container.add_stream(
            self.format.codec, self.fps, self.format.codec_options, time_base=self.tick, pix_fmt=self.format.pixels
        )
        self.video.width, self.video.height = width + width % 2, height + height % 2  # yuv420p has no odd sizes
        heard = self.source.address if os.path.isfile(self.source.address) and not self.source.live else None
        sound = Sound(heard, container, self.format.copied_sound, self.format.sound, seconds)
        self.sound = self.files.enter_context(closing(sound))
        try:
            container.start_encoding()
        except av.FFmpegError as error:
            self._fail(f"a video of {width}x{height} pixels can't be written in this format ({error.strerror})")
        self.container = container

    def _to_video_frame(self, image, position):
        height, width = self.shape[:2]
        if image.shape != self.shape:
            image = cv2.resize(image, (width, height))
        if width % 2 or height % 2:
            image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        # converted by OpenCV, which takes a third of FFmpeg's time
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), "yuv420p")
        frame.pts, frame.time_base = position, self.tick
        return frame

    def __exit__(self, *_: object) -> None:
        try:
            with self.files:
                if self.container and self.frame_count:
                    self.sound.write_until(self.latest_seconds - self.start + 1 / self.fps)
                    self.container.mux(self.video.encode(None))
        except av.FFmpegError as error:
            if self.frame_count:  # else the first error was told
                self._fail(f"can't be written ({error.strerror}); what there is lies in {self.partial}")
        if not self.frame_count:
            if self.partial.exists() and not self.partial.stat().st_size:
                self.partial.unlink()
            return
        if not self.partial.exists():
            self._fail("was removed while it was written")
        self._check_overwrite(f"; the new one is {self.partial}")
        try:
            os.replace(self.partial, self.path)
        except OSError as error:
            self._fail(f"can't be replaced ({error.strerror}); the new one is {self.partial}")

    @property
    def lacking(self) -> str:
        """What the file lacks of its source, as the end of a sentence; empty if nothing."""
        lacking = ""
        if self.left_out:
            lacking += f", without {self.left_out} frames, which came too fast for an .avi; .mp4 has them"
        if self.container and self.sound.broken:
            lacking += f", without {self.sound.broken} broken packets of sound"
        if self.container and self.sound.error:
            lacking += f", without sound from {self.sound.seconds:.1f} s on ({self.sound.error})"
        return lacking
