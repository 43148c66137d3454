"""Label the expression of every face before a camera, in videos and in images, until 'q'.

    python realtime_detect.py                              the first camera
    python realtime_detect.py --source 1                   another camera
    python realtime_detect.py --source video.mp4           a video; an image, a folder or "holiday/*.jpg" as well
    python realtime_detect.py --source rtsp://host/door    a camera on the network; http://host/stream as well
    python realtime_detect.py --source video.mp4 --save annotated.mp4 --csv seen.csv --summary timeline.png
    python realtime_detect.py --source "videos/**/*.mp4" --csv results --workers 8    many files, by eight processes

Keys: q or Esc quits, s saves, p pauses, b bars, m mirrors, n neutral face, h hides keys; images: space next, left back.
"""

import argparse
import math
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from expressions import UserError, cli

cli.begin(__name__)
from tqdm import tqdm

from expressions.inference import batch, overlay
from expressions.inference.names import expand_sources, is_camera, parse_size, resolve_source
from expressions.inference.outputs import Outputs
from expressions.inference.recognizer import MODEL, ExpressionRecognizer, Labeller  # noqa: F401
from expressions.inference.sources import Source
from expressions.inference.tables import STDOUT
from expressions.inference.tracker import SEGMENT_SECONDS
from expressions.inference.viewer import Viewer

PROGRAM = "realtime_detect.py"


def main(arguments: list[str] | None = None) -> int:
    """Run the program with the arguments of the command line; returns its exit status."""
    return cli.run(PROGRAM, run, arguments)


def run(arguments: list[str] | None) -> int:
    """Do what the arguments say: label one source after the other, or many files at a time."""
    options = parse(arguments)
    if not options.many:
        with redirect_stdout(sys.stderr) if options.piped else nullcontext():  # messages, where rows are the output
            return detect(options)
    messages = batch.annotate(options)
    for message in messages:
        cli.print_error(PROGRAM, message)
    return 1 if messages else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; `many`: whether to label many files at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", type=resolve_source, default="0", help="camera, file, folder, pattern or address (default: 0)")
    add("--size", type=parse_size, metavar="WIDTHxHEIGHT", help="frame size to request from a camera, such as 1280x720")
    add("--model", type=Path, default=MODEL, help="a model from train.py (default: models/emotion_model.h5)")
    add("--detector", default="haar", help="of faces: haar, yunet (finds more), or a file, .xml or .onnx")
    add("--bars", action="store_true", help="draw the probabilities of all expressions at each face")
    add("--no-window", action="store_true", help="don't open a window")
    add = parser.add_argument_group("results").add_argument
    add("--save", type=Path, metavar="FILE", help="the annotated video or image; for several sources, a folder")
    add("--csv", type=Path, metavar="FILE", help="a row for each face in each frame; - is standard output")
    add("--jsonl", type=Path, metavar="FILE", help="the same, one JSON object per line; also -")
    add("--summary", type=Path, metavar="FILE", help="an image of who showed what when, such as timeline.png")
    add("--overwrite", action="store_true", help="overwrite existing files")
    group = parser.add_argument_group("many files at a time", "no window; --csv or --parquet then names a folder")
    add = group.add_mutually_exclusive_group().add_argument
    add("--workers", type=cli.int_range(1, 1000), metavar="N", help="label with N processes on this machine")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="label on a Ray cluster; no ADDRESS: on this machine")
    group.add_argument("--parquet", type=Path, metavar="FOLDER", help="tables as Parquet files")
    options = parser.parse_args(arguments)
    options.many = options.workers is not None or options.ray is not None
    options.piped = STDOUT in (options.csv, options.jsonl)
    one_folder = bool(options.csv) != bool(options.parquet) and not options.piped
    if options.parquet and not options.many or options.many and not one_folder:
        parser.error("--workers and --ray need one folder, as --csv or --parquet; --parquet needs --workers or --ray")
    for name in ("save", "jsonl", "summary", "size", "bars", "overwrite"):
        if options.many and getattr(options, name):
            parser.error(f"--{name}: goes with one file at a time, without --workers and --ray")
    return options


def detect(options: argparse.Namespace) -> int:
    """Label the faces of every source in turn; returns the exit status, 2 if one failed, but not before the last."""
    # sources: a folder, a pattern and a list have several
    names = expand_sources(options.source)
    if options.size and not any(map(is_camera, names)):
        raise UserError("--size: goes with a camera; videos and images have their own")
    # outputs: checked before any work is done
    outputs = Outputs(options, names)
    several, failures = outputs.folder is not None, 0
    # the only source, such as a camera, is opened before a model is compiled for it
    with nullcontext() if several else Source(names[0], options.size) as opened:
        # model: the trained network (.h5), and the Haar cascade, or another detector, that finds the faces
        recognizer = ExpressionRecognizer(model=options.model, detector=options.detector)
        viewer = Viewer(recognizer, options.bars) if outputs.windowed else None
        with outputs.open(recognizer.labels), viewer.window if viewer else nullcontext():
            for name in tqdm(names, unit=" files", leave=False, disable=None if several else True):
                try:
                    with nullcontext(opened) if opened else Source(name, options.size) as source:
                        if not label_source(source, recognizer, outputs, viewer):
                            break
                except UserError as error:
                    cli.print_error(PROGRAM, error)
                    failures += 1
                    if any(table.failed for table in outputs.tables):  # as would every other source
                        break
                except KeyboardInterrupt:  # between two sources
                    if outputs.summary.source is None:
                        raise
                    break
            if several and failures:
                cli.print_error(PROGRAM, f"{options.source}: {failures} of {len(names)} sources could not be done")
    return 2 if failures else 0


def label_source(source: Source, recognizer: ExpressionRecognizer, outputs: Outputs, viewer: Viewer | None) -> bool:
    """Label the faces of one source, frame by frame. Returns whether to go on with the next source."""
    # source: all frames of a file, or the newest one of a camera
    with outputs.record(source) as recorder:
        recognizer.reset(math.inf if source.live else SEGMENT_SECONDS)
        annotator = overlay.Annotator(recognizer.labels, outputs.options.bars)
        title, hidden = cli.escape_unprintable(source.name), None if source.frame_count else True
        try:
            for frame in tqdm(source, title, source.frame_count, leave=False, disable=hidden, unit=" frames"):
                # faces: where they are, who is who, and which expression each shows
                faces = recognizer.recognize(frame.image, None if source.is_image else frame.seconds)
                # tables: a row for each face
                outputs.write(source, frame, faces)
                # overlay: boxes, labels and bars, drawn for the annotated image or video
                if recorder:
                    recorder.write(annotator.draw(frame.image, faces), frame.seconds)
                # window: the same, until 'q'
                if viewer and not viewer.show(frame.image, faces, source):
                    return False
        except KeyboardInterrupt:
            print("\nStopped.")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
