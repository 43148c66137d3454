"""A real window: its keys, its title, its size, and no screen."""

import os
import socket
import struct
import subprocess
import sys

import pytest
from conftest import (
    ROOT,
    gray_png,
    needs_xvfb,
    x_server,
)

from expressions import UserError, window
from expressions.window import Window, screen_size


@pytest.mark.parametrize("display", ["", ":987", "nowhere:1", "localhost:99999", "nonsense"])
@pytest.mark.faults
def test_a_window_without_a_screen(monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="no screen"):
        Window("test").__enter__()


@needs_xvfb
@pytest.mark.faults
def test_a_screen_that_lets_only_those_in_who_have_its_cookie(tmp_path, monkeypatch):
    """Under sudo, or in a container, DISPLAY may be set though the server refuses: Qt would end the process."""
    entry = [b"", b"", b"MIT-MAGIC-COOKIE-1", bytes(16)]  # of any host and display
    fields = b"".join(struct.pack(">H", len(field)) + field for field in entry)
    (tmp_path / "cookie").write_bytes(struct.pack(">H", 0xFFFF) + fields)
    (tmp_path / "empty").touch()
    with x_server("800x600x24", "-auth", tmp_path / "cookie") as (_, display):
        monkeypatch.setenv("DISPLAY", display)
        for name, size in (("cookie", (800, 600)), ("empty", None)):
            monkeypatch.setenv("XAUTHORITY", str(tmp_path / name))
            assert screen_size() == size


@pytest.mark.faults
def test_a_screen_that_never_answers(monkeypatch):
    monkeypatch.setattr("expressions.window.ANSWER_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("DISPLAY", f"127.0.0.1:{server.getsockname()[1] - 6000}")
        assert screen_size() is None


@needs_xvfb
@pytest.mark.slow
@pytest.mark.parametrize("screen", [(1600, 1200), (800, 480)])
def test_the_keys_of_a_window(tmp_path, screen):
    """Real keys: waitKey would call an arrow a Q or an S. And a large image gets a window that the screen has room for,
    in a desktop that wants Qt to speak Wayland."""
    (tmp_path / "show.py").write_text(f"""
import subprocess, sys, time
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from expressions.window import Window
picture = np.zeros((3000, 4000, 3), np.uint8)
def xdotool(*words):
    return subprocess.run(["xdotool", *words], capture_output=True, text=True, check=True).stdout.strip()
with Window("The keys") as window:
    for _ in range(20):
        window.show(picture, name="a\\nb.png")
        time.sleep(0.02)
    handle = xdotool("search", "--onlyvisible", "--name", "b.png - The keys").split()[0]
    print(xdotool("getwindowgeometry", "--shell", handle))
    xdotool("windowfocus", handle)
    for name in ("b", "Left", "Right", "Shift_L", "F5", "Escape", "space"):
        xdotool("key", "--window", handle, name)
        keys = []
        for _ in range(20):
            keys.append(window.show(picture))
            time.sleep(0.01)
        print("key", name, repr("".join(keys)))
""")
    with x_server("{}x{}x24".format(*screen)) as (_, display):
        environment = os.environ | {"DISPLAY": display, "QT_QPA_PLATFORM": "wayland"}
        result = subprocess.run(
            [sys.executable, str(tmp_path / "show.py")], env=environment, capture_output=True, text=True, timeout=120
        )
    keys = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("key")]
    assert [" ".join(words) for words in keys] == [
        "b 'b'", "Left 'left'", "Right 'right'", "Shift_L ''", "F5 ''", "Escape '\\x1b'", "space ' '",
    ], result.stdout + result.stderr  # fmt: skip
    size = dict(line.split("=") for line in result.stdout.splitlines() if "=" in line)
    assert 0.5 * screen[1] < int(size["HEIGHT"]) <= min(800, 0.9 * screen[1]) and int(size["WIDTH"]) <= screen[0]


@pytest.mark.faults
def test_the_title_of_a_window_is_printable():
    assert Window("a\nb\udce9\x1b").title == "a\\nb\\udce9\\x1b"


def test_an_image_that_is_shown_waits_for_a_key_and_says_so(tmp_path, monkeypatch, capsys):
    class Screen(Window):
        keys = ["", "", "x"]
        __enter__ = __exit__ = lambda self, *_: self

        def show(self, image):
            return self.keys.pop(0)

    (tmp_path / "samples.png").write_bytes(gray_png())
    monkeypatch.setattr(window, "screen_size", lambda: (800, 600))
    monkeypatch.setattr(window, "Window", Screen)
    window.show_image(tmp_path / "samples.png")
    assert Screen.keys == [] and "samples.png: press any key in its window to go on" in capsys.readouterr().out
