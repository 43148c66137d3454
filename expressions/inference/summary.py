"""The summary of a run: how long each person showed which expression, in words and as a timeline."""

import io
import uuid
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.inference.types import Face, Frame

MAX_LISTED, MAX_DRAWN = 5, 20  # people in the text and in the timeline: those seen longest
MAX_GAP = 1.0  # seconds that a face may be away without a gap in its timeline
IMAGES = "images"  # stands for a person where faces aren't tracked


class Summary:
    """Adds up how long each person showed which expression in videos, and how many faces did in images."""

    def __init__(self):
        self.shown = defaultdict(Counter)  # of each person, (source, track_id): seconds by label; of IMAGES: faces
        self.intervals = defaultdict(list)  # of each person: [label, start, end] in order, in seconds
        self.source = self.last_seconds = None  # of the latest frame

    def add(self, source: object, frame: Frame, faces: list[Face], is_image: bool) -> None:
        """Count the faces in a frame of the source of this name."""
        gap = frame.seconds - self.last_seconds if source == self.source else 0
        if not 0 <= gap <= MAX_GAP:  # the source began anew, or nobody was seen
            gap = 0
        self.source, self.last_seconds = source, frame.seconds
        for face in faces:
            if is_image:
                self.shown[IMAGES][face.label] += 1
                continue
            person = str(source), face.track_id
            self.shown[person][face.label] += gap
            intervals = self.intervals[person]
            if intervals and intervals[-1][0] == face.label and 0 <= frame.seconds - intervals[-1][2] < MAX_GAP:
                intervals[-1][2] = frame.seconds
            else:
                intervals.append([face.label, frame.seconds - gap, frame.seconds])

    def describe(self) -> str:
        """Return a line for each person seen longest: the share of each expression in their time."""
        several = len({source for source, _ in self.intervals}) > 1
        people = [person for person in self._seen_longest() if self.shown[person].total()]  # in more than one frame
        lines = []
        for person in people[:MAX_LISTED]:
            shown, total = self.shown[person], self.shown[person].total()
            shares = ", ".join(f"{label} {amount / total:.0%}" for label, amount in shown.most_common())
            if person == IMAGES:
                lines.append(f"{total} faces in pictures: {shares}")
            else:
                name = f"{escape_unprintable(person[0])}, " if several else ""
                lines.append(f"{name}person {person[1]}, {total:.1f} s: {shares}")
        if (others := len(people) - MAX_LISTED) > 0:
            lines.append(f"and {others} other{'s' if others > 1 else ''}")
        return "\n".join(lines)

    def draw(self, path: Path, colors: dict[str, tuple[int, int, int]]) -> None:
        """Draw the timeline of those seen longest, a row per person, into an image file, replaced as a whole.

        colors: (blue, green, red) of a label, 0 to 255. Raises UserError when the file can't be written, or only images
        were seen.
        """
        if self.shown and not self.intervals:
            raise UserError(f"--summary {path}: needs a video or camera; people aren't tracked across pictures")
        from matplotlib.figure import Figure  # here, for its import takes a second

        people = [person for person in self._seen_longest()[:MAX_DRAWN] if person in self.intervals]
        figure = Figure(figsize=(10, 1.5 + 0.35 * len(people)), layout="constrained")
        axes, bars = figure.add_subplot(), {}
        for row, person in enumerate(people):
            for label, start, end in self.intervals[person]:
                color = [value / 255 for value in reversed(colors.get(label, (128, 128, 128)))]
                bar = axes.barh(row, end - start, left=start, color=color, height=0.8)
                bars.setdefault(label, bar)
        several = len({source for source, _ in people}) > 1
        names = [f"{escape_unprintable(source) if several else 'person'} {track_id}" for source, track_id in people]
        axes.set_yticks(range(len(people)), names, parse_math=False)  # a name with dollars is no formula
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.set_title("Expressions over time")
        if bars:
            figure.legend(bars.values(), bars.keys(), ncols=8, loc="outside lower center")
        image = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks are drawn as boxes
            figure.savefig(image, format=path.suffix[1:], dpi=100)
        try:
            with atomic_write(path, path.with_name(f"{uuid.uuid4().hex}{path.suffix}")) as partial:
                partial.write_bytes(image.getbuffer())
        except OSError as error:
            raise UserError(f"--summary {path}: can't be written ({error.strerror})") from None

    def _seen_longest(self):
        return sorted(self.shown, key=lambda person: -self.shown[person].total())
