"""What the programs reach: no network, no files but those that the user named and what their libraries keep."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import command, write_video

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="needs strace"),
]

WRITES = re.compile(r'(?:openat?|creat|mkdir(?:at)?|rename(?:at2?)?|truncate)\(.*?"((?:[^"\\]|\\.)*)"(.*)')
CALLS = "connect,sendto,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,truncate"
KEPT = (".cache/facial-expressions", ".cache/matplotlib", ".config/matplotlib", ".keras")  # in the user's home
SYSTEM = ("/dev/null", "/dev/shm/", "/proc/self/")


def traced(folder, *words):
    """Run a script in `folder`/work with a home and a folder for temporary files of its own.

    Returns what it called upon in the network, and what it wrote outside of work, home and temporary files."""
    for name in ("home", "temporary", "work"):
        (folder / name).mkdir(exist_ok=True)
    environment = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), "PATH": os.environ["PATH"]}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "4096", "-e", f"trace={CALLS}", "-o", folder / "log"]
    result = subprocess.run(
        [*strace, *command(*words)], cwd=folder / "work", env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    calls = [line for line in (folder / "log").read_text(errors="replace").splitlines() if "= -1" not in line]
    own = [str(folder / name) for name in ("work", "temporary")] + [str(folder / "home" / name) for name in KEPT]
    strange = []
    for path, flags in (match.groups() for match in map(WRITES.search, calls) if match):
        opened = flags.startswith(", O_")
        path = os.path.normpath(folder / "work" / path)
        if not opened or re.search("O_WRONLY|O_RDWR|O_CREAT", flags):
            parent = any(place.startswith(path) for place in own)  # of a folder that is kept, made on the way to it
            if not parent and not path.startswith((*own, *SYSTEM)):
                strange.append(path)
    assert len(calls) > 100 and not os.listdir(folder / "temporary")
    return [call for call in calls if re.search("AF_INET|AF_PACKET", call)], strange


def test_the_webcam_program_writes_and_calls_nothing_but_what_it_was_told(tmp_path, trained, frame):
    """The first time, when it compiles the network, and the second time."""
    (tmp_path / "work").mkdir()
    write_video(tmp_path / "work" / "me.avi", [frame] * 3)
    words = ["--source", "me.avi", "--no-window", "--model", trained, "--csv", "a.csv", "--save", "b.avi"]
    for _ in range(2):
        assert traced(tmp_path, "realtime_detect.py", *words, "--overwrite", "--summary", "c.png") == ([], [])
    assert sorted(os.listdir(tmp_path / "work")) == ["a.csv", "b.avi", "c.png", "me.avi"]


def test_training_writes_and_calls_nothing_but_what_it_was_told(tmp_path, data_folder):
    words = ["--data", data_folder, "--model", "model.h5", "--epochs", 1, "--batch-size", 16]
    assert traced(tmp_path, "train.py", *words) == ([], [])
    assert sorted(os.listdir(tmp_path / "work")) == ["model", "model.h5"]
