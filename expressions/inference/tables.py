"""What was seen, kept: rows of faces in a table; how long everyone showed which expression; which files are done."""

import contextlib
import csv
import io
import json
import os
import stat
import uuid
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.files import atomic_write, lock_file

COLUMNS = ("source", "frame", "seconds", "track", "x", "y", "width", "height", "label", "confidence")
GROUP = 10_000  # rows that a Parquet file gets at a time
LISTED = 5  # people in the printed summary, those seen longest first
DRAWN = 20  # people in the timeline
BLINK = 1.0  # seconds that a face may be away without a gap in its timeline


def row(source, frame, face):
    """The values of COLUMNS, and the probabilities, for a face; as `Table.write` takes them."""
    name = str(source).encode(errors="backslashreplace").decode()
    probabilities = [round(float(value), 4) for value in (face.confidence, *face.probabilities)]
    return [name, frame.number, round(frame.seconds, 3), face.track_id, *face.box, face.label, *probabilities]


class Table:
    """A file of rows, one for each face in each frame, within `with`: .csv, or .jsonl with a JSON object a line.

    A frame's rows are handed to the system at once, so a program that is killed leaves whole rows. What was in the file
    stays until the first frame comes. What is no UTF-8 in the name of a source is written as its code.
    Raises UserError when the file exists already and `overwrite` is not set, another program writes it, it can't be
    written (then the rows until there are in it), or it is moved or removed meanwhile.
    """

    def __init__(self, path, labels, overwrite=False):
        self.path, self.labels = Path(path), labels
        self.new, self.size = not self.path.exists(), None  # size: of what is written, in bytes; None before
        self.gone = False  # whether it could not be written
        try:
            self.file = open(path, "ab" if overwrite else "xb", buffering=0)
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another name, or give --overwrite") from None
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        lock_file(self.file, path)
        self.regular = stat.S_ISREG(os.fstat(self.file.fileno()).st_mode)  # and no pipe, which has no size

    def __enter__(self):
        return self

    def write(self, source, frame, faces):
        """Append the faces of a frame. source: its name. frame: with number, seconds. faces: with number, box, label,
        confidence and probabilities, the latter in the order of the table's labels."""
        text = io.StringIO(newline="")
        table = csv.writer(text) if self.path.suffix.lower() == ".csv" else None
        if self.size is None and table:
            table.writerow([*COLUMNS, *self.labels])
        for face in faces:
            values = row(source, frame, face)
            if table:
                table.writerow(values)
            else:
                text.write(json.dumps(dict(zip([*COLUMNS, *self.labels], values, strict=True))) + "\n")
        self.append(text.getvalue().encode())

    def append(self, data):
        try:
            if self.size is None:
                self.size = 0
                if self.regular:
                    self.file.truncate(0)
            written = 0
            while written < len(data):
                written += self.file.write(data[written:])
        except OSError as error:
            self.gone = True
            with contextlib.suppress(OSError):  # not half a row
                self.file.truncate(self.size)
            raise UserError(f"{self.path}: can't be written ({error.strerror}); rows are missing") from None
        self.size += len(data)

    def __exit__(self, kind, *_):
        with self.file:
            try:
                kept = os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
            except OSError:
                kept = False
        if self.size is None and self.new and kept:
            self.path.unlink()
        elif self.size and not kept and kind is None:
            raise UserError(f"{self.path}: was moved or removed while it was written; rows are missing in it")


class ParquetTable:
    """The same as a Parquet file, within `with`; one that is there is written over. It is whole once that has ended.

    Raises UserError when it can't be written, or pyarrow is missing."""

    def __init__(self, path, labels):
        pyarrow, parquet = self.library()
        text, integer, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
        types = (text, integer, real, *[integer] * 5, text, real, *[real] * len(labels))
        self.path, self.rows, self.batch = path, [], pyarrow.record_batch
        self.schema = pyarrow.schema(zip((*COLUMNS, *labels), types, strict=True))
        with self.complaints():
            self.writer = parquet.ParquetWriter(path, self.schema)

    @staticmethod
    def library():
        try:
            import pyarrow  # here, for few need it
            from pyarrow import parquet
        except ImportError:
            raise UserError("--parquet: pyarrow is not installed; run: pip install pyarrow") from None
        return pyarrow, parquet

    @contextlib.contextmanager
    def complaints(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: can't be written ({error})") from None

    def __enter__(self):
        return self

    def write(self, source, frame, faces):
        """As `Table.write`."""
        self.rows += [row(source, frame, face) for face in faces]
        if len(self.rows) >= GROUP:
            self.write_rows()

    def write_rows(self):
        columns = [list(column) for column in zip(*self.rows, strict=True)]
        self.rows = []
        with self.complaints():
            self.writer.write_batch(self.batch(columns, schema=self.schema))

    def __exit__(self, kind, *_):
        try:
            if self.rows and not kind:
                self.write_rows()
        finally:
            with self.complaints():
                self.writer.close()


def keep(path, frames, **notes):
    """Write a part of a film to the file `path`, whole or not at all, for `kept`.

    frames: of each, (seconds, sum of its pixels, faces as `Table.write` takes them). notes: numbers to keep with it."""
    faces = [(number, face) for number, (_, _, faces) in enumerate(frames) for face in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = dict(
        times=np.array([seconds for seconds, _, _ in frames]),
        sums=np.array([pixels for _, pixels, _ in frames], np.uint32),
        places=np.array([(number, face.track_id, *face.box) for number, face in faces], int).reshape(-1, 6),
        labels=np.array([face.label for _, face in faces], str),
        probabilities=np.array([(face.confidence, *face.probabilities) for _, face in faces], np.float32),
        **notes,
    )
    with atomic_write(path, path.with_name(f"{uuid.uuid4().hex}.npz")) as partial:
        np.savez(partial, **arrays)


def kept(path):
    """What `keep` wrote: the frames, with (number, box, label, confidence, probabilities) for a face; and the notes."""
    with np.load(path) as file:
        parts = dict(file)
    frames = [(seconds, pixels, []) for seconds, pixels in zip(parts["times"].tolist(), parts["sums"], strict=True)]
    columns = parts["places"].tolist(), parts["labels"], parts["probabilities"]
    for (frame, number, *box), label, values in zip(*columns, strict=True):
        frames[frame][2].append((number, box, str(label), float(values[0]), values[1:]))
    return frames, {name: value.item() for name, value in parts.items() if value.ndim == 0}


class Index:
    """Which files are done, for a run that is begun again: index.csv in the folder of their results, within `with`.

    A row is added when a file's result is there. Of a file that changed, and was done anew, the last row counts. Those
    that could not be done, and why, come into failed.csv, and are tried again by the next run.
    made_by: a text that changes with all that decides what is written, so that results of two kinds don't mix.
    failed: how many could not be done. Raises UserError when the folder holds results of another kind or other files,
    or can't be written, or another run is at work in it."""

    COLUMNS = ("source", "bytes", "modified", "result", "seconds", "frames", "faces", "people", "broken", "missing")

    def __init__(self, folder, made_by):
        self.folder, self.path, self.made_by = Path(folder), Path(folder) / "index.csv", made_by
        self.done, self.states, self.failed, self.failures = {}, {}, 0, self.folder / "failed.csv"
        with self.complaints():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds other files, and no results; choose a new or an empty folder")
            self.file = open(self.path, "ab", buffering=0)
            lock_file(self.file, self.path)
            with open(self.path, "rb") as rows:
                self.read(rows)
            self.failures.unlink(missing_ok=True)  # not before it is sure that this run may begin

    @contextlib.contextmanager
    def complaints(self):
        try:
            yield
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise UserError(f"{self.path}: can't be read or written ({error}); choose another folder") from None

    def read(self, rows):
        length, header = 0, ",".join([*self.COLUMNS, "made_by"]).encode()
        for line in rows:
            ours = length or header.startswith(line)  # not a stranger's file
            if ours and not line.endswith(b"\n"):  # a run was killed while it wrote
                self.file.truncate(length)
                break
            length += len(line)
            [values] = csv.reader([line.decode()])
            if values[-1] not in (self.made_by, "made_by"):
                raise UserError(f"{self.path}: is of another model, cascade or kind of table; choose another folder")
            source, size, modified, result = values[:4]
            self.done[hash((source, result))] = hash((size, modified))  # mere numbers, for there may be millions
        if not length:
            self.append(self.file, [*self.COLUMNS, "made_by"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def append(self, file, values):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(values)
        file.write(text.getvalue().encode())

    def due(self, source, result):
        """Whether the file `source` is to be done: it isn't as it is now, or its result, a path in the folder, is gone.

        False also where that was asked of the result before, for a list may name a file twice."""
        if result in (self.path.name, self.failures.name):
            raise UserError(f"{source}: its table would be {result}, which is the folder's own; rename it")
        known = hash(result)
        if known in self.states:
            return False
        try:
            status = os.stat(source)
            state = str(status.st_size), str(status.st_mtime_ns)
        except OSError:  # who tries to read it will tell
            state = "", ""
        done = self.done.get(hash((escape_unprintable(source), escape_unprintable(result)))) == hash(state)
        done = done and (self.folder / result).exists()
        self.states[known] = None if done else state
        return not done

    def add(self, source, result, counts):
        """The file `source` is done, as it was when it was due: one that has changed since is due in the next run.

        counts: the values of the last six COLUMNS."""
        state, self.states[hash(result)] = self.states[hash(result)], None
        with self.complaints():
            self.append(
                self.file, [escape_unprintable(source), *state, escape_unprintable(result), *counts, self.made_by]
            )

    def fail(self, source, why):
        """The file `source` could not be done."""
        with self.complaints(), open(self.failures, "ab", buffering=0) as file:
            if not self.failed:
                self.append(file, ["source", "why"])
            self.append(file, [escape_unprintable(source), why])
        self.failed += 1


class Summary:
    """How long each person showed which expression, in a film or before a camera; how often, in pictures."""

    def __init__(self):
        self.shown, self.stretches = {}, {}  # of each person: seconds by label; [label, start, end] in order
        self.source = self.before = None

    def add(self, source, frame, faces, still):
        """Count the faces of a frame; source, frame and faces as `Table.write` takes them.

        still: a picture, whose faces nobody follows: each counts once."""
        gap = frame.seconds - self.before if source == self.source else 0
        if not 0 <= gap <= BLINK:  # a source that begins anew, or a time in which nobody was seen
            gap = 0
        self.source, self.before = source, frame.seconds
        for face in faces:
            person = "pictures" if still else (str(source), face.track_id)
            self.shown.setdefault(person, Counter())[face.label] += 1 if still else gap
            if still:
                continue
            stretches = self.stretches.setdefault(person, [])
            if stretches and stretches[-1][0] == face.label and 0 <= frame.seconds - stretches[-1][2] < BLINK:
                stretches[-1][2] = frame.seconds
            else:
                stretches.append([face.label, frame.seconds - gap, frame.seconds])

    def people(self, most):
        """At most so many people, those seen longest first."""
        return sorted(self.shown, key=lambda person: -self.shown[person].total())[:most]

    def describe(self):
        """A line for each of those seen longest: which part of their time they showed which expression."""
        several = len({source for source, _ in self.stretches}) > 1
        lines = []
        for person in self.people(LISTED):
            shown, total = self.shown[person].most_common(), self.shown[person].total()
            if not total:  # seen in a single frame
                continue
            shares = ", ".join(f"{label} {seconds / total:.0%}" for label, seconds in shown)
            if person == "pictures":
                lines.append(f"{total} faces in pictures: {shares}")
            else:
                name = f"{escape_unprintable(person[0])}, " if several else ""
                lines.append(f"{name}person {person[1]}, {total:.1f} s: {shares}")
        others = sum(shown.total() > 0 for shown in self.shown.values()) - LISTED
        if others > 0:
            lines.append(f"and {others} other{'s' if others > 1 else ''}")
        return "\n".join(lines)

    def draw(self, path, colours):
        """Draw the timeline of those seen longest, a row a person, into the picture file `path`, which stays as it is
        until the new one is whole.

        colours: of a label, (blue, green, red), 0 to 255. Raises UserError when it can't be written, or nothing but
        pictures was seen."""
        if self.shown and not self.stretches:
            raise UserError(f"--summary {path}: needs a film or camera; people aren't tracked across pictures")
        from matplotlib.figure import Figure  # here, for it takes a second, and only this needs it

        people = [person for person in self.people(DRAWN) if person in self.stretches]
        figure = Figure(figsize=(10, 1.5 + 0.35 * len(people)), layout="constrained")
        axes = figure.add_subplot()
        several = len({source for source, _ in people}) > 1
        drawn = {}
        for row, person in enumerate(people):
            for label, start, end in self.stretches[person]:
                blue, green, red = colours.get(label, (128, 128, 128))
                bar = axes.barh(row, end - start, left=start, color=(red / 255, green / 255, blue / 255), height=0.8)
                drawn.setdefault(label, bar)
        names = [
            f"{escape_unprintable(source)} {number}" if several else f"person {number}" for source, number in people
        ]
        axes.set_yticks(range(len(people)), names, parse_math=False)  # a name with dollars is no formula
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.set_title("Expressions over time")
        if drawn:
            figure.legend(drawn.values(), drawn.keys(), ncols=8, loc="outside lower center")
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks are drawn as boxes
            figure.savefig(data, format=path.suffix[1:], dpi=100)
        try:
            with atomic_write(path, path.with_name(f"{uuid.uuid4().hex}{path.suffix}")) as partial:
                partial.write_bytes(data.getbuffer())
        except OSError as error:
            raise UserError(f"--summary {path}: can't be written ({error.strerror})") from None
