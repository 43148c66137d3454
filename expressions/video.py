"""Frames in and out: cameras, video files and images; a window; annotated files."""

import os
import socket
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from expressions import UserError

IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# what OpenCV's wheels can write; browsers play WebM only, other players all three
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
USUAL_RATE = 30  # frames per second, where a source doesn't tell


class Source:
    """Frames, BGR uint8 (height, width, 3), from a camera, a video file or an image: iterate over it, within `with`.

    source: a camera's index ("0") or a path. still: whether it is a single image. rate: frames per second, None for a
    camera. Raises UserError when it can't be opened, or breaks off before its first frame.
    """

    def __init__(self, source):
        self.name, self.capture, self.picture, self.rate = str(source), None, None, None
        camera = self.name.isdecimal() and len(self.name) < 4
        path = Path(self.name)
        if not camera and not path.is_file():
            raise UserError(f"{path}: no such video or image; give a file, or the index of a camera such as 0")
        if path.suffix.lower() in IMAGE_ENDINGS and not camera:
            data = np.fromfile(path, np.uint8)
            self.picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if self.picture is None:
                raise UserError(f"{path}: not an image that OpenCV can read")
        else:
            self.open(int(self.name) if camera else str(path), camera)
        self.still = self.picture is not None

    def open(self, source, camera):
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our one line says it better
        try:
            # Windows takes half a minute to open a camera through its default interface
            interface = cv2.CAP_DSHOW if camera and sys.platform == "win32" else cv2.CAP_ANY
            self.capture = cv2.VideoCapture(source, interface)
        finally:
            cv2.utils.logging.setLogLevel(level)
        self.first = self.capture.read()[1] if self.capture.isOpened() else None
        if self.first is None:
            self.capture.release()
            if not camera:
                raise UserError(f"{source}: not a video that OpenCV can read")
            raise UserError(
                f"camera {source}: can't be opened; plug it in, close other programs that use it, allow this one to, "
                "or name another source with --source"
            )
        if not camera:
            rate = self.capture.get(cv2.CAP_PROP_FPS)
            self.rate = rate if 1 <= rate <= 240 else USUAL_RATE  # files may say 0, NaN or a clock's ticks

    def __iter__(self):
        if self.still:
            yield self.picture
            return
        frame = self.first
        while frame is not None:
            yield frame
            frame = self.capture.read()[1]
        if self.rate is None:
            raise UserError(f"camera {self.name}: gives no more pictures; plug it in again and start anew")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.capture:
            self.capture.release()


def has_display():
    """Whether there is a screen to open a window on. Asking Qt instead would end the process when there is none.

    On Linux OpenCV's wheels talk to an X server alone (under Wayland to XWayland): one must answer at DISPLAY."""
    if sys.platform != "linux":
        return True
    host, _, number = os.environ.get("DISPLAY", "").rpartition(":")
    number = number.split(".")[0]
    if not number.isdecimal():
        return False
    unix = f"/tmp/.X11-unix/X{number}"
    addresses = [(host, 6000 + int(number))] if host not in ("", "unix") else [unix, "\0" + unix]
    for address in addresses:
        with socket.socket(socket.AF_INET if host not in ("", "unix") else socket.AF_UNIX) as client:
            client.settimeout(2)
            try:
                client.connect(address)
                return True
            except OSError:
                continue
    return False


class Window:
    """A window on the screen, within `with`.

    rate: frames per second that `show` does not exceed, so that a file plays at its own speed; None for no limit.
    Raises UserError when there is no screen, or this OpenCV can't open windows.
    """

    def __init__(self, title, rate=None):
        self.title, self.pause, self.due = title, 1 / rate if rate else 0, 0.0

    def __enter__(self):
        if not has_display():
            raise UserError("no screen to open a window on (no answer at DISPLAY); write a file with --save FILE")
        if "WAYLAND_DISPLAY" in os.environ:
            os.environ.setdefault("QT_QPA_PLATFORM", "xcb")  # the only one that OpenCV's wheels bring
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error:
            raise UserError(
                "this OpenCV was built without windows; run: pip uninstall opencv-python-headless, "
                "then pip install --force-reinstall 'opencv-python<5'; or use --save FILE"
            ) from None
        self.sized = False
        return self

    def show(self, frame):
        """Show a frame. Returns the character of the key that was pressed since the last one ("" if none), or None
        once the window was closed."""
        if not self.sized:
            cv2.resizeWindow(self.title, frame.shape[1], frame.shape[0])
            self.sized = True
        cv2.imshow(self.title, frame)
        wait = max(1, round(1000 * (self.due - time.perf_counter())))
        key = cv2.waitKey(wait)
        self.due = max(self.due, time.perf_counter() - self.pause) + self.pause
        try:
            closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Qt's answer once the last window is closed
            closed = True
        if closed:
            return None
        return chr(key & 0xFF) if key != -1 else ""

    def __exit__(self, *_):
        cv2.destroyAllWindows()


def show_picture(path):
    """Show an image file in a window until a key is pressed; without a screen, say where it is."""
    if not has_display():
        print(f"There is no screen to show a picture on; open {path}.")
        return
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    try:
        with Window(f"{Path(path).stem}: any key goes on") as window:
            while window.show(picture) == "":
                time.sleep(0.02)
    except UserError:
        print(f"This OpenCV can't open windows; open {path}.")


class Recording:
    """A file that annotated frames go to, within `with`: a video, or an image where the source is one.

    Raises UserError when the file's ending doesn't fit, it exists already, or it can't be written.
    """

    def __init__(self, path, source):
        self.path, self.still, self.writer = Path(path), source.still, None
        self.live, self.rate = source.rate is None, source.rate or USUAL_RATE
        endings = IMAGE_ENDINGS if self.still else CODECS
        if self.path.suffix.lower() not in endings:
            kind = "an image" if self.still else "a video"
            raise UserError(f"--save {path}: {kind} is written as {', '.join(sorted(endings))}; choose such an ending")
        if self.path.exists():
            raise UserError(f"--save {path}: exists already; choose another name or remove it")
        if not self.path.resolve().parent.is_dir():
            raise UserError(f"--save {path}: there is no folder {self.path.parent}; make it first")

    def __enter__(self):
        return self

    def write(self, frame):
        """Append a frame, BGR uint8; all frames of a video have the size of the first."""
        if self.still:
            try:
                cv2.imencode(self.path.suffix, frame)[1].tofile(self.path)
            except OSError as error:
                raise UserError(f"--save {self.path}: can't be written ({error.strerror})") from None
            return
        if self.writer is None:
            codec = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
            self.size = frame.shape[1::-1]
            self.writer = cv2.VideoWriter(str(self.path), codec, self.rate, self.size)
            if not self.writer.isOpened():
                raise UserError(f"--save {self.path}: OpenCV can't write this file; try another folder, or .avi")
            self.began, self.written = time.perf_counter(), 0
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        # a camera's frames come as they come: each is repeated until the video has caught up with the clock
        due = (time.perf_counter() - self.began) * self.rate if self.live else self.written
        while self.written <= due:
            self.writer.write(frame)
            self.written += 1

    def __exit__(self, *_):
        if self.writer:
            self.writer.release()
