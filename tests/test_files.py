"""Files that are replaced, and locks on files."""

import contextlib
import errno
import os
import struct
from types import SimpleNamespace

import pytest
from conftest import VIDEO_SUFFIXES

from expressions import EMOTIONS, UserError, files
from expressions.inference.recorder import Recorder
from expressions.inference.tables import Table

fcntl = pytest.importorskip("fcntl")  # not on Windows


def locking(descriptor, mode, count):
    """What msvcrt.locking does: lock bytes from the file's position on, or raise PermissionError."""
    assert mode == "LK_NBLCK"
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_CUR, 0, count, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError as error:
        raise PermissionError(error.errno, error.strerror) from None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """And what a killed process left half is written over, but no file of the user's."""
    path, other = tmp_path / "model.h5", tmp_path / "model.partial.h5"
    other.write_text("mine")
    with contextlib.suppress(KeyError), files.atomic_write(path) as first:
        first.write_text("half")
        raise KeyError
    assert set(tmp_path.iterdir()) == {other}
    with files.atomic_write(path) as second:
        second.write_text("new")
    assert set(tmp_path.iterdir()) == {other, path} and path.read_text() == "new" and other.read_text() == "mine"
    assert first == second and ".partial." in first.name and first.suffix == ".h5"


@pytest.mark.parametrize("windows", [False, True])
def test_only_one_program_can_lock_a_file(tmp_path, monkeypatch, windows):
    if windows:
        if not hasattr(fcntl, "F_OFD_SETLK"):
            pytest.skip("needs locks of Linux that belong to an open file, as those of Windows do")
        monkeypatch.setattr(files, "fcntl", None)
        monkeypatch.setattr(files, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="LK_NBLCK"), raising=False)
    path = tmp_path / "table.csv"
    path.write_bytes(b"one ")
    with open(path, "ab", buffering=0) as file:
        files.lock_file(file, path)
        other = open(path, "ab")
        with pytest.raises(UserError, match="table.csv: another program is writing it"):
            files.lock_file(other, path)
        assert other.closed
        file.write(b"two")
        assert path.read_bytes() == b"one two"
    with open(path, "ab") as file:  # the lock ends with the file
        files.lock_file(file, path)
    assert os.listdir(tmp_path) == ["table.csv"]
    new = tmp_path / "new.csv"
    with Table(new, EMOTIONS) as table:
        table.write("video", SimpleNamespace(number=0, seconds=0.0), [])
    assert new.stat().st_size < 1000  # written from its beginning


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".csv", *VIDEO_SUFFIXES, ".png"])
def test_a_file_system_without_locks(tmp_path, frame, monkeypatch, suffix):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / f"out{suffix}"
    if suffix == ".csv":
        with Table(path, EMOTIONS) as table:
            table.write("video", SimpleNamespace(number=0, seconds=0.0), [])
    else:
        with Recorder(path, SimpleNamespace(is_image=suffix == ".png", live=False, fps=10, address="")) as recorder:
            recorder.write(frame, 0.0)
    assert path.stat().st_size
