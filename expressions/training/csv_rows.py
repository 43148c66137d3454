"""Read the rows of CSV files that others made, with bounds on all that is in memory."""

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from expressions import UserError

MAX_LINE_CHARACTERS = 2**15  # three times the longest line of fer2013.csv
MAX_ROWS = 2**18  # seven times those of fer2013.csv


def has_columns(path: Path, *columns: str) -> bool:
    """Tell whether `path` is a CSV file whose first line has all of `columns`."""
    if not path.is_file():  # opening a named pipe would block
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return set(columns) <= set(map(str.strip, _split_line(file.readline(1000))))
    except OSError:
        return False


def _split_line(line):
    return next(csv.reader([line], skipinitialspace=True), [])


def read_rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the rows of a CSV file that has these columns: where each stands, in words, and its text by column.

    A row is one line, so that memory is bounded, and None is the text of a column that a line is too short for. Raises
    OSError, and UserError where the file is no such table, or too large.
    """
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        lines, number = iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""), 0
        names = [name.strip() for name in _split_line(next(lines, ""))]
        if not set(columns) <= set(names):
            raise UserError(f"{path}: its first line is damaged; download it again")
        for line in lines:
            row = _split_line(line)
            number += bool(row)
            place = f"{path}: data row {number}"
            if number > MAX_ROWS:
                raise UserError(f"{place}: a table may have {MAX_ROWS} rows; put the images into folders instead")
            if len(line) == MAX_LINE_CHARACTERS:
                raise UserError(f"{place}: has over {MAX_LINE_CHARACTERS} characters; download it again")
            if len(row) > len(names):
                raise UserError(f"{place} has more fields than the first line; download it again")
            if row:
                yield place, dict(zip_longest(names, row))
