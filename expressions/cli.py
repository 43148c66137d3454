"""Run a command-line program: signals, closed terminals, and the one place where errors are shown."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from expressions import UserError


def begin(module: str) -> None:
    """Called before a script imports packages: one line if one is missing, and no traceback after Ctrl-C meanwhile.

    `module` is the script's __name__; where another program imports it, errors stay exceptions.
    """
    if module == "__main__":
        sys.excepthook = _end_by_exception


def _end_by_exception(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    if not issubclass(kind, ImportError):
        return sys.__excepthook__(kind, error, traceback)
    print(f"{os.path.basename(sys.argv[0])}: {_explain_import_error(error)}", file=sys.stderr)
    sys.exit(2)


def _explain_import_error(error):
    advice = "README.md names the system packages to install"  # such as libGL.so.1
    if isinstance(error, ModuleNotFoundError):
        advice = "activate the environment (. .venv/bin/activate), or run: pip install -r requirements.txt"
    return f"{escape_unprintable(error)}; {advice}"


def run(
    program: str,
    work: Callable[[Sequence[str] | None], int | None],
    arguments: Sequence[str] | None = None,
    disk_full: str | None = None,
) -> int:
    """Run `work(arguments)` as a program and show its errors, one line each on stderr.

    SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. Characters that the terminal can't show are escaped.
    Once a terminal is closed, what is printed there is discarded, so that the program can end well. Notebooks and
    editors have output streams of their own, which need not be files, and may run it in any thread.

    Args:
        program: The script, named before error messages.
        work: Returns an exit status, None for 0; prints its own message about KeyboardInterrupt.
        arguments: None for those of the process.
        disk_full: Replaces the system's message when the disk is full.

    Returns:
        The exit status: of `work`; 2 after UserError and OSError; 130 after KeyboardInterrupt; 141 when nobody reads
        the output any more (`| head`).
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w"))
        if reconfigure := getattr(getattr(sys, name), "reconfigure", None):
            reconfigure(errors="backslashreplace")
        setattr(sys, name, _outlive_terminal(getattr(sys, name)))
    for name, handler in (("SIGTERM", signal.default_int_handler), ("SIGHUP", interrupt_once)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # nohup ignores SIGHUP; leave that as it is
        if number and in_main_thread() and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handler)
    try:
        status = _exit_status(program, work, arguments, disk_full)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # else Python reports the closed pipe when it exits
            with contextlib.suppress(AttributeError, OSError):  # no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141  # 128 + SIGPIPE, as a shell reports it for other programs


def _exit_status(program, work, arguments, disk_full):
    try:
        return work(arguments) or 0
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        # HDF5 raises an OSError without errno, whose text has the number
        full = getattr(error, "errno", None) == errno.ENOSPC or f"errno = {errno.ENOSPC}" in str(error)
        print_error(program, disk_full if full and disk_full else error)
        return 2
    except ModuleNotFoundError as error:  # what only some runs need
        print_error(program, _explain_import_error(error))
        return 2
    except KeyboardInterrupt:
        return 130


def interrupt_once(number: int, _: object) -> None:
    """Raise KeyboardInterrupt at a signal, and ignore further ones: both the system and the shell send SIGHUP."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Terminal(io.FileIO):
    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal gives that was closed
                raise
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.fileno())  # for what libraries print as well
        return len(data)


def _outlive_terminal(stream):
    """Return a stream of the same terminal that discards what is written once that is closed; other streams as is."""
    with contextlib.suppress(AttributeError, OSError):  # a notebook's has no file
        if os.name == "posix" and os.isatty(stream.fileno()):
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            return io.TextIOWrapper(terminal, stream.encoding, stream.errors, line_buffering=True)
    return stream


def in_main_thread() -> bool:
    """Tell whether this is the main thread, which alone may set handlers of signals."""
    return threading.current_thread() is threading.main_thread()


def int_range(lowest: int, highest: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `lowest` to `highest`."""

    def convert(text):
        with contextlib.suppress(ValueError):
            if lowest <= int(text) <= highest:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text}: takes a whole number from {lowest} to {highest}")

    return convert


def print_error(program: str, error: Exception | str) -> None:
    """Print `error` on stderr as one line, above a progress bar if there is one."""
    from tqdm import tqdm  # here, for `begin` comes before any package

    tqdm.write(f"{program}: {escape_unprintable(error)}", file=sys.stderr)


def escape_unprintable(text: object) -> str:
    """Return str(text) as one line that is safe to print; file names may hold line ends and terminal commands."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))
