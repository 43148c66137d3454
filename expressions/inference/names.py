"""What the words of the command line name: cameras, addresses, files, folders, patterns and lists of them."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from expressions import UserError
from expressions.image_formats import IMAGE_SUFFIXES

VIDEO_SUFFIXES = set(".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
CAMERA = re.compile("[0-9]{1,3}|/dev/(video|v4l/).*")
URL = re.compile("([a-z][a-z0-9+.-]+)://[^/?#]*([^?#]*)", re.IGNORECASE)  # scheme and path
DIGITS = re.compile("([0-9]+)")


def is_camera(source: str) -> bool:
    """Tell whether it is a camera's index, unless a file has that name, or its path on Linux."""
    return CAMERA.fullmatch(source) is not None and not os.path.isfile(source)


def is_list(source: str) -> bool:
    """Tell whether it is a text file, which names a source in each line."""
    return source.lower().endswith(".txt") and os.path.isfile(source)


def expand_sources(source: str) -> list[str]:
    """Return the single sources that a word of the command line names; raise UserError if there are none to read.

    A folder (without its subfolders) or a pattern such as "holiday/*.jpg" becomes its images and videos, by suffix, in
    natural order: 2 before 10. A .txt file becomes its lines. All else, and a pattern that exists as a file, stays as
    it is. Digits are a camera's index unless a file has that name (write ./0 for a folder called 0).
    """
    if is_list(source):
        return list(read_source_list(source))
    if os.path.isdir(source) and not is_camera(source):
        try:
            names = [os.path.join(source, name) for name in os.listdir(source)]
        except OSError as error:
            raise UserError(f"{source}: can't be read ({error.strerror})") from None
    elif glob.has_magic(source) and not (URL.match(source) or os.path.exists(source)):
        names = glob.glob(source, recursive=True)
    else:
        return [source]
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    paths = [path for path in map(Path, names) if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    names = [str(path) for path in paths if not os.path.isdir(path)]  # keep dangling links: opening them tells the user
    if not names:
        raise UserError(f"{source}: no image or video there; known endings are {', '.join(sorted(suffixes))}")
    return sorted(names, key=lambda name: [int(x) if i % 2 else x.lower() for i, x in enumerate(DIGITS.split(name))])


def read_source_list(path: str) -> Iterator[str]:
    """Yield the sources that a text file names. Raises UserError if it can't be read or names none."""
    name = None
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for name in filter(None, map(str.strip, lines)):
                if "\0" in name:
                    raise UserError(f"{path}: is no UTF-8 text; save it as such")
                yield name
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    if name is None:
        raise UserError(f"{path}: empty; give the name of a file in each line")


def output_path(name: str, source: str) -> str:
    """Return the path of a file's result in the output folder: that of the file itself in `source`'s folder."""
    root = "" if is_list(source) else source  # of a list: the working directory
    while not os.path.isdir(root or "."):
        root = os.path.dirname(root)
    try:
        path = os.path.relpath(name, root or ".")
    except ValueError:  # on another drive of Windows
        path = os.path.abspath(name).replace(":", "")
    return path.replace(os.pardir + os.sep, "__" + os.sep)


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a text such as "1280x720". Raises UserError for another text."""
    match = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.lower())
    if not match:
        raise UserError(f"--size {text}: not a size; give width and height in pixels, such as 1280x720")
    return int(match[1]), int(match[2])
