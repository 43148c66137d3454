"""A window on the screen, where there is one."""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.images import read_image


def has_display() -> bool:
    """Tell whether there is a screen to open a window on. Without one, Qt would end the process.

    On Linux, OpenCV's wheels need an X server (under Wayland: XWayland). One must answer at DISPLAY.
    """
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
            with contextlib.suppress(OSError, OverflowError):  # OverflowError: no such port
                client.connect(address)
                return True
    return False


class Window:
    """A window on the screen, open within the `with` block.

    The screen is looked for once, when the window opens. If the X server ends later, Qt prints a line and ends the
    process with status 1.

    Raises:
        UserError: There is no screen, or this OpenCV can't open windows.
    """

    def __init__(self, title: str) -> None:
        self.title = escape_unprintable(title)
        self.next_frame_time = 0.0  # by time.perf_counter()
        self.sized = False

    def __enter__(self) -> "Window":
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
        return self

    def show(self, image: np.ndarray, fps: float | None = None) -> str | None:
        """Show an image, and wait until it is time for the next one.

        Args:
            image: BGR uint8 (height, width, 3).
            fps: Images to show per second at most, so that a video plays at its own speed. None: do not wait.

        Returns:
            The character of the key that was pressed since the last call, "" if none; None if the window was closed.
        """
        if not self.sized:
            height, width = image.shape[:2]
            scale = min(1, 1280 / width, 800 / height)  # a photo may be larger than the screen
            cv2.resizeWindow(self.title, max(1, round(scale * width)), max(1, round(scale * height)))
            self.sized = True
        cv2.imshow(self.title, image)
        while (key := cv2.waitKeyEx(1)) < 0 and (wait := self.next_frame_time - time.perf_counter()) > 0:
            time.sleep(min(0.01, wait))
        pause = 1 / fps if fps else 0
        self.next_frame_time = max(self.next_frame_time, time.perf_counter() - pause) + pause
        try:
            closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # raised with Qt when the last window is closed
            closed = True
        if closed:
            return None
        key &= 0xFFFF  # GTK puts the state of Shift and the like above it
        return chr(key) if 0 < key < 128 else ""  # cut to a byte, as waitKey does, an arrow would be a Q or an S

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()


def show_image(path: Path) -> None:
    """Show an image file in a window until a key is pressed. Without a screen, print where the file is."""
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
