"""What the words of the command line name: cameras, addresses, files, folders, patterns and lists of them."""

import glob
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tqdm import tqdm

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.image_formats import IMAGE_SUFFIXES

VIDEO_SUFFIXES = set(".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
CAMERA = re.compile("[0-9]{1,3}|/dev/(video|v4l/).*")
URL = re.compile("([a-z][a-z0-9+.-]+)://[^/?#]*([^?#]*)", re.IGNORECASE)  # scheme and path
DIGITS = re.compile("([0-9]+)")
PATTERN_SUFFIX = re.compile(r"(?<=\.)[a-z0-9]+\Z", re.IGNORECASE)  # without wildcards
SEPARATORS = os.sep + (os.altsep or "")
RECURSIVE = re.compile(r"(?:(?<=[{0}])|^)\*\*(?:[{0}]+|\Z)".format(re.escape(SEPARATORS)))
MAX_LINE_CHARACTERS = 2**16  # of a list
MAX_SEARCHED_FOLDERS = 1000  # for a hint


def is_camera(source: str) -> bool:
    """Tell whether it is a camera's index, unless a file has that name, or its path on Linux."""
    return CAMERA.fullmatch(source) is not None and not os.path.isfile(source)


def is_list(source: str) -> bool:
    """Tell whether it is a text file, which names a source in each line."""
    return source.lower().endswith(".txt") and os.path.isfile(source)


def resolve_source(source: str) -> str:
    """Return a word of the command line with ~ (the user's home) and a file:// address turned into a path."""
    if source.startswith("~") and not os.path.lexists(source):  # in quotation marks the shell leaves it alone
        return os.path.expanduser(source)
    if not source.lower().startswith("file://"):
        return source
    host, slash, path = source[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise UserError(f"{source}: is on another computer; give a path")
    path = os.fsdecode(unquote_to_bytes(os.fsencode(slash + path)))
    return path[1:] if os.name == "nt" else path  # /C:/me.jpg


def expand_sources(source: str) -> list[str]:
    """Return the single sources that a word of the command line names; raise UserError if there are none to read.

    A folder (without its subfolders) or a pattern such as "holiday/*.jpg" becomes its images and videos, by suffix, in
    natural order: 2 before 10. Each file comes once, whatever links lead to it. What else is there is counted and named
    on stderr. A .txt file becomes its lines. All else, and a pattern that exists as a file, stays as it is. Digits are
    a camera's index unless a file has that name (write ./0 for a folder called 0).
    """
    if is_list(source):
        return list(read_source_list(source))
    if os.path.isdir(source) and not is_camera(source):
        try:
            names = [os.path.join(source, name) for name in os.listdir(source) if not name.startswith(".")]
        except OSError as error:
            raise UserError(f"{source}: can't be read ({error.strerror})") from None
        left_out = [name for name in names if not _is_source(name)]
    elif glob.has_magic(source) and not (URL.match(source) or os.path.exists(source)):
        names = list(_match(source))
        left_out = [name for name in names if not _is_source(name) and not os.path.isdir(name)]
    else:
        return [source]
    names = filter(_is_source, sorted(names, key=os.path.islink))
    names = {os.path.realpath(name): str(Path(name)) for name in reversed(list(names))}.values()
    if not names:
        raise UserError(f"{source}: no image or video there{_hint(source)}")
    if left_out:
        examples = ", ".join(sorted(map(os.path.basename, left_out))[:3]) + (", ..." if len(left_out) > 3 else "")
        kinds = "files and folders whose names don't end as those of images and videos do"
        tqdm.write(escape_unprintable(f"{source}: left out {len(left_out)} {kinds}: {examples}"), file=sys.stderr)
    return sorted(names, key=lambda name: [int(x) if i % 2 else x.lower() for i, x in enumerate(DIGITS.split(name))])


def _is_source(name):
    """Whether a file in a folder is taken, by its name. Dangling links are: opening them tells the user."""
    known = os.path.splitext(name)[1].lower() in SUFFIXES
    return known and not os.path.basename(name).startswith(".") and not os.path.isdir(name)


def _hint(source):
    """What to do where a folder or pattern has nothing to read."""
    if os.path.isdir(source):
        folders = itertools.islice(_walk(source), MAX_SEARCHED_FOLDERS)
        if any(_is_source(os.path.join(folder, name)) for folder, names in folders for name in names):
            return f', but in its subfolders; give --source "{os.path.join(source, "**", "*")}"'
    return f"; known endings are {', '.join(sorted(SUFFIXES))}"


def _match(pattern):
    """Yield the paths that match a pattern, as glob.glob does; ** enters each folder once, whatever links there are.

    Folders that are there are taken by their names, though these may have brackets; endings match in any case.
    """
    root = _existing_folder(pattern)
    head, *tail = RECURSIVE.split(pattern[len(root) :], maxsplit=1)
    if tail:
        for folder in glob.glob(glob.escape(root) + head) if head.strip(SEPARATORS) else [root]:
            for below, _ in _walk(folder):
                yield from _match(os.path.join(below, tail[0] or "*"))
    else:
        head = PATTERN_SUFFIX.sub(lambda match: "".join(f"[{x.lower()}{x.upper()}]" for x in match[0]), head)
        yield from glob.glob(glob.escape(root) + head)


def _existing_folder(path):
    """The longest beginning of a path that is a folder; "" for the working directory."""
    while not os.path.isdir(path or ".") and path != os.path.dirname(path):  # the same for a drive that isn't there
        path = os.path.dirname(path)
    return path


def _walk(folder):
    """Yield a folder and all below it, with the names of its files; each once, links after all else."""
    starts, seen = [folder or os.curdir], set()
    for start in starts:
        for path, folders, files in os.walk(start):
            real = os.path.realpath(path)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += filter(os.path.islink, [os.path.join(path, name) for name in folders])
            yield path, files


def read_source_list(path: str) -> Iterator[str]:
    """Yield the sources that a text file names. Raises UserError if it can't be read or names none."""
    name = None
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""):
                if "\0" in line or len(line) == MAX_LINE_CHARACTERS:
                    raise UserError(f"{path}: is no UTF-8 text with the name of a file in each line")
                if line.strip():
                    yield (name := resolve_source(line.strip()))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    if name is None:
        raise UserError(f"{path}: empty; give the name of a file in each line")


def output_path(name: str, source: str) -> str:
    """Return the path of a file's result in the output folder: that of the file itself in `source`'s folder."""
    root = _existing_folder("" if is_list(source) else source)  # of a list: the working directory
    try:
        path = os.path.relpath(name, root or ".")
    except ValueError:  # on another drive of Windows
        path = os.path.abspath(name).replace(":", "")
    # .. becomes __, and a folder that is called so gets one more _, so that no two files share a result
    parts = [part + "_" if re.fullmatch("__+", part) else part for part in path.split(os.sep)]
    return os.sep.join("__" if part == os.pardir else part for part in parts)


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a text such as "1280x720". Raises UserError for another text."""
    match = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.lower())
    if not match:
        raise UserError(f"--size {text}: not a size; give width and height in pixels, such as 1280x720")
    return int(match[1]), int(match[2])
