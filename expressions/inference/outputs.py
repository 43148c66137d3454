"""What a run of realtime_detect.py writes: tables, annotated images and videos, a summary with its timeline."""

import importlib.util
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from tqdm import tqdm

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.image_formats import WRITTEN_SUFFIXES
from expressions.inference import overlay
from expressions.inference.sources import Source
from expressions.inference.summary import Summary
from expressions.inference.tables import STDOUT, Table
from expressions.inference.types import Face, Frame
from expressions.window import NO_SCREEN, screen_size

SUFFIXES = {"csv": [".csv"], "jsonl": [".jsonl"], "summary": [".png", ".pdf", ".svg"]}


class Outputs:
    """The outputs of one run, opened by `open`. They are checked before any work is done, but --save with its source.

    Raises UserError if one can't be written, exists already, or is a source or another output, or if there is none.

    Args:
        options: Of realtime_detect.py.
        sources: What `expand_sources` made of `options.source`.

    Attributes:
        folder: The folder that all sources lie in; None for a single source.
        windowed: Whether there is also a window; without a screen, files are enough.
    """

    def __init__(self, options: Namespace, sources: list[str]):
        self.options, self.sources = options, {os.path.realpath(name) for name in sources}
        self.folder, self.summary, self.tables = None, Summary(), []
        if sources != [options.source]:
            try:
                self.folder = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in sources])
            except ValueError:  # Windows
                raise UserError(f"{options.source}: names files on several drives; make a list for each") from None
        paths = {name: path for name in ("save", *SUFFIXES) if (path := getattr(options, name))}
        self.windowed = not options.no_window and (not paths or screen_size() is not None)
        if self.windowed and not screen_size():
            raise UserError(NO_SCREEN)
        if options.summary and not importlib.util.find_spec("matplotlib"):
            raise UserError("--summary: Matplotlib, which draws it, is not installed; run: pip install matplotlib")
        if not self.windowed and not paths:
            raise UserError("--no-window: goes with --save, --csv, --jsonl or --summary, else there is nothing to see")
        if options.bars and not self.windowed and not options.save:
            raise UserError("--bars: goes with a window or with --save, else nothing is drawn")
        targets = [os.path.realpath(path) for path in paths.values()]
        for (name, path), target in zip(paths.items(), targets, strict=True):
            piped = path == STDOUT and name != "summary"
            if name in SUFFIXES and not piped and (reason := _find_problem(path, SUFFIXES[name])):
                raise UserError(f"--{name} {path}: {reason}")
            if name == "summary" and (path.is_dir() or (path.exists() and not options.overwrite)):
                raise UserError(f"--summary {path}: exists already; choose another name, or give --overwrite")
            if target in self.sources or targets.count(target) > 1:
                raise UserError(f"{path}: is the source itself, or named twice; choose another name")

    @contextmanager
    def open(self, labels: tuple[str, ...]) -> Iterator[None]:
        """Keep the tables open within the `with` block; at its end, print the summary and draw the timeline."""
        with ExitStack() as stack:
            for suffix, path in ((".csv", self.options.csv), (".jsonl", self.options.jsonl)):
                if path:
                    self.tables.append(stack.enter_context(Table(path, labels, self.options.overwrite, suffix)))
            yield
            if self.summary.source is not None:  # something was seen
                if text := self.summary.describe():
                    print(text)
                if self.options.summary:
                    print(f"Drawing {escape_unprintable(self.options.summary)} ...", flush=True)
                    self.summary.draw(self.options.summary, overlay.palette(labels))

    @contextmanager
    def record(self, source: Source) -> "Iterator[Recorder | None]":  # noqa: F821
        """Keep the annotated file of one source open within the `with` block; at its end, print a line about it."""
        self.frames, self.faces, error = 0, 0, None
        with self._open_recorder(source) if self.options.save else nullcontext() as recorder:
            start = time.perf_counter()
            try:
                yield recorder
            except UserError as raised:  # the line comes before its message
                error = raised
            fps = self.frames / (time.perf_counter() - start)
        if not (self.folder and source.is_image):
            line = f"{escape_unprintable(source.name)}: {self.frames} frames, {self.faces} faces"
            if not source.is_image:
                line += f", {fps:.1f} frames/s"
            if source.skipped:
                line += f", {source.skipped} broken ones skipped"
            if missing := source.missing_seconds:
                line += f"; {missing:.1f} s are missing: the file is damaged, or was cut without re-encoding"
            if recorder and recorder.frame_count:
                line += f"; saved to {escape_unprintable(recorder.path)}{recorder.lacking}"
            tqdm.write(line)
        if error:
            raise error

    def write(self, source: Source, frame: Frame, faces: list[Face]) -> None:
        """Add the faces of a frame to the tables and the summary."""
        self.frames, self.faces = self.frames + 1, self.faces + len(faces)
        for table in self.tables:
            table.write(source.name, frame, faces)
        self.summary.add(source.name, frame, faces, source.is_image)

    def _open_recorder(self, source):
        from expressions.inference.recorder import FORMATS, Recorder  # not above: PyAV takes a tenth of a second

        path = self.options.save
        if self.folder:  # the same folders in --save as in the sources'
            path /= os.path.relpath(source.address, self.folder)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--save {path.parent}: can't be made a folder ({error.strerror})") from None
            if not source.is_image and path.suffix.lower() not in FORMATS:  # can be read, but not written
                path = path.with_name(f"{path.name}.mp4")
            if source.is_image and path.suffix.lower() not in WRITTEN_SUFFIXES:
                path = path.with_name(f"{path.name}.jpg")
            if os.path.realpath(path) in self.sources:
                raise UserError(f"--save {path}: is one of the sources; choose another folder")
        return Recorder(path, source, self.options.overwrite)


def _find_problem(path, suffixes):
    """Return why a file can't be written, as far as that is known before any work is done."""
    folder = path.resolve().parent
    if path.suffix.lower() not in suffixes:
        return f"its name has to end in {' or '.join(suffixes)}"
    if not folder.is_dir():
        return f"there is no folder {path.parent}; make it first"
    if not os.access(folder, os.W_OK):
        return "its folder can't be written to; choose another one"
    return None
