"""Frames in and out: cameras, live streams, video files and images; annotated files."""

import ctypes
import glob
import os
import re
import shutil
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import cv2

from expressions import MAX_IMAGE_PIXELS, UserError
from expressions.files import lock_file, suppress_output
from expressions.images import decode_image, read_image
from expressions.inference.types import Frame

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when OpenCV first uses FFmpeg

IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO_ENDINGS = set(".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
# what OpenCV's wheels can write: browsers play WebM alone, most players all three; per frame of 640x480 VP8 takes 25
# times as long as mp4v, and VP9, which browsers would play in .mp4, 200 times
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
USUAL_RATE = 30  # frames per second, where a source doesn't tell
LOST_AFTER = 5  # seconds without a frame until a camera or stream is given up; before that it is opened again
STALLED_AFTER = 2  # seconds without a frame until it is opened again
SPARED = 2**20  # bytes of a disk that a recording leaves free, for a film needs some to be ended well
SHORTEST_STEP, LONGEST_STEP = 0.001, 600  # seconds from one frame of a film to the next; it may say what it will
EARLIER = 5  # seconds before the wanted place of a film; just after a jump frames may lack what they build on
BROKEN_LIVE, BROKEN_IN_A_FILE = 3, 1000  # frames in a row; with more, a live source is lost, a file at its end
# glibc's malloc_trim, where this is the C library
GIVE_BACK = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
CAMERA = re.compile("[0-9]{1,3}|/dev/(video|v4l/).*")
ADDRESS = re.compile("([a-z][a-z0-9+.-]+)://[^/?#]*([^?#]*)", re.IGNORECASE)  # with its scheme and its path
STREAMS = set("rtmp rtmps rtp rtsp rtsps srt tcp udp".split())  # schemes of what is live, whatever its path ends in
# how to open a camera: what OpenCV takes by itself needs half a minute on Windows
INTERFACES = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}
ADVICE = {
    "linux": "plug it in, close other programs that use it, join the group that may (sudo usermod -aG video $USER)",
    "win32": "plug it in, close other programs that use it, let desktop apps use it (Settings, Privacy, Camera)",
    "darwin": "plug it in, let the terminal use it (System Settings, Privacy & Security, Camera) and start anew",
}


def is_camera(source):
    """Whether it is the index of a camera (unless there is a file of that name) or the path of one on Linux."""
    return CAMERA.fullmatch(source) is not None and not os.path.isfile(source)


def expand(source):
    """The single sources that a word of the command line names, as a list of strings for `Source`.

    A folder, without the folders in it, and a pattern such as "holiday/*.jpg" become their images and videos, told by
    the endings, in natural order: 2 before 10; a .txt file becomes its lines. All else is returned as it is. What
    exists under its name is no pattern. Digits are a camera's index unless a file has that name; a folder called 0 is
    written ./0.
    Raises UserError for a folder or list that can't be read, and for one, or a pattern, without images and videos.
    """
    if is_list(source):
        return list(listed(source))
    if os.path.isdir(source) and not is_camera(source):
        try:
            found = [os.path.join(source, name) for name in os.listdir(source)]
        except OSError as error:
            raise UserError(f"{source}: can't be read ({error.strerror})") from None
    elif glob.has_magic(source) and not (ADDRESS.match(source) or os.path.exists(source)):
        found = glob.glob(source, recursive=True)
    else:
        return [source]
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS
    shown = [path for path in map(Path, found) if path.suffix.lower() in endings and not path.name.startswith(".")]
    names = [str(path) for path in shown if not os.path.isdir(path)]  # a dangling link is not passed over in silence
    if not names:
        raise UserError(f"{source}: no image or video there; known endings are {', '.join(sorted(endings))}")
    return sorted(
        names, key=lambda name: [int(x) if i % 2 else x.lower() for i, x in enumerate(re.split("([0-9]+)", name))]
    )


def is_list(source):
    """Whether it is a text file, with the name of a source in each line."""
    return source.lower().endswith(".txt") and os.path.isfile(source)


def listed(path):
    """The sources that a text file names, one by one. Raises UserError when it can't be read, or names none."""
    name = None
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for name in filter(None, map(str.strip, lines)):
                if "\0" in name:
                    raise UserError(f"{path}: is no UTF-8 text; save it as such")
                yield name
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    if name is None:
        raise UserError(f"{path}: empty; give the name of a file in each line")


def place_of_result(name, source):
    """Where the result of the file `name` lies in the folder of results: as the file does in the folder that `source`
    names, or is the pattern's; of one in a list, in the working directory."""
    root = "" if is_list(source) else source
    while not os.path.isdir(root or "."):
        root = os.path.dirname(root)
    try:
        path = os.path.relpath(name, root or ".")
    except ValueError:  # on another drive of Windows
        path = os.path.abspath(name).replace(":", "")
    return path.replace(os.pardir + os.sep, "__" + os.sep)


def parse_size(text):
    """(width, height) in pixels that a text such as "1280x720" names. Raises UserError where it doesn't."""
    match = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.lower())
    if not match:
        raise UserError(f"--size {text}: not a size; give width and height in pixels, such as 1280x720")
    return int(match[1]), int(match[2])


class Source:
    """The Frames of a camera, a live stream, a video file or an image: iterate over it, within `with`.

    Every frame of a file comes, in order; of a live source the newest one, so that a slow program can't fall behind.
    source: one of `expand`. size: (width, height) to ask of a camera, None for its own choice. start: when to begin
    in a film, in seconds; there may be no frames from there on, and few kinds of files can't be entered so.

    name: the source, without the user and password of an address. camera, live, still: whether it is a camera; a camera
    or a stream; a single image. rate: frames per second, None where it isn't a video file. length: how many frames the
    file says it has, None if unknown. seconds: the latest frame's time. skipped: broken frames left out so far.
    dropped: live frames that newer ones replaced. missing: seconds by which a file, read to its end, falls short of the
    length it names, if more than one; it is damaged, or was cut without being encoded again.
    Raises UserError when it can't be opened or read, and when a live source is lost and not back in LOST_AFTER seconds.
    """

    def __init__(self, source, size=None, start=0.0):
        self.address, self.size, self.start = str(source), size, start
        self.camera, self.remote = is_camera(self.address), ADDRESS.match(self.address)
        self.name = re.sub("//[^/]*@", "//", self.address) if self.remote else self.address
        ending = Path(self.remote[2] if self.remote else self.address).suffix.lower()
        streamed = self.remote and (self.remote[1].lower() in STREAMS or ending not in IMAGE_ENDINGS | VIDEO_ENDINGS)
        self.live = self.camera or bool(streamed)
        self.still = ending in IMAGE_ENDINGS and not self.live
        self.rate = self.length = self.capture = self.reader = None
        self.seconds, self.skipped, self.dropped, self.missing = 0.0, 0, 0, 0.0
        self.news, self.closing = threading.Event(), threading.Event()
        if not (self.camera or self.remote or os.path.isfile(self.address)):  # for a pipe one could wait for ever
            self.fail("no such video or image; give a file, an address, or the index of a camera such as 0")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our one line says it better
        self.frames = self.read_live() if self.live else self.read_image() if self.still else self.read_film()
        try:
            self.first = next(self.frames, None)
        except OSError as error:
            self.fail(f"can't be read ({error.strerror})")
        except BaseException:
            self.__exit__()
            raise
        if self.first is None and not start:
            self.fail(f"not {'an image' if self.still else 'a video'} that OpenCV can read, or too large a one")

    def __iter__(self):
        for number, (image, seconds) in enumerate(chain([self.first], self.frames) if self.first else ()):
            self.seconds = seconds
            yield Frame(image, number, seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closing.set()
        if self.reader:
            self.reader.join(0.5)  # stuck in a read it is left alone; it ends by itself, or with the program
        elif self.capture:
            release(self.capture)
        self.frames, self.first, self.newest = iter(()), None, None  # which lead back to this, and would stay for long

    def fail(self, what):
        if self.camera:
            advice = ADVICE.get(sys.platform, "plug it in")
            raise UserError(f"camera {self.name}: {what}; {advice}, or name another with --source")
        raise UserError(f"{self.name}: {what}" + ("; look at the network and at the address" if self.remote else ""))

    def open(self):
        """A new cv2.VideoCapture of it, which may turn out not to be open; so is one whose frames are too large."""
        capture = self.connect()
        if capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT) > MAX_IMAGE_PIXELS:
            capture.release()  # before the first frame is unpacked, to more than memory may hold
        return capture

    def connect(self):
        # names are handed over as bytes: one that isn't UTF-8 would make OpenCV crash
        if self.remote:
            options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(1000 * LOST_AFTER)]
            options += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(1000 * STALLED_AFTER)]
            options += [cv2.CAP_PROP_N_THREADS, 1] * self.live  # every further one in the decoder holds a frame back
            return cv2.VideoCapture(os.fsencode(self.address), cv2.CAP_FFMPEG, options)
        if not self.camera:
            path = os.path.abspath(self.address)  # FFmpeg takes a mere "12:30.mp4" for a protocol
            return cv2.VideoCapture(os.fsencode(path))
        index = int(self.address) if self.address.isdecimal() else self.address
        capture = cv2.VideoCapture(index, INTERFACES.get(sys.platform, cv2.CAP_ANY))
        if not capture.isOpened():
            capture = cv2.VideoCapture(index)
        if self.size:
            # uncompressed, larger pictures come at a few frames per second: USB 2 has no room for more
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[1])
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def read_image(self):
        if self.remote:
            capture = self.open()
            capture.set(cv2.CAP_PROP_FORMAT, -1)  # the file's bytes, for FFmpeg would neither turn nor blend it
            data = capture.read()[1]
            image = None if data is None else decode_image(data)
        else:
            image = read_image(self.address)
        if image is not None:
            yield image, 0.0

    def read_film(self):
        if not self.remote:
            open(self.address, "rb").close()  # OpenCV doesn't tell why it can't
        self.capture = self.open()
        rate, length = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = 0.1 <= rate <= 500  # files may say 0, NaN or a clock's ticks
        self.rate = rate if known else USUAL_RATE
        self.length = int(length) if known and 0 < length < 1e9 else None
        end = self.length / self.rate if self.length else float("inf")
        over, broken, failing = 0.0, 0, 0.0  # over: when the latest frame is
        entered = self.start <= EARLIER
        if not entered:
            self.capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (self.start - EARLIER))
        # a read fails on a broken frame just as after the last one, but the next read goes on behind it
        while broken < BROKEN_IN_A_FILE and (not broken or time.perf_counter() - failing < LOST_AFTER):
            good, image = self.capture.read()
            if good:
                self.skipped, broken = self.skipped + broken, 0
                told = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                over, entered = over if entered else told, True
                latest = over - 1 / self.rate
                credible = latest + SHORTEST_STEP < told < latest + LONGEST_STEP and told < end + 1
                seconds = told if credible else over  # some frames lack their time
                over = seconds + 1 / self.rate
                if seconds >= self.start:
                    yield image, seconds
            else:
                failing = failing if broken else time.perf_counter()
                broken += 1
        self.missing = end - over if self.length and end - over > 1 else 0.0

    def read_live(self):
        """The newest frame at every turn. A thread reads them, so that neither they nor a Ctrl-C have to wait."""
        if self.camera:
            self.capture = self.open()  # not in the thread: macOS asks the user for leave in the main one only
        self.newest, self.refused = (None, 0.0, 0), False  # image, when it came, how many have come
        self.reader = threading.Thread(target=self.follow, daemon=True)
        self.reader.start()
        began, seen = 0.0, 0
        while True:
            until = time.perf_counter() + (LOST_AFTER if seen else 2 * LOST_AFTER)
            while self.newest[2] == seen:
                if self.refused or time.perf_counter() > until:
                    self.fail(f"lost, and not back in {LOST_AFTER} seconds" if seen else "can't be opened")
                self.news.wait(0.1)  # not longer: Windows heeds Ctrl-C between waits only
                self.news.clear()
            image, came, count = self.newest
            if seen:
                self.dropped += count - seen - 1
            else:
                began = came
            seen = count
            yield image, came - began

    def follow(self):
        """What the thread does: keep the newest frame, and open the source again when it is lost."""
        capture = self.capture or self.open()
        self.refused = not capture.isOpened()
        broken, count, heard = 0, 0, time.perf_counter()
        while not (self.refused or self.closing.is_set()):
            good, image = capture.read()
            if good:
                self.skipped, broken = self.skipped + broken, 0
                heard, count = time.perf_counter(), count + 1
                self.newest = image, heard, count
                self.news.set()
                continue
            broken += 1
            if broken > BROKEN_LIVE or time.perf_counter() - heard > STALLED_AFTER:
                release(capture)
                self.closing.wait(0.2)
                capture, broken, heard = self.open(), 0, time.perf_counter()
        release(capture)


def release(capture):
    """Close a cv2.VideoCapture, and hand its memory back to the system: Linux's C library would keep most of it, and
    take more for the next one."""
    capture.release()
    if GIVE_BACK:
        GIVE_BACK(0)


class Recording:
    """A file that annotated frames go to, within `with`: a video, or an image where the source is one.

    It grows as NAME.partial.ENDING and gets its name at the end of `with`, also when an exception ends it. A video has
    the source's rate (USUAL_RATE where there is none), and each frame the time it had in the source: a gap is filled
    with the frame before it; of frames closer than the rate allows the first is kept. A live source's gap of more than
    LOST_AFTER, in which the user paused, is left out. There is no sound.
    saved: whether it has got its name.
    Raises UserError when the ending doesn't fit, the file exists and `overwrite` is False, another program writes it,
    or it can't be written; then what there is stays in NAME.partial.ENDING, and an old file is as it was.
    """

    def __init__(self, path, source, overwrite=False):
        self.path, self.source, self.overwrite = Path(path), source, overwrite
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self.writer, self.written, self.saved = None, 0, False
        rate = source.rate or USUAL_RATE
        self.rate = round(rate, 3 if rate < 65 else 2)  # MPEG-4 can't count more than 65535 ticks a second
        endings = IMAGE_ENDINGS if source.still else CODECS
        if self.path.suffix.lower() not in endings:
            kind = "an image" if source.still else "a video"
            self.fail(f"{kind} is written as {', '.join(sorted(endings))}; choose such an ending")
        if not self.path.resolve().parent.is_dir():
            self.fail(f"there is no folder {self.path.parent}; make it first")
        for path in (self.path, self.partial):
            if path.exists() and os.path.exists(source.address) and path.samefile(source.address):
                self.fail(f"{path} is the source itself; choose another name")
        self.spare_others()
        try:
            self.claimed = open(self.partial, "ab")
        except OSError as error:
            self.fail(f"can't be written ({error.strerror}); choose another folder or name")
        lock_file(self.claimed, f"--save {self.path}")
        if sys.platform == "win32":  # where a file that is open here can't be written by OpenCV
            self.claimed.close()
        if self.partial.stat().st_size and not overwrite:
            self.claimed.close()
            self.fail(f"{self.partial} exists already; choose another name or remove it, or add --overwrite")

    def __enter__(self):
        return self

    def fail(self, why):
        raise UserError(f"--save {self.path}: {why}")

    def spare_others(self, what_there_is=""):
        if self.path.is_dir() or (self.path.exists() and not self.overwrite):
            self.fail(f"exists already; choose another name or remove it, or add --overwrite{what_there_is}")

    def write(self, frame):
        """Take a frame, BGR uint8 (height, width, 3), for the time of the source's latest one.

        All frames of a video get the size of the first; of several ones for an image the last is kept."""
        if self.source.still:
            try:
                self.partial.write_bytes(cv2.imencode(self.path.suffix, frame)[1])
            except (OSError, cv2.error) as error:
                self.partial.unlink(missing_ok=True)
                self.fail(f"can't be written ({getattr(error, 'strerror', None) or 'too large for this ending'})")
            self.written = 1
            return
        if self.writer is None:
            self.size, self.began, self.last = frame.shape[1::-1], self.source.seconds, self.source.seconds
            self.open()
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        if self.source.seconds - self.last > LOST_AFTER and self.source.live:
            self.began += self.source.seconds - self.last - 1 / self.rate
        self.last = self.source.seconds
        due = round((self.source.seconds - self.began) * self.rate)
        while self.written <= due:
            self.look_for_room(frame)
            self.writer.write(frame if self.written == due else self.latest)
            self.written += 1
        self.latest = frame

    def look_for_room(self, frame):
        """End the film while it can be ended well: OpenCV doesn't tell when the disk is full."""
        try:
            total, _, free = shutil.disk_usage(self.partial.parent)
        except OSError as error:
            self.give_up(f"its folder can't be written to any more ({error.strerror})")
        if total and free < SPARED + 64 * self.written + frame.nbytes:  # an index of frames comes last
            self.give_up(f"the disk is full; what there is lies in {self.partial}")

    def give_up(self, why):
        self.writer.release()
        self.written = 0
        self.fail(why)

    def open(self):
        codec = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
        with suppress_output():  # OpenCV writes that it doesn't know a tag, of every WebM file, though it does
            self.writer = cv2.VideoWriter(os.fsencode(os.path.abspath(self.partial)), codec, self.rate, self.size)
        if not self.writer.isOpened():
            self.fail(f"OpenCV can't write a film of {self.size[0]}x{self.size[1]} pixels in this format; try .avi")

    def __exit__(self, *_):
        if self.writer:
            self.writer.release()
        self.claimed.close()
        if not self.written:
            if self.partial.exists() and not self.partial.stat().st_size:
                self.partial.unlink()
            return
        if not self.partial.exists():
            self.fail("was removed while it was written")
        if self.writer:  # which doesn't tell when something went wrong
            capture = cv2.VideoCapture(os.fsencode(os.path.abspath(self.partial)))
            capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
            there = (
                capture.read()[0] and round(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 * self.rate) == self.written - 1
            )
            if not there:
                self.fail(f"could not be written whole; is the disk full? What there is lies in {self.partial}")
        self.spare_others(f"; the new one is {self.partial}")
        try:
            os.replace(self.partial, self.path)
        except OSError as error:
            self.fail(f"can't be replaced ({error.strerror}); the new one is {self.partial}")
        self.saved = True
