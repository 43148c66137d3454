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

    The rows of a frame go to the system at once, so a program that is killed leaves whole rows. An old file is
    overwritten when the first frame comes. What is not UTF-8 in the name of a source is escaped; see also `path_cell`
    and `class_cells`.

    Raises UserError where the file exists and `overwrite` is False, another program writes it, or it can't be written;
    then `failed` is True and the file has the rows until there.
    """

    def __init__(self, path: Path, labels: tuple[str, ...], overwrite: bool = False, suffix: str = ""):
        self.path, self.suffix = Path(path), suffix or Path(path).suffix.lower()
        self.class_cells = dict(zip(labels, class_cells(labels), strict=True))
        self.columns, self.piped = [*COLUMNS, *self.class_cells.values()], self.path == STDOUT
        self.failed, self.is_begun, self.is_new = False, False, not (self.piped or self.path.exists())
        if self.piped:  # what Python prints may go elsewhere
            self.file = open(1, "wb", buffering=0, closefd=False)
            return
        try:
            self.file = open(path, "ab" if overwrite else "xb", buffering=0)
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another name, or give --overwrite") from None
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        lock_file(self.file, path)

    def write(self, source: str, frame: Frame, faces: list[Face]) -> None:
        """Append the faces in a frame of the source of this name."""
        name = path_cell(source).encode(errors="backslashreplace").decode()
        rows, text = [], io.StringIO(newline="")
        for face in faces:
            numbers = [round(value, 4) for value in (face.confidence, *face.probabilities)]
            label = self.class_cells.get(face.label, face.label)
            rows.append([name, frame.number, round(frame.seconds, 3), face.track_id, *face.box, label, *numbers])
        if self.suffix == ".csv":
            csv.writer(text).writerows(rows if self.is_begun else [self.columns, *rows])
        else:
            text.writelines(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in rows)
        try:
            # a pipe can't be truncated, and what a shell's >> names shall not be
            if not (self.is_begun or self.piped) and stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
                self.file.truncate(0)
            self.is_begun = True
            append(self.file, text.getvalue().encode())
        except OSError as error:
            self.failed = True
            if self.piped:
                raise  # a reader may have seen enough
            raise UserError(f"{self.path}: can't be written ({error.strerror}); rows are missing") from None

    def __exit__(self, *_):
        self.file.close()
        if not self.is_begun and self.is_new:
            self.path.unlink(missing_ok=True)


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
