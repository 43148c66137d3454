"""Label the expression of every face before a camera, in films and in pictures, until 'q'.

    python realtime_detect.py                              the first camera
    python realtime_detect.py --source 1                   another camera
    python realtime_detect.py --source film.mp4            a film; a picture, a folder or "holiday/*.jpg" as well
    python realtime_detect.py --source rtsp://host/door    a camera on the network; http://host/stream as well
    python realtime_detect.py --source film.mp4 --save annotated.mp4 --csv seen.csv --summary timeline.png

Keys: q or Esc quits, s saves the picture, p pauses, b shows bars, m mirrors, h hides the line of keys.
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter hides the program's own words

import cv2
from tqdm import tqdm

from expressions import UserError, as_program, compiled, overlay, printable
from expressions.classifier import Classifier
from expressions.faces import FaceDetector, Tracker, crop
from expressions.results import Summary, Table
from expressions.video import CODECS, Recording, Source, Window, expand, has_display, parse_size

HERE = Path(__file__).resolve().parent
MODEL, CASCADE = HERE / "models" / "emotion_model.h5", HERE / "haarcascade_frontalface_default.xml"
KEYS = "q quit  s save  p pause  b bars  m mirror  h hide"
QUIT_KEYS = ("q", "Q", "\x1b")  # \x1b is Esc


class Labeller:
    """Finds the faces in pictures and labels their expressions.

    model: an .h5 of train.py. cascade: a face detector's file. votes: label faces as ten people would vote, where the
    model has learned that. Raises UserError when a file is missing, damaged or unfit.
    """

    def __init__(self, model=MODEL, cascade=CASCADE, votes=False):
        self.detector, self.votes = FaceDetector(cascade), votes
        network = compiled.load(model)
        self.classifier = Classifier(model, network)
        if votes and not self.classifier.votes:
            raise UserError(f"--votes: {model} has not learned from votes; train it with FER+ beside the data set")
        if not network:
            print(f"Compiling {model}: this takes some seconds, once ...", flush=True)
            network = compiled.build(self.classifier, model)
            if network:
                self.classifier.network = network
            else:
                print("That did not work (is ai-edge-litert installed?): Keras labels the faces, which takes longer.")
        self.labels = self.classifier.labels
        self.start()

    def start(self):
        """Forget the faces seen so far: another film or camera begins."""
        self.tracker = Tracker(self.detector, self.labels)

    def label(self, image, seconds=None):
        """Find and label the faces in a picture, BGR uint8 (height, width, 3). Returns a list of `faces.Face`.

        seconds: when it was taken, in a film; then faces are followed and their labels steadied from one to the next.
        """
        if seconds is None:
            self.start()
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        tracks = self.tracker.find(gray, seconds or 0.0)
        crops = []
        for track in self.tracker.due(tracks):
            face = crop(gray, track.box)
            # of a picture both views are taken; in a film one at a time, in turn, for smoothing over time unites them
            crops.append(cv2.flip(face, 1) if track.views % 2 else face)
        probabilities = self.classifier.probabilities(crops, mirrored=seconds is None, votes=self.votes)
        return self.tracker.judge(tracks, probabilities, seconds or 0.0)


def main(arguments=None):
    return as_program(attempt, arguments)


def attempt(arguments):
    options = parse(arguments)
    try:
        return 2 if detect(options) else 0
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        complain(error)
        return 2
    except KeyboardInterrupt:  # while loading; the loop has its own way to stop
        return 130


def complain(error):
    tqdm.write(f"realtime_detect.py: {printable(error)}", file=sys.stderr)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--source", default="0", help="camera, film, picture, folder, pattern or address (default: 0, the first camera)"
    )
    add("--size", metavar="WIDTHxHEIGHT", help="what to ask a camera for, such as 1280x720")
    add("--model", type=Path, default=MODEL, help="a model from train.py (default: models/emotion_model.h5)")
    add("--cascade", type=Path, default=CASCADE, help="a face detector's file")
    add("--votes", action="store_true", help="label faces as ten people would vote, where the model has learned that")
    add("--bars", action="store_true", help="draw how likely each expression is, beside each face")
    add("--no-window", action="store_true", help="don't open a window")
    group = parser.add_argument_group("results")
    add = group.add_argument
    add("--save", type=Path, metavar="FILE", help="the annotated film or picture; of several, the folder for them")
    add("--csv", type=Path, metavar="FILE", help="a row for each face in each frame")
    add("--jsonl", type=Path, metavar="FILE", help="the same, a JSON object a line")
    add("--summary", type=Path, metavar="FILE", help="a picture of who showed what when, such as timeline.png")
    add("--overwrite", action="store_true", help="write over files that are there already")
    return parser.parse_args(arguments)


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
    names, options.size = expand(options.source), options.size and parse_size(options.size)
    several, failed = names != [options.source], 0  # a folder or pattern, whatever it holds
    root = (os.path.commonpath([os.path.dirname(name) for name in names]) or ".") if several else None
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
                    complain(error)
                    failed += 1
                except KeyboardInterrupt:  # between two sources
                    if summary.source is None:
                        raise
                    break
        if several and failed:
            complain(f"{options.source}: {failed} of {len(names)} sources could not be done")
        if summary.source is not None:
            print(summary.describe())
            if options.summary:
                summary.draw(options.summary, overlay.COLOURS)
    return failed


def label_source(name, root, options, labeller, tables, summary, preview):
    """Label the faces of one source, frame by frame. Returns whether to go on with the next one.

    root: the folder that all sources lie in, where there are several; what is saved lies alike."""
    labeller.start()
    frames = faces_seen = 0
    go_on, save, lost = True, options.save, None
    with ExitStack() as stack:
        source = stack.enter_context(Source(name, options.size))
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
        title, shown = printable(source.name), None if source.length else True  # where it can't be told how far it is
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
        lacking = f"; {source.missing:.1f} s are missing: damaged, or cut without being encoded again"
        saved = f"; saved to {printable(save)}" if save and recording.saved else ""
        notes = f"{broken}{lacking if source.missing else ''}{saved}"
        tqdm.write(f"{printable(source.name)}: {frames} frames, {faces_seen} faces{speed}{notes}")
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


if __name__ == "__main__":
    sys.exit(main())
