"""Tables of what was seen: one row for each face in each frame."""

import contextlib
import csv
import io
import json
import os
import stat
from pathlib import Path
from types import ModuleType

from expressions import UserError
from expressions.files import atomic_write, lock_file
from expressions.inference.types import Face, Frame

STDOUT = Path("-")
COLUMNS = ("source", "frame", "seconds", "track", "x", "y", "width", "height", "label", "confidence")


class Table:
    """A file of rows, used within `with`: .csv, or .jsonl with one JSON object per line. STDOUT gets as `suffix` which.

    The rows of a frame go to the system at once, so a program that is killed leaves whole rows. An old file is
    overwritten when the first frame comes. What is not UTF-8 in the name of a source is escaped.

    Raises UserError where the file exists and `overwrite` is False, another program writes it, or it can't be written;
    then `failed` is True and the file has the rows until there.
    """

    def __init__(self, path: Path, labels: tuple[str, ...], overwrite: bool = False, suffix: str = ""):
        self.path, self.columns, self.suffix = Path(path), [*COLUMNS, *labels], suffix or Path(path).suffix.lower()
        self.failed, self.is_new = False, not self.path.exists()
        self.size = None  # of all rows, in bytes; None before the first frame
        self.piped = self.path == STDOUT
        if self.piped:  # what Python prints may go elsewhere
            self.file, self.is_new = open(1, "wb", buffering=0, closefd=False), False
            return
        try:
            self.file = open(path, "ab" if overwrite else "xb", buffering=0)
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another name, or give --overwrite") from None
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        lock_file(self.file, path)

    def __enter__(self):
        return self

    def write(self, source: object, frame: Frame, faces: list[Face]) -> None:
        """Append the faces in a frame of the source of this name."""
        name = str(source).encode(errors="backslashreplace").decode()
        rows, text = [], io.StringIO(newline="")
        for face in faces:
            numbers = [round(float(value), 4) for value in (face.confidence, *face.probabilities)]
            rows.append([name, frame.number, round(frame.seconds, 3), face.track_id, *face.box, face.label, *numbers])
        if self.suffix == ".csv":
            csv.writer(text).writerows([self.columns, *rows] if self.size is None else rows)
        else:
            text.writelines(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in rows)
        self._append(text.getvalue().encode())

    def _append(self, data):
        try:
            if self.size is None:
                self.size = 0
                if not self.piped and stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):  # not a pipe or >> file
                    self.file.truncate(0)
            written = 0
            while written < len(data):
                written += self.file.write(data[written:])
        except OSError as error:
            self.failed = True
            if self.piped:
                raise  # a reader may have seen enough
            with contextlib.suppress(OSError):  # not half a row
                self.file.truncate(self.size)
            raise UserError(f"{self.path}: can't be written ({error.strerror}); rows are missing") from None
        self.size += len(data)

    def __exit__(self, *_):
        self.file.close()
        if self.size is None and self.is_new:
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
    types = ["string", "int64", "float64", *["int64"] * 5, "string", "float64", *["float64"] * len(labels)]
    schema = pyarrow.schema(zip((*COLUMNS, *labels), map(pyarrow.type_for_alias, types), strict=True))
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    conversion = pyarrow.csv.ConvertOptions(column_types=schema)
    with (
        atomic_write(path, path.with_suffix(".parquet")) as partial,
        pyarrow.csv.open_csv(path, parse_options=parsing, convert_options=conversion) as batches,
        pyarrow.parquet.ParquetWriter(partial, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
