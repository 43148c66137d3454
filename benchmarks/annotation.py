"""Time the annotation of videos by one worker and by two, against decoding alone, and what handing out tasks costs.

    python benchmarks/annotation.py                        videos of drawn faces
    python benchmarks/annotation.py --data data/fer2013    videos of FER2013's validation faces
    python benchmarks/annotation.py --tasks 100000         also so many tasks that do nothing: what does each cost?

Whole commands are timed, starts included, in turn, on two processor cores. Ray takes part where it is installed.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT / "benchmarks")  # for Ray's workers
if hasattr(os, "sched_setaffinity"):  # Linux; before the libraries start their threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

import cv2
import numpy as np
from faces import RATE, face_images, face_video

from expressions import UserError
from expressions.inference import workers
from expressions.inference.batch import Index
from expressions.inference.jobs import Done
from expressions.inference.sources import Source

SIZE, VIDEOS, ROUNDS = (640, 480), 8, 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of FER2013; without it faces are drawn")
    parser.add_argument("--copies", type=int, default=10, help="of each video, one after the other (default: 10)")
    parser.add_argument("--tasks", type=int, default=0, help="that do nothing (default: none)")
    options = parser.parse_args()
    try:
        images = face_images(options.data)
    except UserError as error:
        parser.error(str(error))
    engines = {"1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"]}
    if has_ray():
        engines["Ray, 2 processors"] = ["--ray"]
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(images, Path(folder) / "videos", options.copies)
        rates = {"decoding alone, 1 core": []} | {name: [] for name in engines}
        for _ in range(ROUNDS):
            rates["decoding alone, 1 core"].append(decode(videos))
            for name, arguments in engines.items():
                rates[name].append(annotate(videos, arguments))
        one = statistics.median(rates["1 worker"])
        for name, measured in rates.items():
            middle, low, high = statistics.median(measured), min(measured), max(measured)
            print(f"{name}: {middle:.1f} frames/s ({low:.1f} to {high:.1f}), {middle / one:.2f} times 1 worker")
        print(f"memory of a worker: {max(memory):.0f} MB at most")
    if options.tasks:
        hand_out(options.tasks, "2 processes", workers.processes(2))
        if has_ray():
            hand_out(options.tasks, "Ray", workers.cluster("", ROOT))


def has_ray():
    return subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode == 0


def make_videos(images, folder, copies):
    """Write videos of one to three moving faces, each several times in one file, as H.264 where ffmpeg is there."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(VIDEOS):
        path = folder / f"{number}.avi"
        chosen = images[random.choice(len(images), 1 + number % 3, replace=False)]
        frames = [cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR) for gray, _ in face_video(chosen, SIZE, random)]
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, SIZE)
        for frame in frames * copies:
            writer.write(frame)
        writer.release()
        if shutil.which("ffmpeg"):
            encode = ["ffmpeg", "-v", "error", "-i", path, "-c:v", "libx264", "-pix_fmt", "yuv420p"]
            subprocess.run([*encode, path.with_suffix(".mp4")], check=True)
            path.unlink()
    return folder


def decode(videos):
    """Frames a second that one core only reads."""
    began, frames = time.perf_counter(), 0
    for path in videos.iterdir():
        with Source(path) as source:
            frames += sum(1 for _ in source)
    return frames / (time.perf_counter() - began)


memory = []  # of workers, in megabytes


def annotate(videos, arguments):
    """Frames a second of a whole command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "realtime_detect.py", "--source", videos, "--csv", folder, *arguments]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            while process.poll() is None:
                time.sleep(0.1)
                memory.extend(peaks(process.pid))
            seconds = time.perf_counter() - began
            return int(re.search("([0-9]+) frames,", process.stdout.read())[1]) / seconds


def peaks(parent):
    """The largest memory that each of the processes that one has started had so far (Linux)."""
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                status = Path(f"/proc/{child}/status").read_text()
                command = Path(f"/proc/{child}/cmdline").read_text()
            except OSError:  # has just ended
                continue
            found = re.search("VmHWM:\\s+([0-9]+)", status)
            if found and "spawn_main" in command:
                yield int(found[1]) / 1024


def resident():
    """The memory that this process has now, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def nothing(number):
    return Done(0.0, 1, 1, 1, 0, 0.0)


def hand_out(count, name, pool):
    """Time tasks that do nothing, each entered into an index, and the memory that this takes."""
    with tempfile.TemporaryDirectory() as folder, pool as pool, Index(folder, "nothing") as index:
        list(workers.run_tasks(pool, nothing, range(100), deque()))  # all are at work
        began, before = time.perf_counter(), resident()
        due = (number for number in range(count) if index.needs_processing(f"{ROOT}/{number}.mp4", f"{number}.csv"))
        for number, done in workers.run_tasks(pool, nothing, due, deque()):
            index.add(__file__, f"{number}.csv", done)
        passed, grown = time.perf_counter() - began, resident() - before
        size = index.path.stat().st_size / count
    each = f"{1e3 * passed / count:.2f} ms, {grown / count:.0f} bytes of memory and {size:.0f} of the index each"
    print(f"{count} tasks that do nothing, {name}: {each}")


if __name__ == "__main__":
    main()
