"""Time the live detector on one processor core: whole frames, the first one after a start, and what grows with time.

    python benchmarks/live.py                              drawn faces
    python benchmarks/live.py --data data/fer2013          faces of FER2013's validation split
    python benchmarks/live.py --detector yunet             with the other face detector
    python benchmarks/live.py --frames 20000               also a video that long: does memory or time grow?

Videos of moving faces (as in benchmarks/faces.py) are written to a file. A frame's time is that of reading, finding,
following and labelling its faces, and drawing them. Where `fer` from the package index is installed, it
sees the same frames, in turn with ours; it reads and draws nothing.
"""

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # Linux; before the libraries start their threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
else:
    print("This system can't be asked for one core: the times are those of all of them.")

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faces import RATE, face_images, face_video

from expressions import UserError
from expressions.inference.overlay import Annotator
from expressions.inference.recognizer import ExpressionRecognizer
from expressions.inference.sources import Source

STARTS, RIVAL_EVERY = 5, 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of FER2013; without it faces are drawn")
    parser.add_argument("--videos", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--detector", default="haar", help="as of realtime_detect.py")
    parser.add_argument("--frames", type=int, default=0, help="of a long video (default: none)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        images, recognizer = face_images(options.data), ExpressionRecognizer(detector=options.detector)
    except UserError as error:
        parser.error(str(error))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.avi"
        for size in ((640, 480), (1280, 720)):
            for count in (1, 7):
                ours, theirs, seen = [], [], []
                for _ in range(options.videos):
                    write(
                        face_video(images[random.choice(len(images), count, replace=False)], size, random), path, size
                    )
                    watch(path, recognizer, ours, seen, theirs)
                print(
                    f"{size[0]}x{size[1]}, {count} faces ({statistics.mean(seen):.1f} seen): {quantiles(ours)}"
                    + (
                        f"; fer {quantiles(theirs)}, {np.median(theirs) / np.median(ours):.1f} times ours"
                        if theirs
                        else ""
                    )
                )
        write(face_video(images[:1], (640, 480), random), path, (640, 480))
        starts = [seconds_to_first_row(path, Path(folder) / f"{index}.csv") for index in range(STARTS)]
        print(f"first labelled frame {statistics.median(starts):.2f} s after the command (median of {STARTS})")
        if options.frames:
            watch_long(path, recognizer, options.frames)


def write(frames, path, size):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, size)
    for gray, _ in frames:
        writer.write(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    writer.release()


def watch(path, recognizer, ours, seen, theirs):
    """Add the milliseconds of each frame to `ours`, the number of its faces to `seen`, and fer's to `theirs`."""
    rival = load_rival()
    recognizer.reset()
    annotator = Annotator(recognizer.labels)
    with Source(path) as source:
        frames, number = iter(source), 0
        while True:
            began = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                return
            faces = recognizer.recognize(frame.image, frame.seconds)
            annotator.draw(frame.image, faces)
            ours.append(1000 * (time.perf_counter() - began))
            seen.append(len(faces))
            if rival and number % RIVAL_EVERY == 0:
                began = time.perf_counter()
                rival.detect_emotions(frame.image)
                theirs.append(1000 * (time.perf_counter() - began))
            number += 1


@functools.cache
def load_rival():
    try:
        from fer.fer import FER
    except ImportError:
        return None
    rival = FER()
    rival.detect_emotions(np.zeros((480, 640, 3), np.uint8))  # the first call takes longer
    return rival


def quantiles(milliseconds):
    middle, slow, slowest = np.percentile(milliseconds, (50, 95, 100))
    spread = f"mean {statistics.mean(milliseconds):.1f}, 95 % within {slow:.1f}, all within {slowest:.1f}"
    return f"{middle:.1f} ms a frame (median of {len(milliseconds)}; {spread})"


def seconds_to_first_row(video, table):
    """From the start of the program to the first labelled face in its table."""
    command = [sys.executable, ROOT / "realtime_detect.py", "--source", video, "--no-window", "--csv", table]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (table.exists() and table.read_bytes().count(b"\n") > 1):
            if process.poll() is not None:
                sys.exit("no face was found in the video")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def watch_long(path, recognizer, frames):
    """Label the frames of a video over and over; print time and memory of the first and the last thousand."""
    with Source(path) as source:
        images = [frame.image for frame in source]
    recognizer.reset()
    annotator, milliseconds, memory = Annotator(recognizer.labels), [], []
    for number in range(frames):
        began = time.perf_counter()
        image = images[number % len(images)]
        annotator.draw(image, recognizer.recognize(image, number / RATE))
        milliseconds.append(1000 * (time.perf_counter() - began))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # kilobytes on Linux
    for name, part in (("first", slice(1000)), ("last", slice(-1000, None))):
        print(f"{name} 1000 of {frames} frames: {quantiles(milliseconds[part])}; {memory[part][-1]:.0f} MB at most")


if __name__ == "__main__":
    main()
