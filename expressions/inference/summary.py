"""The summary of a run: how long each tracked face showed which expression, in words and as a timeline."""

import io
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.inference.types import Face, Frame

MAX_LISTED, MAX_DRAWN = 5, 20  # tracks in the text and in the timeline: those seen longest
MAX_GAP = 1.0  # seconds that a face may be away without a gap in its timeline
MAX_TITLE = 80  # characters of a file's name that fit above the timeline


class Summary:
    """Adds up how long each track showed which expression in videos, and how many faces did in images."""

    def __init__(self):
        self.shown = defaultdict(Counter)  # of each track, (source, track_id): seconds by label
        self.intervals = defaultdict(list)  # of each track: [label, start, end] in order, in seconds
        self.ends = Counter()  # of each video: seconds until its latest frame
        self.images, self.images_without, self.faces = 0, 0, Counter()  # of images: faces by label
        self.source = self.last_seconds = None  # of the latest frame

    def add(self, source: str, frame: Frame, faces: list[Face], is_image: bool) -> None:
        """Count the faces in a frame of the source of this name."""
        gap = frame.seconds - self.last_seconds if source == self.source else 0
        if not 0 <= gap <= MAX_GAP:  # the source began anew, or nobody was seen
            gap = 0
        self.source, self.last_seconds = source, frame.seconds
        if is_image:
            self.images, self.images_without = self.images + 1, self.images_without + (not faces)
            self.faces.update(face.label for face in faces)
            return
        self.ends[source] = max(self.ends[source], frame.seconds)
        for face in faces:
            track = source, face.track_id
            self.shown[track][face.label] += gap
            intervals = self.intervals[track]
            if intervals and intervals[-1][0] == face.label and 0 <= frame.seconds - intervals[-1][2] < MAX_GAP:
                intervals[-1][2] = frame.seconds
            else:
                intervals.append([face.label, frame.seconds - gap, frame.seconds])

    def describe(self) -> str:
        """Return lines: of the tracks seen longest the share of each expression in their time, and of all images."""
        tracks = [track for track in self._seen_longest() if self.shown[track].total()]  # in more than one frame
        lines = []
        for source, track_id in tracks[:MAX_LISTED]:
            shown = self.shown[source, track_id]
            name = f"{escape_unprintable(source)}, " if len(self.ends) > 1 else ""
            lines.append(f"{name}track {track_id}, {shown.total():.1f} s: {_shares(shown)}")
        if (others := len(tracks) - MAX_LISTED) > 0:
            lines.append(f"and {others} other{'s' if others > 1 else ''}")
        if self.images:
            faces, without = self.faces.total(), self.images_without
            line = f"{self.images} image{'s' * (self.images > 1)}, {faces} face{'s' * (faces != 1)}"
            line += f", {without} without one" * (without > 0)
            lines.append(line + (f": {_shares(self.faces)}" if faces else ""))
        return "\n".join(lines)

    def draw(self, path: Path, colours: dict[str, tuple[int, int, int]]) -> None:
        """Draw the timeline of those seen longest, a row per track, into an image file, replaced as a whole.

        colours: (blue, green, red) of a label, 0 to 255. Raises UserError when the file can't be written, or only
        images were seen.
        """
        if self.images and not self.ends:
            raise UserError(f"--summary {path}: needs a video or camera; faces aren't tracked across images")
        from matplotlib.figure import Figure  # here, for its import takes a second

        tracks = set(self._seen_longest()[:MAX_DRAWN])
        tracks = [track for track in self.intervals if track in tracks]  # by first appearance
        figure = Figure(figsize=(10, 1.5 + 0.35 * len(tracks)), layout="constrained")
        axes, bars = figure.add_subplot(), {}
        for row, track in enumerate(tracks):
            for label, start, end in self.intervals[track]:
                color = [value / 255 for value in reversed(colours.get(label, (128, 128, 128)))]
                bar = axes.barh(row, end - start, left=start, color=color, height=0.8)
                bars.setdefault(label, bar)
        several = len(self.ends) > 1
        names = [f"{escape_unprintable(source)}, " * several + f"track {track_id}" for source, track_id in tracks]
        axes.set_yticks(range(len(tracks)), names, parse_math=False)  # a name with dollars is no formula
        axes.invert_yaxis()
        axes.set_xlim(0, max(self.ends.values(), default=0) or 1)
        axes.set_xlabel("seconds")
        title = f"{len(self.ends)} videos" if several else escape_unprintable("".join(self.ends))
        axes.set_title(f"Expressions in {title[-MAX_TITLE:]}", parse_math=False)
        if bars:
            figure.legend(bars.values(), bars.keys(), ncols=8, loc="outside lower center")
        image = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks are drawn as boxes
            figure.savefig(image, format=path.suffix[1:], dpi=100)
        try:
            with atomic_write(path) as partial:
                partial.write_bytes(image.getbuffer())
        except OSError as error:
            raise UserError(f"--summary {path}: can't be written ({error.strerror})") from None

    def _seen_longest(self):
        return sorted(self.shown, key=lambda track: -self.shown[track].total())


def _shares(amounts):
    return ", ".join(f"{label} {amount / amounts.total():.0%}" for label, amount in amounts.most_common())
