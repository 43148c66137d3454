"""Label the expression of every face in front of a camera, in films and in pictures, until 'q'.

    python realtime_detect.py                              the first camera
    python realtime_detect.py --source 1                   another camera
    python realtime_detect.py --source film.mp4            a film; a picture, a folder or "holiday/*.jpg" as well
    python realtime_detect.py --source rtsp://host/door    a camera on the network; http://host/stream as well
    python realtime_detect.py --source film.mp4 --save annotated.mp4 --csv seen.csv --summary timeline.png
    python realtime_detect.py --source "films/**/*.mp4" --csv results --workers 8    many films, by eight processes

Keys: q or Esc quits, s saves the picture, p pauses, b shows bars, m mirrors, h hides the line of keys.
"""

import argparse
import functools
import hashlib
import math
import os
import shutil
import sys
import time
import uuid
import zlib
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

from expressions import UserError, cli, compiled  # before OpenCV: bounds it
from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.inference import overlay, workers

# isort: split
import cv2
from tqdm import tqdm

from expressions.classifier import Classifier
from expressions.images import crop
from expressions.inference.sources import (
    CODECS,
    Frame,
    Recording,
    Source,
    expand,
    is_camera,
    is_list,
    listed,
    parse_size,
    place_of_result,
)
from expressions.inference.tables import Index, ParquetTable, Summary, Table, keep, kept
from expressions.inference.tracker import OVERLAP, PART, Box, Face, FaceDetector, Numbering, Tracker
from expressions.window import Window, has_display

PROGRAM = "realtime_detect.py"
HERE = Path(__file__).resolve().parent
MODEL, CASCADE = HERE / "models" / "emotion_model.h5", HERE / "haarcascade_frontalface_default.xml"
PARTS = ".parts"  # in a folder of results, what is kept of long films until all their parts are there
LISTED = 20  # of the files that could not be done, those told at the end
BAR = "{l_bar}{bar}| {n}/{total}{unit} [{elapsed}<{remaining}{postfix}]"
KEYS = "q quit  s save  p pause  b bars  m mirror  h hide"
QUIT_KEYS = ("q", "Q", "\x1b")  # \x1b is Esc


class Labeller:
    """Finds the faces in pictures and labels their expressions.

    model: an .h5 of train.py. cascade: a face detector's file. votes: label faces as ten people would vote, where the
    model has learned that. threads: for the network; None for as many as pay where nothing else is to be done.
    Raises UserError when a file is missing, damaged or unfit.
    """

    def __init__(self, model=MODEL, cascade=CASCADE, votes=False, threads=None):
        self.detector, self.votes = FaceDetector(cascade), votes
        network = compiled.load(model, threads)
        self.classifier = Classifier(model, network)
        if votes and not self.classifier.votes:
            raise UserError(f"--votes: {model} has not learned from votes; train it with FER+ beside the data set")
        if not network:
            print(f"Compiling {model}: this takes some seconds, once ...", flush=True)
            network = compiled.build(self.classifier, model, threads)
            if network:
                self.classifier.network = network
            else:
                print("Compiling failed (is ai-edge-litert installed?): Keras is used instead, which is slower.")
        self.labels = self.classifier.labels
        self.start()

    def start(self, end=PART):
        """Forget the faces seen so far: another film or camera begins.

        end: when its first part does, in seconds; infinite for a camera, which is followed by one tracker for ever."""
        self.tracker, self.successor, self.end = self.new_tracker(), None, end
        self.numbering = Numbering()

    def new_tracker(self):
        return Tracker(self.detector, self.labels)

    def label(self, image, seconds=None):
        """Find and label the faces in a picture, BGR uint8 (height, width, 3). Returns a list of `tracker.Face`.

        seconds: when it was taken, in a film; then faces are followed and their labels steadied from one to the next.
        """
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if seconds is None:
            return Numbering().name(self.follow(self.new_tracker(), gray, None))
        if seconds >= self.end:
            self.tracker, self.successor = self.successor or self.new_tracker(), None
            self.end = (seconds // PART + 1) * PART
            self.numbering.change()
        faces = self.follow(self.tracker, gray, seconds)
        if seconds >= self.end - OVERLAP:
            self.successor = self.successor or self.new_tracker()
            self.numbering.meet(faces, self.follow(self.successor, gray, seconds))
        return self.numbering.name(faces)

    def follow(self, tracker, gray, seconds):
        """What one tracker sees in one frame, gray uint8 (height, width): a list of `Face`, numbered by it."""
        tracks = tracker.find(gray, seconds or 0.0)
        crops = []
        for track in tracker.due(tracks):
            face = crop(gray, track.box)
            # of a picture both views are taken; in a film one at a time, in turn, for smoothing over time unites them
            crops.append(cv2.flip(face, 1) if track.views % 2 else face)
        probabilities = self.classifier.probabilities(crops, mirrored=seconds is None, votes=self.votes)
        return tracker.judge(tracks, probabilities, seconds or 0.0)


def main(arguments=None):
    return cli.run(PROGRAM, run, arguments)


def run(arguments):
    options = parse(arguments)
    if not options.workers and options.ray is None:
        return 2 if detect(options) else 0
    import realtime_detect  # under the name that other processes know it by

    try:
        return realtime_detect.annotate(options)
    except KeyboardInterrupt:
        print("\nStopped. Run the command again to continue from here.")
        raise


def print_error(error):
    cli.print_error(PROGRAM, error)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--source", default="0", help="camera, film, picture, folder, pattern or address (default: 0, the first camera)"
    )
    add("--size", metavar="WIDTHxHEIGHT", help="frame size to request from a camera, such as 1280x720")
    add("--model", type=Path, default=MODEL, help="a model from train.py (default: models/emotion_model.h5)")
    add("--cascade", type=Path, default=CASCADE, help="a face detector's file")
    add("--votes", action="store_true", help="predict how ten people would vote, if the model has learned from votes")
    add("--bars", action="store_true", help="draw the probability of each expression beside each face")
    add("--no-window", action="store_true", help="don't open a window")
    group = parser.add_argument_group("results")
    add = group.add_argument
    add("--save", type=Path, metavar="FILE", help="the annotated film or picture; for several sources, a folder")
    add("--csv", type=Path, metavar="FILE", help="a row for each face in each frame")
    add("--jsonl", type=Path, metavar="FILE", help="the same, one JSON object per line")
    add("--summary", type=Path, metavar="FILE", help="a picture of who showed what when, such as timeline.png")
    add("--overwrite", action="store_true", help="overwrite existing files")
    group = parser.add_argument_group(
        "many files at a time", "without a window; --csv or --parquet then names a folder"
    )
    add = group.add_argument
    add("--workers", type=int, metavar="N", help="label with N processes on this machine")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="label on the machines of a Ray cluster; without an address, on this machine",
    )
    add("--parquet", type=Path, metavar="FOLDER", help="tables as Parquet files")
    options = parser.parse_args(arguments)
    several = options.workers is not None or options.ray is not None
    if options.workers is not None and not 1 <= options.workers <= 1000:
        parser.error(f"--workers {options.workers}: takes a whole number from 1 to 1000")
    if options.workers and options.ray is not None:
        parser.error("--workers and --ray: give one of them; Ray has a worker for each processor")
    if several != bool(options.parquet) and not (several and options.csv) or (options.csv and options.parquet):
        parser.error("--workers and --ray need one folder, as --csv or --parquet; --parquet needs --workers or --ray")
    others = ("save", "jsonl", "summary", "size", "bars", "overwrite")
    if several and (unfit := [f"--{name}" for name in others if getattr(options, name)]):
        parser.error(f"{unfit[0]}: goes with one file at a time, without --workers and --ray")
    return options


def detect(options):
    """Label the faces of every source in turn; show, save and write down the results, until it or the user ends.

    Returns how much failed, each told by then. What was seen before a failure is summed up all the same."""
    results = [path for path in (options.save, options.csv, options.jsonl, options.summary) if path]
    windowed = not options.no_window and (has_display() or not results)  # no screen: fine where there is a file
    if not windowed and not results:
        raise UserError("--no-window: goes with --save, --csv, --jsonl or --summary, else there is nothing to see")
    for name, endings in (("csv", [".csv"]), ("jsonl", [".jsonl"]), ("summary", [".png", ".pdf", ".svg"])):
        path = getattr(options, name)
        if path and path.suffix.lower() not in endings:
            raise UserError(f"--{name} {path}: its name has to end in {' or '.join(endings)}")
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"--{name} {path}: there is no folder {path.parent}; make it first")
        if path and not os.access(path.resolve().parent, os.W_OK):
            raise UserError(f"--{name} {path}: its folder can't be written to; choose another one")
    if options.summary and (options.summary.is_dir() or (options.summary.exists() and not options.overwrite)):
        raise UserError(f"--summary {options.summary}: exists already; choose another name, or give --overwrite")
    if options.bars and not windowed and not options.save:
        raise UserError("--bars: goes with a window or with --save, else nothing is drawn")
    names, options.size = expand(options.source), options.size and parse_size(options.size)
    if options.size and not any(map(is_camera, names)):
        raise UserError("--size: goes with a camera; films and pictures have their own")
    several, failed = names != [options.source], 0  # a folder or pattern, whatever it holds
    try:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names]) if several else None
    except ValueError:  # of Windows
        raise UserError(f"{options.source}: names files on several drives; make a list for each") from None
    options.sources = {os.path.realpath(name) for name in names}
    targets = [os.path.realpath(path) for path in results]
    for path, target in zip(results, targets, strict=True):
        if target in options.sources or targets.count(target) > 1:
            raise UserError(f"{path}: is the source itself, or named twice; choose another name")
    labeller, summary = Labeller(options.model, options.cascade, options.votes), Summary()
    with ExitStack() as stack:
        tables = [
            stack.enter_context(Table(path, labeller.labels, options.overwrite))
            for path in (options.csv, options.jsonl)
            if path
        ]
        with Preview(labeller.labels, options.bars) if windowed else nullcontext() as preview:
            for name in tqdm(names, unit=" files", leave=False, disable=None if several else True):
                try:
                    if not label_source(name, root, options, labeller, tables, summary, preview):
                        break
                except UserError as error:
                    print_error(error)
                    failed += 1
                    if any(result.gone for result in (*tables, *([preview.window] if preview else []))):
                        break  # not this source is at fault
                except KeyboardInterrupt:  # between two sources
                    if summary.source is None:
                        raise
                    break
        if several and failed:
            print_error(f"{options.source}: {failed} of {len(names)} sources could not be done")
        if summary.source is not None:
            print(summary.describe())
            if options.summary:
                summary.draw(options.summary, overlay.COLOURS)
    return failed


def label_source(name, root, options, labeller, tables, summary, preview):
    """Label the faces of one source, frame by frame. Returns whether to go on with the next one.

    root: the folder that all sources lie in, where there are several; what is saved lies alike."""
    frames = faces_seen = 0
    go_on, save, lost = True, options.save, None
    with ExitStack() as stack:
        source = stack.enter_context(Source(name, options.size))
        labeller.start(math.inf if source.live else PART)
        if save:
            if root:
                save /= os.path.relpath(name, root)
                try:
                    save.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(f"--save {save.parent}: can't be made a folder ({error.strerror})") from None
                if not source.still and save.suffix.lower() not in CODECS:  # which can be read, but not written
                    save = save.with_name(f"{save.name}.mp4")
                if os.path.realpath(save) in options.sources:
                    raise UserError(f"--save {save}: is one of the sources; choose another folder")
            recording = stack.enter_context(Recording(save, source, options.overwrite))
        began = time.perf_counter()
        title, shown = (
            escape_unprintable(source.name),
            None if source.length else True,
        )  # where it can't be told how far it is
        try:
            for frame in tqdm(source, title, source.length, leave=False, disable=shown, unit=" frames"):
                faces = labeller.label(frame.image, None if source.still else frame.seconds)
                frames, faces_seen = frames + 1, faces_seen + len(faces)
                for table in tables:
                    table.write(source.name, frame, faces)
                summary.add(source.name, frame, faces, source.still)
                if save:
                    recording.write(overlay.draw(frame.image, faces, labeller.labels if options.bars else ()))
                if preview and not preview.show(frame.image, faces, source):
                    go_on = False
                    break
        except KeyboardInterrupt:
            print("\nStopped.")
            go_on = False
        except UserError as error:
            lost = error
        rate = frames / (time.perf_counter() - began)
    if not root or not source.still:
        speed = "" if source.still else f", {rate:.1f} frames/s"
        broken = f", {source.skipped} broken ones skipped" if source.skipped else ""
        lacking = f"; {source.missing:.1f} s are missing: the file is damaged, or was cut without re-encoding"
        saved = f"; saved to {escape_unprintable(save)}" if save and recording.saved else ""
        notes = f"{broken}{lacking if source.missing else ''}{saved}"
        tqdm.write(f"{escape_unprintable(source.name)}: {frames} frames, {faces_seen} faces{speed}{notes}")
    if lost:
        raise lost
    return go_on


class Preview:
    """The window on what is seen, and its keys, within `with`. labels: of the bars. bars: whether to draw them."""

    def __init__(self, labels, bars):
        self.window, self.labels, self.bars = Window("Expressions"), labels, bars
        self.turned, self.keys = False, KEYS  # turned: mirrored where it would not be, and the other way round
        self.last, self.rate = None, 0.0

    def __enter__(self):
        self.window.__enter__()
        return self

    def __exit__(self, *error):
        self.window.__exit__(*error)

    def show(self, image, faces, source):
        """Show a frame and heed the keys; a picture, or where the user pauses, until a key ends it.

        Returns whether to go on to the next frame."""
        now = time.perf_counter()
        if self.last and not source.still:
            latest = 1 / max(now - self.last, 1e-6)
            self.rate += 0.1 * (latest - self.rate) if self.rate else latest  # smoothed over some ten frames
        self.last, waiting = now, source.still
        while True:
            picture = self.draw(image, faces, source.camera != self.turned)  # before a camera people expect a mirror
            shown = picture.copy()
            line = "   ".join(filter(None, [f"{self.rate:.0f} frames/s" if self.rate else "", self.keys]))
            if line:
                overlay.write_line(shown, line)
            key = self.window.show(shown, source.rate)
            if key is None or key in QUIT_KEYS:
                return False
            if key == "s":
                self.save(picture)
            elif key == "b":
                self.bars = not self.bars
            elif key == "m":
                self.turned = not self.turned
            elif key == "h":
                self.keys = "" if self.keys else KEYS
            elif key == "p" or (key and source.still):
                waiting = not waiting
            if not waiting:
                return True
            time.sleep(0.02)

    def draw(self, image, faces, mirrored):
        if mirrored:  # before the words are written, which have to be read
            width, image = image.shape[1], cv2.flip(image, 1)
            boxes = [face.box._replace(x=width - face.box.x - face.box.width) for face in faces]
            faces = [face._replace(box=box) for face, box in zip(faces, boxes, strict=True)]
        return overlay.draw(image, faces, self.labels if self.bars else ())

    def save(self, picture):
        """Write the picture into the working directory, under the name of the moment."""
        moment, number = time.strftime("expressions-%Y%m%d-%H%M%S"), 1
        while (path := Path(f"{moment}{'' if number == 1 else f'-{number}'}.png")).exists():  # from this very second
            number += 1
        try:
            path.write_bytes(cv2.imencode(".png", picture)[1])
        except OSError as error:
            with suppress(OSError):
                path.unlink()  # not half a picture
            tqdm.write(f"{path}: can't be written ({error.strerror})")
        else:
            tqdm.write(f"Saved {path}")


def annotate(options):
    """Label the faces in many files by many workers: a table a file in a folder, and the index of them.

    A film of more than a part is labelled by as many workers as it has parts, and joined by another. Begun again, it
    leaves out what is done. Returns the exit status, 1 where a file could not be done."""
    folder, ending = (options.csv, ".csv") if options.csv else (options.parquet, ".parquet")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --workers and --ray take a folder, for a table a file")
    if ending == ".parquet":
        ParquetTable.library()
    names = functools.partial(listed, options.source) if is_list(options.source) else expand(options.source).__iter__
    total = sum(1 for _ in names())
    if total == 1 and next(names()) == options.source and not os.path.exists(options.source):
        raise UserError(f"--source {options.source}: no such file; --workers and --ray label files, and no cameras")
    Labeller(options.model, options.cascade, options.votes)  # complains now, and compiles the network for all
    used = [
        None if path == own else path.absolute() for path, own in ((options.model, MODEL), (options.cascade, CASCADE))
    ]
    made_by = hashlib.sha256(repr((options.votes, ending, PART, OVERLAP)).encode())
    for path in (options.model, options.cascade):
        made_by.update(path.read_bytes())
    job = (*used, options.votes, folder.absolute(), ending, made_by.hexdigest()[:16])
    hired = workers.processes(options.workers) if options.workers else workers.cluster(options.ray, HERE)
    films, urgent, failures = {}, deque(), []  # films: those in the making, how many parts they have, and have done
    frames = faces = done = before = 0
    with ExitStack() as stack:
        hired = stack.enter_context(hired)
        index = stack.enter_context(Index(folder, job[-1]))
        bar = stack.enter_context(tqdm(unit=" files", total=total, bar_format=BAR))

        def tasks():
            nonlocal before
            for name in names():
                result = place_of_result(name, options.source) + ending
                if index.due(name, result):
                    yield annotate_part, job, name, os.path.abspath(name), result, 0
                else:
                    before += 1
                    bar.update()

        began = time.perf_counter()
        for (_, _, name, path, result, part), outcome in workers.work(hired, tasks(), urgent):
            if isinstance(outcome, Exception):
                outcome = f"{name}: given up after {workers.ATTEMPTS} workers died on it; is there too little memory?"
            if part and name not in films:  # failed already
                continue
            if isinstance(outcome, int):  # a part of a film is done, which has so many as far as is known
                parts, parts_done = films.get(name, (1, 0))
                urgent.extend((annotate_part, job, name, path, result, number) for number in range(parts, outcome))
                films[name] = parts, parts_done = max(parts, outcome), parts_done + 1
                if parts == parts_done:
                    urgent.append((join_parts, job, name, path, result, parts))
                continue
            films.pop(name, None)
            bar.update()
            if isinstance(outcome, str):
                index.fail(name, outcome)
                failures.append(outcome)
                del failures[LISTED:]
                continue
            index.add(name, result, outcome)
            done, frames, faces = done + 1, frames + outcome[1], faces + outcome[2]
            bar.set_postfix_str(f"{frames / (time.perf_counter() - began):.1f} frames/s", refresh=False)
        passed = time.perf_counter() - began
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    left_out = f", {before} done before or named twice" if before else ""
    print(f"{done} files{left_out}: {frames} frames, {faces} faces, {frames / passed:.1f} frames/s; see {index.path}")
    for line in failures:
        print_error(line)
    if index.failed:
        print_error(f"{options.source}: {index.failed} files could not be done; see {index.failures}")
    return 1 if index.failed else 0


@functools.cache
def hired_labeller(model, cascade, votes):
    """A worker's Labeller. It uses one processor, for the others have workers of their own."""
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    return Labeller(model or MODEL, cascade or CASCADE, votes, threads=1)


def annotate_part(job, name, path, result, part):
    """A worker's task: label a file; of a film longer than PART only this part of it, kept for `join_parts`.

    Returns what `Index.add` counts; of a long film how many parts it has, as far as can be told by then; or a text, why
    it can't be done. Raises UserError where the labeller can't work, for it will not for other files either."""
    labeller, start, end = hired_labeller(*job[:3]), part * PART, (part + 1) * PART
    try:
        if is_camera(path):  # which has no end
            raise UserError(f"{name}: is no file; --workers and --ray label files, and no cameras")
        file = part_file(job, path, part)
        if file.exists():  # from a run that was stopped
            return kept(file)[1]["parts"]
        with Source(path, start=max(0, start - OVERLAP)) as source:
            parts = math.ceil(source.length / source.rate / PART) if source.length else 1
            if part == 0 and parts == 1:
                return *write_table(job, name, result, watch(source, labeller)), source.skipped, source.missing
            tracker, frames, skipped, before = labeller.new_tracker(), [], 0, 0
            for frame in source:
                if frame.seconds >= end:
                    parts = max(parts, part + 2)
                    break
                shared = frame.seconds < start or frame.seconds >= end - OVERLAP
                gray = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
                sum_of_frame = zlib.crc32(frame.image) if shared else 0
                frames.append((frame.seconds, sum_of_frame, labeller.follow(tracker, gray, frame.seconds)))
                skipped = source.skipped
                if frame.seconds < start:  # the part before counts these
                    before = skipped
            keep(file, frames, parts=parts, skipped=skipped - before, missing=source.missing)
            return parts
    except Exception as error:  # whatever this file makes of a library; the others go on
        return reason(error, name)


def join_parts(job, name, path, result, parts):
    """A worker's task: make a table of the parts of a film that `annotate_part` kept. Returns what that returns.

    Where two parts don't have the same frames in the time that they share, the film can't be entered in its middle;
    then it is labelled from its beginning to its end here."""
    try:
        files = [part_file(job, path, part) for part in range(parts)]
        try:
            notes = []
            counts = (
                *write_table(job, name, result, joined(files, notes)),
                sum(n["skipped"] for n in notes),
                notes[-1]["missing"],
            )
        except UnlikePartsError:
            with Source(path) as source:
                labeller = hired_labeller(*job[:3])
                counts = *write_table(job, name, result, watch(source, labeller)), source.skipped, source.missing
        for file in files:
            file.unlink()
        return counts
    except Exception as error:
        return reason(error, name)


def reason(error, name):
    if isinstance(error, OSError):
        error = UserError(f"{name}: {error.strerror or error}")
    return escape_unprintable(error if isinstance(error, UserError) else f"{name}: {type(error).__name__}: {error}")


def watch(source, labeller):
    """The Frames of a source and the faces in each, one after the other, as when it is shown."""
    labeller.start()
    for frame in source:
        yield frame, labeller.label(frame.image, None if source.still else frame.seconds)


def write_table(job, name, result, seen):
    """Write the table of a file, whose Frames and faces `seen` gives; it gets its name once it is whole.

    Returns the time of the last frame in seconds, and how many frames, faces and people there are."""
    labels, folder, ending = hired_labeller(*job[:3]).labels, *job[3:5]
    path, partial = folder / result, folder / PARTS / f"{uuid.uuid4().hex}{ending}"
    for place in (path, partial):
        place.parent.mkdir(parents=True, exist_ok=True)
    frames, faces_seen, people = 0, 0, set()
    with atomic_write(path, partial), (Table if ending == ".csv" else ParquetTable)(partial, labels) as table:
        for frame, faces in seen:
            table.write(name, frame, faces)
            frames, faces_seen = frames + 1, faces_seen + len(faces)
            people.update(face.number for face in faces)
    return round(frame.seconds, 3), frames, faces_seen, len(people)


def part_file(job, path, part):
    """Where a part of the film at `path`, as it is now, is kept until its table is written."""
    *_, folder, _, made_by = job
    status = os.stat(path)
    film = hashlib.sha256(repr((path, status.st_size, status.st_mtime_ns, made_by)).encode()).hexdigest()
    return folder / PARTS / f"{film[:32]}-{part}.npz"


class UnlikePartsError(Exception):
    """Two parts of a film don't have the same frames in the time that they share."""


def joined(files, notes):
    """The Frames (without their pictures) of a film and the faces in each, from the files of all its parts, whose notes
    are added to `notes`."""
    numbering, number, before = Numbering(), 0, []
    for part, (frames, noted) in enumerate(map(kept, files)):
        notes.append(noted)
        start, end = part * PART, (part + 1) * PART
        frames = [
            (*frame, [Face(Box(*box), *rest, number, probabilities) for number, box, *rest, probabilities in faces])
            for *frame, faces in frames
        ]
        shared = [frame for frame in frames if frame[0] < start]
        if part and ([frame[:2] for frame in before] != [frame[:2] for frame in shared] or not shared):
            raise UnlikePartsError
        for (_, _, faces), (_, _, others) in zip(before, shared, strict=True):
            numbering.meet(faces, others)
        if part:
            numbering.change()
        for seconds, _, faces in frames[len(shared) :]:
            yield Frame(None, number, seconds), numbering.name(faces)
            number += 1
        before = [frame for frame in frames if frame[0] >= end - OVERLAP]


if __name__ == "__main__":
    sys.exit(main())
