"""A window on the screen, where there is one."""

import os
import socket
import sys
import time
from contextlib import suppress
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
    file = f"/tmp/.X11-unix/X{number}"
    remote = host not in ("", "unix")
    for address in [(host, 6000 + int(number))] if remote else [file, f"\0{file}"]:
        with socket.socket(socket.AF_INET if remote else socket.AF_UNIX) as client:
            client.settimeout(2)
            with suppress(OSError, OverflowError):  # OverflowError: no such port
                client.connect(address)
                return True
    return False


class Window:
    """A window on the screen, within a `with` block. Raises UserError if there is no screen or OpenCV has no windows.

    If the X server ends while it is open, Qt prints a line and ends the process with status 1.
    """

    def __init__(self, title: str) -> None:
        self.title = escape_unprintable(title)
        self.next_frame_time = 0.0  # by time.perf_counter(); 0 before the first image

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
        if not self.next_frame_time:
            height, width = image.shape[:2]
            scale = min(1, 1280 / width, 800 / height)  # a photo may be larger than the screen
            cv2.resizeWindow(self.title, max(1, round(scale * width)), max(1, round(scale * height)))
        cv2.imshow(self.title, image)
        while (key := cv2.waitKeyEx(1)) < 0 and (wait := self.next_frame_time - time.perf_counter()) > 0:
            time.sleep(min(0.01, wait))
        self.next_frame_time = max(self.next_frame_time + (1 / fps if fps else 0), time.perf_counter())
        try:
            if cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1:
                return None
        except cv2.error:  # raised with Qt when the last window is closed
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
