"""Read video files and streams by PyAV: frames that are upright and have square pixels, and their times.

FFmpeg, which PyAV calls, knows formats that name other files and addresses, and would open whatever they name. Here it
opens no file at all: it reads one that Python has opened, of a format that holds its own data. At an address, only the
protocols may be used that the address calls for.
"""

import contextlib
import ctypes
import errno
import io
import os
import re
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator

import cv2
import numpy as np

from expressions import MAX_IMAGE_PIXELS
from expressions.image_formats import MAX_SCANS

try:
    import resource

    UNLIMITED = resource.getrlimit(resource.RLIMIT_DATA)  # what the program itself may take
except ImportError:  # Windows
    resource = None

# FFmpeg's names of the formats that hold their own data
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,mpeg,mpegts,ogg,asf,dv,mxf,ivf"
RAW_FORMATS = "jpeg_pipe,mjpeg,h264,hevc,m4v,mpegvideo,obu"  # frames in a row; they tell no length, and FFmpeg guesses
FILE_FORMATS = f"{CONTAINERS},{RAW_FORMATS}"
# a single JPEG is an image; what a playlist (HLS) names may be sound or text alone
HTTP_FORMATS = f"{FILE_FORMATS},hls,mpjpeg,live_flv,aac,ac3,eac3,mp3,webvtt".replace("jpeg_pipe,", "")
HTTP, RTSP, RTMP = "http,https,httpproxy,tcp,tls,crypto", "rtp,tcp,tls", "rtmp,rtmps,rtmpt,rtmpts,ffrtmphttp,tcp,tls"
ADDRESSES = {  # the protocols and formats of each kind of address; without sdp, which opens ports
    "http": (HTTP, HTTP_FORMATS),
    "https": (HTTP, HTTP_FORMATS),
    "rtsp": (RTSP, "rtsp"),
    "rtsps": (RTSP, "rtsp"),
    "rtmp": (RTMP, "flv,live_flv"),
    "rtmps": (RTMP, "flv,live_flv"),
    "rtp": ("rtp,udp", "rtp,mpegts"),
    "udp": ("udp", FILE_FORMATS),
    "tcp": ("tcp", FILE_FORMATS),
    "ftp": ("ftp,tcp", FILE_FORMATS),
}
STREAM_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp"}  # live, whatever they say of their length
STALL_TIMEOUT = 2  # seconds without a frame, after which a camera or stream is opened again
LOST_TIMEOUT = 5  # seconds without a frame, after which it is given up
PART_SECONDS = 15  # longer than a part of an HLS broadcast lasts; so long its next part is waited for
FILE_TIMEOUT = 60  # seconds for opening a file, and for a single read
MIN_STEP, MAX_STEP = 0.001, 600  # seconds between two frames of a video; files may claim anything
SEEK_MARGIN = 5  # seconds to start before the wanted time: right after a jump, frames may lack those they build on
MAX_BROKEN = 1000  # frames in a row, before a video is ended
DEFAULT_FPS = 30  # where a source doesn't tell
MIN_FPS, MAX_FPS = 0.1, 500  # files may say 0 or a clock's ticks
MIN_STRETCH, MAX_STRETCH = 1.02, 4  # of pixels to squares; less is rounding, and real ones are below 2.5
MAX_FRAMES = 10**9
MAX_STREAMS = 100  # in a file; each takes memory
MAX_SINGLE_PIXELS = 640 * 480  # up to here one thread decodes; more cost more processor time than they save
MAX_THREADS = 4  # of a decoder; each takes frames in memory, and the detector is slower than one
# by which the program may grow while FFmpeg opens or reads; 8K with 16 reference frames takes 1 GB
MAX_MEMORY_BYTES = 2**31
NO_VIDEO = "not a video or image that can be read, or too large a one"
ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
COLORSPACES = {0, 1, 2, 4, 5, 6, 7, 9}  # FFmpeg's numbers; it can't convert others, such as ICtCp, or nonsense
BUFFER_BYTES = 2**18  # read at a time; with FFmpeg's 32 KB Python would be called more often


class Video:
    """A video file or stream. Raises VideoError if it can't be opened, and OSError if the file can't be.

    Args:
        address: A path, or an address of one of ADDRESSES.
        scheme: Of the address, in lower case; None for a path.

    Attributes:
        fps: Frames per second, DEFAULT_FPS if unknown.
        frame_count: How many frames there should be; None if unknown.
        duration: Seconds that the video should last; None if unknown.
        finite: Whether its length is known, in seconds or bytes.
        live: Whether it is a stream without an end, or of a kind that has none.
        in_parts: Whether it is a broadcast that comes in parts of some seconds each (HLS).
        beginning: Is the same in another Video of the address that begins with the same frame; None if unknown.
        skipped: How many broken frames were left out by `frames` so far.
        missing_seconds: By how much a video that `frames` has read to its end is shorter than it says, if by more than
            a second; else 0.
    """

    def __init__(self, address: str, scheme: str | None = None) -> None:
        import av  # not above: it takes a tenth of a second, and neither cameras nor images need it

        self.errors = (av.error.FFmpegError, OSError, MemoryError)
        protocols, formats = ADDRESSES[scheme] if scheme else ("", FILE_FORMATS)
        options = {"protocol_whitelist": protocols, "format_whitelist": formats, "max_streams": str(MAX_STREAMS)}
        if formats == "rtsp":
            options["rtsp_transport"] = "tcp"  # a firewall lets it in, and no port is opened
        read_timeout = PART_SECONDS if ".m3u8" in address.lower() else STALL_TIMEOUT
        self.file = None if scheme else TimedFile(address)
        self.skipped, self.missing_seconds, self.beginning = 0, 0.0, None
        self.container, self.decoded, self.memory = None, deque(), _memory_limit()
        try:
            with self._limits():
                self.container = av.open(
                    self.file or address,
                    options={"max_pixels": str(MAX_IMAGE_PIXELS)},
                    container_options=options,
                    metadata_errors="replace",
                    buffer_size=BUFFER_BYTES,
                    timeout=(LOST_TIMEOUT, read_timeout) if scheme else FILE_TIMEOUT,
                )
                self._read_header(scheme in STREAM_SCHEMES)
        except self.errors as error:
            self.close()
            is_video = not isinstance(error, (ValueError, MemoryError))
            raise VideoError("can't be opened" if is_video else NO_VIDEO) from error
        self.reformatter = av.video.reformatter.VideoReformatter()

    def _read_header(self, live):
        self.stream = stream = self.container.streams.best("video")
        ratio = float(stream and stream.sample_aspect_ratio or 1)
        stretch = max(ratio, 1 / ratio)
        self.stretch = ratio if MIN_STRETCH < stretch < MAX_STRETCH else 1.0
        if not (stream and stream.codec_context and stream.width * stream.height * stretch <= MAX_IMAGE_PIXELS):
            # before a frame is decoded; a stream that was entered between its key frames tells no size yet, which is 0
            raise MemoryError
        stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}
        rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        rate = next((rate for rate in rates if MIN_FPS <= rate <= MAX_FPS), None)
        self.fps = rate or DEFAULT_FPS
        self.duration, self.streams = self._claimed_duration()
        for other in self.container.streams:
            if other not in self.streams:
                other.discard = type(other.discard).all
        is_playlist = self.container.format.name == "hls"  # its size is not that of what it names
        size = os.fstat(self.file.fileno()).st_size if self.file else max(self.container.size, 0) * (not is_playlist)
        self.finite = self.duration is not None or size > 0
        self.live, self.in_parts = live or not self.finite, is_playlist and not self.finite
        # each further thread holds a frame back, which live would be a delay
        single = self.live or stream.width * stream.height <= MAX_SINGLE_PIXELS
        stream.codec_context.thread_count = 1 if single else min(cv2.getNumThreads(), MAX_THREADS)
        stream.codec_context.thread_type = "AUTO"
        self.frame_count = None
        if self.duration and rate:  # each frame takes a byte at least, so a small file can't have many
            known = filter(None, (stream.frames, size, MAX_FRAMES))
            self.frame_count = min(max(round(self.duration * rate), 1), *known)
        self.origin, self.end = stream.start_time or 0, 0.0
        self.packets = self.container.demux(self.streams)

    def _claimed_duration(self):
        """Return how many seconds the video should last, None if unknown, and the streams that should last so long."""
        container, stream = self.container, self.stream
        if container.format.name in RAW_FORMATS.split(","):
            return None, [stream]
        # FFmpeg takes the end of a cut AVI for its duration, but not for its number of frames
        if ticks := max(stream.duration or 0, stream.frames if container.format.name == "avi" else 0):
            return float(ticks * stream.time_base), [stream]
        if tag := re.fullmatch(r"(\d{1,9}):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):  # of Matroska
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]), [stream]
        return (container.duration or 0) / 1e6 or None, list(container.streams)  # sound may be what lasts so long

    def read(self) -> "av.VideoFrame | None":  # noqa: F821
        """Return the next frame; None in place of a broken one, or if a read takes too long. Raises EOFError."""
        while not self.decoded:
            try:
                with self._limits():
                    packet = next(self.packets)
                    self._decode(packet)
            except StopIteration:
                raise EOFError from None
            except self.errors:
                self.packets = self.container.demux(self.streams)  # the error has ended it
                return None
        return self.decoded.popleft()

    def _decode(self, packet):
        if packet.stream is self.stream and (packet.size or packet.dts is None):  # empty: the frame before it goes on
            scans = bytes(packet).count(b"\xff\xda") if self.stream.codec_context.name == "mjpeg" else 0
            if packet.is_corrupt or scans > MAX_SCANS:  # corrupt: cut off
                raise MemoryError
            # without JPEGs in a row: a still scene begins alike each time
            if self.beginning is None and self.container.format.name != "mpjpeg":
                self.beginning = packet.pts, zlib.crc32(packet)
            self.decoded.extend(packet.decode())
        if packet.pts is not None:
            self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def frames(self, start: float = 0.0) -> Iterator[tuple[np.ndarray, float]]:
        """Yield each frame from `start` on, in seconds, as `image` returns it, and its time in seconds."""
        latest, broken, failing_since = None, 0, 0.0
        if start > SEEK_MARGIN:  # go on at a key frame before it, or, where that can't be done, at the beginning
            with contextlib.suppress(*self.errors):
                ticks = int((start - SEEK_MARGIN) / self.stream.time_base)
                self.container.seek(self.origin + ticks, stream=self.stream)
        while broken < MAX_BROKEN and (not broken or time.perf_counter() - failing_since < LOST_TIMEOUT):
            try:
                frame = self.read()
            except EOFError:
                break
            if frame is None:
                failing_since = failing_since if broken else time.perf_counter()
                broken += 1
                continue
            self.skipped, broken = self.skipped + broken, 0
            latest = self._credible_seconds(frame, latest, sought=start > SEEK_MARGIN)
            if latest >= start:
                yield self.image(frame), latest
        missing = (self.duration or 0.0) - max(self.end, self.end - float(self.origin * self.stream.time_base))
        self.missing_seconds = missing if missing > 1 else 0.0

    def _credible_seconds(self, frame, latest, sought):
        """Return the time of a frame after one at `latest`; by the frame rate where it is none or can't be right."""
        seconds = self.seconds(frame)
        before = -1 / self.fps if latest is None else latest
        if seconds is not None and (before + MIN_STEP < seconds < before + MAX_STEP or (sought and latest is None)):
            return seconds
        return before + 1 / self.fps

    def seconds(self, frame: "av.VideoFrame") -> float | None:  # noqa: F821
        """Return when a frame is shown, in seconds from the beginning; None if the file doesn't tell."""
        pts = frame.dts if frame.pts is None else frame.pts
        return None if pts is None else float((pts - self.origin) * self.stream.time_base)

    def image(self, frame: "av.VideoFrame") -> np.ndarray:  # noqa: F821
        """Return a frame as it is to be seen: BGR uint8 (height, width, 3), upright, its pixels square."""
        width = round(frame.width * max(1, self.stretch))
        height = round(frame.height / min(1, self.stretch))
        frame.colorspace = frame.colorspace if frame.colorspace in COLORSPACES else 2  # unspecified
        image = self.reformatter.reformat(frame, width, height, "bgr24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return cv2.rotate(image, ROTATIONS[turns]) if turns else np.ascontiguousarray(image)

    def close(self) -> None:
        """Close the video and its file."""
        self.decoded.clear()
        if self.container:
            self.container.close()
        if self.file:
            self.file.close()
        trim_memory()

    @contextlib.contextmanager
    def _limits(self):
        """Let FFmpeg take no more than FILE_TIMEOUT and `memory` bytes, as far as the system can limit them."""
        if self.file:
            self.file.start()
        if self.memory:
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory, UNLIMITED[1]))
        try:
            yield
        finally:
            if self.memory:
                resource.setrlimit(resource.RLIMIT_DATA, UNLIMITED)


class VideoError(Exception):
    """A video, a camera or a stream can't be opened, or is lost."""


class TimedFile(io.FileIO):
    """A file that can't be read later than FILE_TIMEOUT after `start`: FFmpeg may search all of it for a frame."""

    def start(self) -> None:
        """Let it be read from now on."""
        self.deadline = time.monotonic() + FILE_TIMEOUT

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; raises TimeoutError."""
        if time.monotonic() > self.deadline:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return super().read(size)


def trim_memory() -> None:
    """Return freed memory to the system; glibc would keep most of it, and take more for the next video."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _memory_limit():
    """Return how much memory the program may take while a video is read, from now on; None where that can't be told."""
    try:
        with open("/proc/self/statm") as numbers:
            taken = int(numbers.read().split()[5]) * resource.getpagesize()
    except OSError:
        return None
    return min(limit for limit in (taken + MAX_MEMORY_BYTES, *UNLIMITED) if limit != resource.RLIM_INFINITY)
