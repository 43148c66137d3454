"""What was seen, kept: a row a face a frame in a table, and how long everyone showed which expression."""

import contextlib
import csv
import io
import json
import os
import stat
import warnings
from collections import Counter
from pathlib import Path

from expressions import UserError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

COLUMNS = ("source", "frame", "seconds", "track", "x", "y", "width", "height", "label", "confidence")
LISTED = 5  # people in the printed summary, those seen longest first
DRAWN = 20  # people in the timeline
BLINK = 1.0  # seconds that a face may be away without a gap in its timeline


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
        try:
            self.file = open(path, "ab" if overwrite else "xb", buffering=0)
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another name, or give --overwrite") from None
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from None
        try:
            if fcntl:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise UserError(f"{path}: another program is writing it; choose another name") from None
        except OSError:  # a file system without locks
            pass
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
            confidence, *probabilities = (round(float(value), 4) for value in (face.confidence, *face.probabilities))
            name = str(source).encode(errors="backslashreplace").decode()
            place = [name, frame.number, round(frame.seconds, 3), face.number, *face.box]
            values = [*place, face.label, confidence, *probabilities]
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


class Summary:
    """How long each person showed which expression, in a film or before a camera; how often, in pictures."""

    def __init__(self):
        self.shown, self.stretches = {}, {}  # of each person: seconds by label; [label, start, end] in order
        self.source = self.before = None

    def add(self, source, frame, faces, still):
        """Count the faces of a frame; source, frame and faces as `Table.write` takes them.

        still: a picture, whose faces nobody follows: each counts once."""
        gap = frame.seconds - self.before if source == self.source else 0
        self.source, self.before = source, frame.seconds
        for face in faces:
            person = "pictures" if still else (str(source), face.number)
            self.shown.setdefault(person, Counter())[face.label] += 1 if still else gap
            if still:
                continue
            stretches = self.stretches.setdefault(person, [])
            if stretches and stretches[-1][0] == face.label and frame.seconds - stretches[-1][2] < BLINK:
                stretches[-1][2] = frame.seconds
            else:
                stretches.append([face.label, frame.seconds - gap, frame.seconds])

    def people(self, most):
        """At most so many people, those seen longest first."""
        return sorted(self.shown, key=lambda person: -self.shown[person].total())[:most]

    def describe(self):
        """A line for each of those seen longest: which part of their time they showed which expression."""
        several = len({person[0] for person in self.shown}) > 1
        lines = []
        for person in self.people(LISTED):
            shown, total = self.shown[person].most_common(), self.shown[person].total()
            if not total:  # seen in a single frame
                continue
            shares = ", ".join(f"{label} {seconds / total:.0%}" for label, seconds in shown)
            if person == "pictures":
                lines.append(f"{total} faces in pictures: {shares}")
            else:
                name = f"{printable(person[0])}, " if several else ""
                lines.append(f"{name}person {person[1]}, {total:.1f} s: {shares}")
        others = len(self.shown) - LISTED
        if others > 0:
            lines.append(f"and {others} other{'s' if others > 1 else ''}")
        return "\n".join(lines)

    def draw(self, path, colours):
        """Draw the timeline of those seen longest, a row a person, into the picture file `path`, which stays as it is
        until the new one is whole.

        colours: of a label, (blue, green, red), 0 to 255. Raises UserError when it can't be written."""
        import matplotlib  # here, for it takes a second, and only this needs it

        matplotlib.use("Agg")
        from matplotlib import pyplot

        people = [person for person in self.people(DRAWN) if person in self.stretches]
        figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.35 * len(people)), layout="constrained")
        several = len({source for source, _ in people}) > 1
        drawn = {}
        for row, person in enumerate(people):
            for label, start, end in self.stretches[person]:
                blue, green, red = colours.get(label, (128, 128, 128))
                bar = axes.barh(row, end - start, left=start, color=(red / 255, green / 255, blue / 255), height=0.8)
                drawn.setdefault(label, bar)
        names = [f"{printable(source)} {number}" if several else f"person {number}" for source, number in people]
        axes.set_yticks(range(len(people)), names, parse_math=False)  # a name with dollars is no formula
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.set_title("Expressions over time")
        if drawn:
            figure.legend(drawn.values(), drawn.keys(), ncols=8, loc="outside lower center")
        path, data = Path(path), io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks are drawn as boxes
            figure.savefig(data, format=path.suffix[1:], dpi=100)
        pyplot.close(figure)
        partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        try:
            partial.write_bytes(data.getbuffer())
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"--summary {path}: can't be written ({error.strerror})") from None
        finally:
            partial.unlink(missing_ok=True)
