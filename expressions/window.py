"""A window on the screen, where there is one."""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import cv2

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.images import read_image


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
    remote = host not in ("", "unix")
    for address in [(host, 6000 + int(number))] if remote else [unix, "\0" + unix]:
        with socket.socket(socket.AF_INET if remote else socket.AF_UNIX) as client:
            client.settimeout(2)
            with contextlib.suppress(OSError, OverflowError):  # no such port
                client.connect(address)
                return True
    return False


class Window:
    """A window on the screen, within `with`.

    Raises UserError when there is no screen, or no longer one, or this OpenCV can't open windows.
    """

    def __init__(self, title):
        self.title, self.due, self.gone = escape_unprintable(title), 0.0, False

    def __enter__(self):
        if not has_display():
            raise UserError("no screen to open a window on (no answer at DISPLAY); write a file with --save FILE")
        if "WAYLAND_DISPLAY" in os.environ:
            os.environ.setdefault("QT_QPA_PLATFORM", "xcb")  # the only one that OpenCV's wheels bring
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error:
            raise UserError(
                "this OpenCV was built without windows; run: pip uninstall opencv-python-headless, "
                "then pip install --force-reinstall 'opencv-python<5'; or use --save FILE"
            ) from None
        self.sized = False
        return self

    def show(self, frame, rate=None):
        """Show a frame, at most `rate` of them a second, so that a film plays at its own speed.

        Returns the character of the key that was pressed since the last one ("" if none), None once the window was
        closed."""
        if not self.sized:
            height, width = frame.shape[:2]
            shrink = min(1, 1280 / width, 800 / height)  # a photo is larger than a screen
            cv2.resizeWindow(self.title, max(1, round(shrink * width)), max(1, round(shrink * height)))
            self.sized = True
        self.look_for_screen()
        cv2.imshow(self.title, frame)
        while (key := cv2.waitKeyEx(1)) < 0 and time.perf_counter() < self.due:
            time.sleep(max(0, min(0.01, self.due - time.perf_counter())))
            self.look_for_screen()
        key &= 0xFFFF  # above it GTK puts the state of Shift and the like
        pause = 1 / rate if rate else 0
        self.due = max(self.due, time.perf_counter() - pause) + pause
        try:
            closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Qt's answer once the last window is closed
            closed = True
        if closed:
            return None
        return chr(key) if 0 < key < 128 else ""  # cut to a byte, as waitKey does it, an arrow would be a Q or an S

    def look_for_screen(self):
        """Qt ends the process once it notices that the screen is gone, so it is asked nothing any more."""
        if not has_display():
            self.gone = True
            raise UserError("the screen that the window was on is gone; start anew, or without a window, --no-window")

    def __exit__(self, *_):
        if not self.gone:
            cv2.destroyAllWindows()


def show_image(path: Path) -> None:
    """Show an image file in a window until a key is pressed; without a screen, print where it is."""
    if not has_display():
        print(f"There is no screen to show a picture on; open {path}.")
        return
    image = read_image(path)
    try:
        with Window(f"{path.stem}: any key goes on") as window:
            while window.show(image) == "":
                time.sleep(0.02)
    except UserError:
        print(f"This OpenCV can't open windows; open {path}.")
