"""A window on the screen, where there is one."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.files import suppress_output
from expressions.images import read_image

ANSWER_TIMEOUT = 2  # seconds for an X server to answer; one on a network may never do
TYPICAL_SCREEN = (1366, 768)  # pixels, where the system isn't asked
MAX_WINDOW, SCREEN_SHARE = (1280, 800), 0.85  # pixels, and share of the screen, whose panels and title bars take room
NO_SCREEN = (
    "no screen to open a window on (at DISPLAY there is none, or none that lets this user in); "
    "write a file with --save FILE"
)
# keys without a character, as GTK and Qt, Cocoa and Windows number them
ARROWS = {0xFF51: "left", 0xF702: "left", 0x250000: "left", 0xFF53: "right", 0xF703: "right", 0x270000: "right"}


def screen_size() -> tuple[int, int] | None:
    """Return width and height in pixels of the screen that windows open on, None if there is none.

    On Linux, OpenCV's wheels need an X server (under Wayland: XWayland). The one at DISPLAY must take this user's
    cookie, else Qt would end the process; libxcb is what Qt connects with. Other systems are not asked.
    """
    if sys.platform != "linux":
        return TYPICAL_SCREEN
    sizes = []
    thread = threading.Thread(target=_ask_x_server, args=[sizes], daemon=True)
    with suppress_output():  # libxcb tells of a refusal
        thread.start()
        thread.join(ANSWER_TIMEOUT)
    return sizes[0] if sizes else None


class _ScreenIterator(ctypes.Structure):  # xcb_screen_iterator_t; of a screen, 16-bit numbers 10 and 11 are its size
    _fields_ = [("screen", ctypes.POINTER(ctypes.c_uint16)), ("remaining", ctypes.c_int), ("index", ctypes.c_int)]


def _ask_x_server(sizes):
    try:
        xcb = ctypes.CDLL("libxcb.so.1")
    except OSError:  # OpenCV has no windows then
        return
    xcb.xcb_connect.restype = xcb.xcb_get_setup.restype = ctypes.c_void_p
    xcb.xcb_setup_roots_iterator.restype = _ScreenIterator
    connection = ctypes.c_void_p(xcb.xcb_connect(None, None))
    if not xcb.xcb_connection_has_error(connection):
        setup = ctypes.c_void_p(xcb.xcb_get_setup(connection))
        sizes.append(tuple(xcb.xcb_setup_roots_iterator(setup).screen[10:12]))
    xcb.xcb_disconnect(connection)


class Window:
    """A window on the screen, within a `with` block. Raises UserError if there is no screen or OpenCV has no windows.

    If the X server ends while it is open, Qt prints a line and ends the process with status 1.
    """

    def __init__(self, title: str) -> None:
        self.title = escape_unprintable(title)
        self.next_frame_time = 0.0  # by time.perf_counter(); 0 before the first image
        self.name = None  # in the title

    def __enter__(self) -> "Window":
        self.screen = screen_size()
        if not self.screen:
            raise UserError(NO_SCREEN)
        os.environ["QT_QPA_PLATFORM"] = "xcb"  # the only one that OpenCV's wheels bring, whatever desktops set
        try:
            cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error:
            raise UserError(
                "this OpenCV was built without windows; run: pip uninstall opencv-python-headless, "
                "then pip install --force-reinstall 'opencv-python<5'; or use --save FILE"
            ) from None
        return self

    def show(self, image: np.ndarray, fps: float | None = None, name: str | None = None) -> str | None:
        """Show an image, and wait until it is time for the next one.

        Args:
            image: BGR uint8 (height, width, 3).
            fps: Images to show per second at most, so that a video plays at its own speed. None: do not wait.
            name: What the image is called, for the title.

        Returns:
            The character of the key that was pressed since the last call, "left" or "right" for an arrow, "" if none;
            None if the window was closed.
        """
        if not self.next_frame_time:
            height, width = image.shape[:2]
            room = np.minimum(MAX_WINDOW, np.multiply(self.screen, SCREEN_SHARE))
            scale = min(1, *room / (width, height))  # a photo may be larger than the screen
            cv2.resizeWindow(self.title, max(1, round(scale * width)), max(1, round(scale * height)))
        cv2.imshow(self.title, image)
        if name != self.name:
            self.name = name
            cv2.setWindowTitle(self.title, f"{escape_unprintable(name)} - {self.title}")
        while (key := cv2.waitKeyEx(1)) < 0 and (wait := self.next_frame_time - time.perf_counter()) > 0:
            time.sleep(min(0.01, wait))
        self.next_frame_time = max(self.next_frame_time + (1 / fps if fps else 0), time.perf_counter())
        try:
            if cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1:
                return None
        except cv2.error:  # raised with Qt when the last window is closed
            return None
        arrow = ARROWS.get(key)
        key &= 0xFFFF  # GTK puts the state of Shift and the like above it
        # cut to a byte, as waitKey does, an arrow would be a Q or an S
        return arrow or ARROWS.get(key) or (chr(key) if 0 < key < 128 else "")

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()


def show_image(path: Path) -> None:
    """Show an image file in a window until a key is pressed. Where there can be none, print where the file is."""
    image = read_image(path)
    try:
        with Window(f"{path.stem}: any key goes on") as window:
            print(f"{path}: press any key in its window to go on", flush=True)
            while window.show(image) == "":
                time.sleep(0.02)
    except UserError:
        print(f"There is no screen, or this OpenCV has no windows; open {path}.")
