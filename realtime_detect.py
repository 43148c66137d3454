"""Label the expression of every face in front of a camera, in a video or in an image, until 'q'.

    python realtime_detect.py                              the first camera
    python realtime_detect.py --source 1                   another camera
    python realtime_detect.py --source film.mp4            a video file
    python realtime_detect.py --source me.jpg              an image
    python realtime_detect.py --source film.mp4 --save annotated.mp4

Press q or Esc, or close the window, to quit.
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter hides the program's own words

import cv2

from expressions import UserError, overlay
from expressions.classifier import Classifier
from expressions.faces import Face, FaceDetector, crop
from expressions.video import Recording, Source, Window, has_display

HERE = Path(__file__).resolve().parent
QUIT_KEYS = ("q", "Q", "\x1b")  # \x1b is Esc


def main(arguments=None):
    options = parse(arguments)
    try:
        detect(options)
    except (UserError, OSError) as error:
        print(f"realtime_detect.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while loading; the loop has its own way to stop
        return 130
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", default="0", help="index of a camera, or path of a video or image (default: 0)")
    add(
        "--model",
        type=Path,
        default=HERE / "models" / "emotion_model.h5",
        help="a model from train.py (default: models/emotion_model.h5)",
    )
    add("--cascade", type=Path, default=HERE / "haarcascade_frontalface_default.xml", help="a face detector's file")
    add("--votes", action="store_true", help="label faces as ten people would vote, where the model has learned that")
    add("--save", type=Path, metavar="FILE", help="write the annotated video or image here")
    add("--no-window", action="store_true", help="don't open a window; goes with --save")
    return parser.parse_args(arguments)


def detect(options):
    """Read frames, find and classify the faces, show and save the result, until the source or the user ends it."""
    windowed = not options.no_window and (has_display() or not options.save)  # no screen: fine where there is a file
    if not windowed and not options.save:
        raise UserError("--no-window: goes with --save FILE, else there is nothing to see")
    detector = FaceDetector(options.cascade)
    classifier = Classifier(options.model)
    if options.votes and not classifier.votes:
        raise UserError(f"--votes: {options.model} has not learned from votes; train it with FER+ beside the data set")
    frames = faces_seen = 0
    with ExitStack() as stack:
        source = stack.enter_context(Source(options.source))
        recording = stack.enter_context(Recording(options.save, source)) if options.save else None
        window = stack.enter_context(Window("Expressions: q quits", source.rate)) if windowed else None
        began = last = time.perf_counter()
        rate = 0.0
        try:
            for frame in source:
                gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
                boxes = detector.detect(gray)
                crops = [crop(gray, box) for box in boxes]
                probabilities = classifier.probabilities(crops, mirrored=True, votes=options.votes)  # one call a frame
                faces = [
                    Face(box, classifier.labels[row.argmax()], float(row.max()))
                    for box, row in zip(boxes, probabilities, strict=True)
                ]
                frames, faces_seen = frames + 1, faces_seen + len(faces)

                now = time.perf_counter()
                latest = 1 / max(now - last, 1e-6)
                rate = rate + 0.1 * (latest - rate) if frames > 2 else latest  # smoothed over some ten frames
                last = now
                picture = overlay.draw(frame, faces, "" if source.still else f"{rate:.0f} frames/s")
                if recording:
                    recording.write(picture)
                if window and not keep_on(window, picture, source.still):
                    break
        except KeyboardInterrupt:
            print("\nStopped.")
    speed = "" if source.still else f", {frames / (time.perf_counter() - began):.1f} frames/s"
    saved = f"; saved to {options.save}" if options.save and frames else ""
    print(f"{frames} frames, {faces_seen} faces{speed}{saved}")


def keep_on(window, picture, still):
    """Show the picture, a still one until a key is pressed. Returns whether to go on to the next frame."""
    while True:
        key = window.show(picture)
        if key is None or key in QUIT_KEYS:
            return False
        if not still or key:
            return True
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
