"""A real window: its keys, its title, and no screen."""

import os
import subprocess
import sys

import pytest
from conftest import (
    ROOT,
    needs_xvfb,
    x_server,
)

from expressions import UserError
from expressions.window import Window


@pytest.mark.parametrize("display", ["", ":987", "nowhere:1", "localhost:99999", "nonsense"])
@pytest.mark.faults
def test_a_window_without_a_screen(monkeypatch, display):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="no screen"):
        Window("test").__enter__()


@needs_xvfb
@pytest.mark.slow
def test_the_keys_of_a_window(tmp_path):
    """Real keys: an arrow is none, though waitKey would call it a Q. And a large image gets a window for a screen."""
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
        window.show(picture)
        time.sleep(0.02)
    handle = xdotool("search", "--onlyvisible", "--name", "The keys").split()[0]
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
    with x_server("1600x1200x24") as (_, display):
        result = subprocess.run(
            [sys.executable, str(tmp_path / "show.py")], env=os.environ | {"DISPLAY": display},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    keys = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("key")]
    assert [" ".join(words) for words in keys] == [
        "b 'b'", "Left ''", "Right ''", "Shift_L ''", "F5 ''", "Escape '\\x1b'", "space ' '",
    ], result.stdout + result.stderr  # fmt: skip
    size = dict(line.split("=") for line in result.stdout.splitlines() if "=" in line)
    assert int(size["WIDTH"]) <= 1280 and int(size["HEIGHT"]) <= 900


@pytest.mark.faults
def test_the_title_of_a_window_is_printable():
    assert Window("a\nb\udce9\x1b").title == "a\\nb\\udce9\\x1b"
