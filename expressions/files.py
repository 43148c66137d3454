"""Write files so that a crash leaves no half of one, lock them, and silence libraries."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from expressions import UserError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


@contextlib.contextmanager
def atomic_write(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file there replaces `path` at the end of the `with` block, unless the block raises.

    `partial` is that path; give a unique one where processes may write at the same time. By default it is HASH.partial
    with the suffix of `path`: no user gives a file this name, and what a killed process left there is written over.
    """
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    partial = partial or path.with_name(f"{name}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def lock_file(file: IO, name: object) -> None:
    """Lock an open file against other runs of the program, until it is closed or the process ends.

    The lock is on the file itself, so no lock file is left beside it. On a file system without locks this does nothing.

    Raises:
        UserError: Another process holds the lock; `file`, called `name` in the message, is then closed.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # lock a byte that no file reaches, because on Windows nobody else can read a locked one
            os.lseek(file.fileno(), 2**31 - 2, os.SEEK_SET)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file.fileno(), 0, os.SEEK_SET)  # else a new file would be written from there
    except (BlockingIOError, PermissionError):  # the latter on Windows, and on some file systems
        file.close()
        raise UserError(f"{name}: another program is writing it; wait for its end, or choose another name") from None
    except OSError:  # a file system without locks
        pass


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Discard what is written to stdout and stderr within the `with` block, also by libraries written in C."""
    copies = {}
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # closed by the parent process
            copies[stream] = os.dup(stream)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for stream in copies:
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in copies.items():
                os.dup2(copy, stream)
                os.close(copy)
