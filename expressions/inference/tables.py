"""Tables of what was seen: one row for each face in each frame."""

import contextlib
import csv
import io
import json
import os
import stat
from pathlib import Path
from types import ModuleType
from typing import IO

from expressions import UNCERTAIN, UserError
from expressions.files import atomic_write, lock_file
from expressions.inference.types import Face, Frame

STDOUT = Path("-")
COLUMNS = ("source", "frame", "seconds", "track", "x", "y", "width", "height", "label", "confidence")
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run what begins with one of them


def path_cell(path: str) -> str:
    """Return a path of the same file that no spreadsheet takes for a formula: ./=1.mp4 for =1.mp4."""
    return os.path.join(os.curdir, path) if path.startswith(FORMULA_SIGNS) else path


def class_cells(labels: tuple[str, ...]) -> list[str]:
    """Return how tables name the classes: in parentheses where a name means something else there, or is a formula."""
    cells = []
    for label in labels:
        while label in (*COLUMNS, UNCERTAIN, *cells) or label.startswith(FORMULA_SIGNS):
            label = f"({label})"
        cells.append(label)
    return cells


def append(file: IO[bytes], data: bytes) -> None:
    """Append `data` to an unbuffered file as a whole, or nothing. Raises OSError.

    On a disk that fills up, the system takes a part of it first, without an error.
    """
    size, rest = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # a pipe can't be truncated
            file.truncate(size)
        raise


class Table(contextlib.AbstractContextManager):
    """A file of rows, used within `with`: .csv, or .jsonl with one JSON object per line. STDOUT gets as `suffix` which.

    The rows of a frame go to the system at once, so a program that is killed leaves whole rows. A new .csv begins with
    the columns' names, though no source may be readable; an old file is overwritten when the first frame comes. What is
    not UTF-8 in the name of a source is escaped; see also `path_cell` and `class_cells`.

    Raises UserError where the file has rows and `overwrite` is False, another program writes it, or it can't be
    written; then `failed` is True and the file has the rows until there.
    """

    def __init__(self, path: Path, labels: tuple[str, ...], overwrite: bool = False, suffix: str = ""):
        self.path, self.suffix = Path(path), suffix or Path(path).suffix.lower()
        self.class_cells = dict(zip(labels, class_cells(labels), strict=True))
        self.columns, self.piped = [*COLUMNS, *self.class_cells.values()], self.path == STDOUT
        self.header = _csv_lines([self.columns]) if self.suffix == ".csv" else b""
        self.failed, self.is_begun, is_new = False, False, not (self.piped or self.path.exists())
        if self.piped:  # what Python prints may go elsewhere
            self.file = open(1, "wb", buffering=0, closefd=False)
            return
        try:
            if not (is_new or overwrite or self._is_empty()):
                raise UserError(f"{path}: exists already; choose another name, or give --overwrite")
            self.file = open(path, "xb" if is_new else "ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        lock_file(self.file, path)
        if is_new:
            self._append(b"")

    def write(self, source: str, frame: Frame, faces: list[Face]) -> None:
        """Append the faces in a frame of the source of this name."""
        name, rows = path_cell(source).encode(errors="backslashreplace").decode(), []
        for face in faces:
            numbers = [round(value, 4) for value in (face.confidence, *face.probabilities)]
            label = self.class_cells.get(face.label, face.label)
            rows.append([name, frame.number, round(frame.seconds, 3), face.track_id, *face.box, label, *numbers])
        if self.suffix == ".csv":
            self._append(_csv_lines(rows))
        else:
            lines = [json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in rows]
            self._append("".join(lines).encode())

    def _is_empty(self):
        if not self.path.is_file():
            return False
        with open(self.path, "rb") as file:
            return file.read(len(self.header) + 1) in (b"", self.header)

    def _append(self, lines):
        try:
            # a pipe can't be truncated, and what a shell's >> names shall not be
            if not (self.is_begun or self.piped) and stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
                self.file.truncate(0)
            begin, self.is_begun = b"" if self.is_begun else self.header, True
            append(self.file, begin + lines)
        except OSError as error:
            self.failed = True
            if self.piped:
                raise  # a reader may have seen enough
            raise UserError(f"{self.path}: can't be written ({error.strerror}); rows are missing") from None

    def __exit__(self, *_):
        self.file.close()


def _csv_lines(rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def import_pyarrow() -> ModuleType:
    """Return pyarrow, which few need. Raises UserError where it is not installed."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise UserError("--parquet: pyarrow is not installed; run: pip install pyarrow") from None
    return pyarrow


def convert_to_parquet(path: Path, labels: tuple[str, ...]) -> None:
    """Replace a .csv of Table by the same table as Parquet."""
    pyarrow = import_pyarrow()
    names = [*COLUMNS, *class_cells(labels)]
    types = ["string", "int64", "float64", *["int64"] * 5, "string", "float64", *["float64"] * len(labels)]
    schema = pyarrow.schema(zip(names, map(pyarrow.type_for_alias, types), strict=True))
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    conversion = pyarrow.csv.ConvertOptions(column_types=schema)
    with (
        atomic_write(path, path.with_suffix(".parquet")) as partial,
        pyarrow.csv.open_csv(path, parse_options=parsing, convert_options=conversion) as batches,
        pyarrow.parquet.ParquetWriter(partial, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
