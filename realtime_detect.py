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
import math
import os
import sys
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

from expressions import UserError, cli  # before OpenCV: bounds it
from expressions.cli import escape_unprintable

# isort: split
import cv2
from tqdm import tqdm

from expressions.inference import batch, overlay
from expressions.inference.recognizer import CASCADE, MODEL, ExpressionRecognizer
from expressions.inference.recorder import CODECS, Recorder
from expressions.inference.sources import Source, expand_sources, is_camera, parse_size
from expressions.inference.tables import Summary, Table
from expressions.inference.tracker import PART
from expressions.window import Window, has_display

Labeller = ExpressionRecognizer  # its name in earlier versions

PROGRAM = "realtime_detect.py"
KEYS = "q quit  s save  p pause  b bars  m mirror  h hide"
QUIT_KEYS = ("q", "Q", "\x1b")  # \x1b is Esc


def main(arguments=None):
    return cli.run(PROGRAM, run, arguments)


def run(arguments):
    options = parse(arguments)
    if not options.workers and options.ray is None:
        return 2 if detect(options) else 0
    try:
        return batch.annotate(options)
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
    names, options.size = expand_sources(options.source), options.size and parse_size(options.size)
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
    recognizer, summary = ExpressionRecognizer(options.model, options.cascade, options.votes), Summary()
    with ExitStack() as stack:
        tables = [
            stack.enter_context(Table(path, recognizer.labels, options.overwrite))
            for path in (options.csv, options.jsonl)
            if path
        ]
        with Preview(recognizer.labels, options.bars) if windowed else nullcontext() as preview:
            for name in tqdm(names, unit=" files", leave=False, disable=None if several else True):
                try:
                    if not label_source(name, root, options, recognizer, tables, summary, preview):
                        break
                except UserError as error:
                    print_error(error)
                    failed += 1
                    if any(table.gone for table in tables):
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


def label_source(name, root, options, recognizer, tables, summary, preview):
    """Label the faces of one source, frame by frame. Returns whether to go on with the next one.

    root: the folder that all sources lie in, where there are several; what is saved lies alike."""
    frames = faces_seen = 0
    go_on, save, lost = True, options.save, None
    with ExitStack() as stack:
        source = stack.enter_context(Source(name, options.size))
        recognizer.reset(math.inf if source.live else PART)
        if save:
            if root:
                save /= os.path.relpath(name, root)
                try:
                    save.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(f"--save {save.parent}: can't be made a folder ({error.strerror})") from None
                if not source.is_image and save.suffix.lower() not in CODECS:  # which can be read, but not written
                    save = save.with_name(f"{save.name}.mp4")
                if os.path.realpath(save) in options.sources:
                    raise UserError(f"--save {save}: is one of the sources; choose another folder")
            recorder = stack.enter_context(Recorder(save, source, options.overwrite))
        began = time.perf_counter()
        title, shown = (
            escape_unprintable(source.name),
            None if source.frame_count else True,
        )  # where it can't be told how far it is
        try:
            for frame in tqdm(source, title, source.frame_count, leave=False, disable=shown, unit=" frames"):
                faces = recognizer.recognize(frame.image, None if source.is_image else frame.seconds)
                frames, faces_seen = frames + 1, faces_seen + len(faces)
                for table in tables:
                    table.write(source.name, frame, faces)
                summary.add(source.name, frame, faces, source.is_image)
                if save:
                    recorder.write(
                        overlay.draw(frame.image, faces, recognizer.labels if options.bars else ()), frame.seconds
                    )
                if preview and not preview.show(frame.image, faces, source):
                    go_on = False
                    break
        except KeyboardInterrupt:
            print("\nStopped.")
            go_on = False
        except UserError as error:
            lost = error
        rate = frames / (time.perf_counter() - began)
    if not root or not source.is_image:
        speed = "" if source.is_image else f", {rate:.1f} frames/s"
        broken = f", {source.skipped} broken ones skipped" if source.skipped else ""
        lacking = f"; {source.missing_seconds:.1f} s are missing: the file is damaged, or was cut without re-encoding"
        saved = f"; saved to {escape_unprintable(save)}" if save and recorder.saved else ""
        notes = f"{broken}{lacking if source.missing_seconds else ''}{saved}"
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
        if self.last and not source.is_image:
            latest = 1 / max(now - self.last, 1e-6)
            self.rate += 0.1 * (latest - self.rate) if self.rate else latest  # smoothed over some ten frames
        self.last, waiting = now, source.is_image
        while True:
            picture = self.draw(image, faces, source.camera != self.turned)  # before a camera people expect a mirror
            shown = picture.copy()
            line = "   ".join(filter(None, [f"{self.rate:.0f} frames/s" if self.rate else "", self.keys]))
            if line:
                overlay.write_line(shown, line)
            key = self.window.show(shown, source.fps)
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
            elif key == "p" or (key and source.is_image):
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


if __name__ == "__main__":
    sys.exit(main())
