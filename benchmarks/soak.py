"""Leave the live program alone with a bad camera for long: does it go on, does anything grow or stay behind?

    python benchmarks/soak.py                    half an hour
    python benchmarks/soak.py --minutes 3        at least 3

A server on this computer, a program of its own, streams drawn faces as MJPEG, and every few seconds does something
wrong (FAULTS). The live program's own loop labels the frames and writes table and video. The first minute warms up;
after it and at the end, threads and open files are counted with the source closed. Prints a line a minute. Exit status
1 when memory has grown by more than MOST_GROWTH, or threads or files are left behind. Linux only.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import realtime_detect
from expressions import UserError
from expressions.inference.outputs import Outputs
from expressions.inference.recognizer import ExpressionRecognizer
from expressions.inference.sources import Source
from expressions.training import synthetic

RATE = 20  # frames per second of the server
SIZES = ((640, 480), (320, 240))
FAULTS = {  # what the server does wrong, and how often, relative to the rest
    "broken frame": 3,  # half of its bytes are noise
    "garbage": 2,  # noise instead of a frame
    "blank frames": 2,  # ten of them, black or white
    "other size": 2,  # from here on
    "stall": 2,  # 3 seconds, for longer than the program waits until it opens the stream again
    "disconnect": 2,
    "restart": 2,  # of the server, away for 1.5 seconds
    "gone": 1,  # for 8 seconds, which is too long: the program ends with its line, and is started again
}
MOST_GROWTH = 10  # megabytes
BITS = 16  # of the milliseconds that every frame carries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30, help="how long (default: 30; at least 3)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # be the server, and keep account in this file
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    if not Path("/proc/self/task").is_dir():
        parser.error("needs Linux, which tells in /proc what a program holds")
    if options.minutes < 3:
        parser.error(f"--minutes {options.minutes}: at least 3, of which the first warms up")
    with tempfile.TemporaryDirectory() as folder:
        account = Path(folder) / "faults.json"
        server = subprocess.Popen([sys.executable, __file__, "--serve", account], stdout=subprocess.PIPE, text=True)
        try:
            return soak(f"http://127.0.0.1:{server.stdout.readline().strip()}/camera", folder, account, options.minutes)
        finally:
            server.kill()
            server.wait()


def soak(address, folder, account, minutes):
    """Watch the stream at `address` for so many minutes; returns the exit status."""
    save = Path(folder) / "annotated.mp4"
    files = [f"--{suffix}={folder}/seen.{suffix}" for suffix in ("csv", "jsonl")]
    options = realtime_detect.parse(["--source", address, "--save", str(save), *files, "--overwrite", "--no-window"])
    recognizer, meter, outputs = ExpressionRecognizer(), Meter(account), Outputs(options, [address])
    with outputs.open(recognizer.labels):
        for end in (1, minutes):
            meter.end = meter.began + 60 * end
            while time.monotonic() < meter.end:
                try:
                    with Source(address) as source:
                        realtime_detect.label_source(source, recognizer, outputs, meter)
                except UserError as error:
                    if "lost, and not back" not in str(error) and "can't be opened" not in str(error):
                        raise
                    meter.lost += "not back" in str(error)
                    time.sleep(0.5)
            meter.count_source()
            if end == 1:
                before = left_open()
        after = left_open(before)
    with Source(save) as video:  # the last one, whole
        frames = len(list(video))
    first, last = meter.minutes[1], meter.minutes[-1]
    growth = last.memory - first.memory
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(json.loads(account.read_text()).items()))
    print(f"{meter.frames} frames; faults: {kinds}")
    print(f"{meter.skipped} broken frames skipped, {meter.dropped} dropped for newer ones, {meter.lost} times given up")
    print(f"memory {first.memory:.1f} MB after the first minute, {last.memory:.1f} at the end")
    print(f"median latency {first.latency:.1f} ms in the first minute after that, {last.latency:.1f} in the last")
    print(f"threads {before[0]} before, {after[0]} after; open files {before[1]} and {after[1]}")
    print(f"the last video has {frames} frames; the table {(Path(folder) / 'seen.csv').stat().st_size / 1e6:.1f} MB")
    wrong = [f"memory grew by {growth:.1f} MB"] if growth > MOST_GROWTH else []
    wrong += [
        f"{name} are left behind" for name, a, b in zip(("threads", "files"), before, after, strict=True) if b > a
    ]
    print("WRONG: " + ", ".join(wrong) if wrong else "All is well.")
    return 1 if wrong else 0


def left_open(goal=(0, 0)):
    """How many threads and open files the program has; waits some seconds until they are no more than `goal`, for a
    thread that is stuck in a read ends after it."""
    until = time.monotonic() + 10
    while True:
        counts = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        if counts <= goal or time.monotonic() > until:
            return counts
        time.sleep(0.1)


class Minute:
    """What was measured in one. memory: megabytes, the median. latency: milliseconds, the median."""

    def __init__(self, memory, latency):
        self.memory, self.latency = statistics.median(memory), statistics.median(latency)


class Meter:
    """Stands in the place of the window, and so is shown every frame. account: the server's file of faults."""

    def __init__(self, account):
        self.account, self.began, self.end, self.source = account, time.monotonic(), 0.0, None
        self.frames = self.skipped = self.dropped = self.lost = 0
        self.minutes, self.memory, self.latency = [], [], []

    def show(self, image, faces, source):
        """Take a labelled frame. Returns whether to go on."""
        if source is not self.source:
            self.count_source()
            self.source = source
        now = time.monotonic()
        self.frames += 1
        self.latency.append((int(1000 * now) - read_stamp(image)) % 2**BITS)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        if now - self.began > 60 * (len(self.minutes) + 1):
            self.minutes.append(Minute(self.memory, self.latency))
            minute, faults = self.minutes[-1], sum(json.loads(self.account.read_text()).values())
            print(
                f"minute {len(self.minutes)}: {len(self.latency)} frames, {len(faces)} faces in the last, "
                f"latency {minute.latency:.1f} ms, memory {minute.memory:.1f} MB, {faults} faults so far",
                flush=True,
            )
            self.memory, self.latency = [], []
        return now < self.end

    def count_source(self):
        if self.source:
            self.skipped, self.dropped = self.skipped + self.source.skipped, self.dropped + self.source.reader.dropped
            self.source = None


def serve(account):
    """Be a bad camera: print the port, then stream to one client at a time. account: where faults are counted."""
    choose, faults = random.Random(0), Counter()
    account.write_text("{}")
    faces = [
        synthetic.draw_face(label, np.random.default_rng(index), 160) for index, label in enumerate(("happy", "sad"))
    ]
    listener = socket.create_server(("127.0.0.1", 0))
    port, size, number = listener.getsockname()[1], SIZES[0], 0
    print(port, flush=True)
    next_fault, blank, level = time.monotonic() + 10, 0, 0
    while True:
        client, _ = listener.accept()
        with client:
            try:
                client.recv(2**16)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
                while True:
                    fault = None
                    if time.monotonic() > next_fault:
                        [fault] = choose.choices(list(FAULTS), FAULTS.values())
                        faults[fault] += 1
                        partial = account.with_suffix(".partial")
                        partial.write_text(json.dumps(faults))
                        os.replace(partial, account)
                        next_fault = time.monotonic() + choose.uniform(3, 9)
                    if fault == "stall":
                        time.sleep(3)
                    elif fault == "other size":
                        size = SIZES[size == SIZES[0]]
                    elif fault == "blank frames":
                        blank, level = 10, choose.choice((0, 255))
                    elif fault == "garbage":
                        client.sendall(choose.randbytes(20_000))
                    elif fault in ("disconnect", "restart", "gone"):
                        break
                    number, blank = number + 1, max(0, blank - 1)
                    image = np.full((480, 640, 3), level, np.uint8) if blank else draw(faces, number)
                    data = bytearray(cv2.imencode(".jpg", cv2.resize(stamp(image), size))[1])
                    if fault == "broken frame":
                        data[len(data) // 2 :] = choose.randbytes(len(data) - len(data) // 2)
                    client.sendall(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data + b"\r\n")
                    time.sleep(1 / RATE)
            except OSError:  # the client has left
                continue
        if fault != "disconnect":
            listener.close()
            time.sleep(1.5 if fault == "restart" else 8)
            listener = socket.create_server(("127.0.0.1", port))


def draw(faces, number):
    """The frame of that number: two faces that go to and fro."""
    image = np.full((480, 640, 3), 128, np.uint8)
    for index, face in enumerate(faces):
        left, top = 60 + 320 * index + round(50 * np.sin(number / 30)), 150 + round(80 * np.sin(number / 50 + index))
        image[top : top + 160, left : left + 160] = face[..., None]
    return image


def stamp(image):
    """Write the time, in milliseconds, over the top of an image, in place: a block a bit. Returns the image."""
    milliseconds, (height, width) = int(1000 * time.monotonic()), image.shape[:2]
    for bit in range(BITS):
        image[: height // 16, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (milliseconds >> bit & 1)
    return image


def read_stamp(image):
    height, width = image.shape[:2]
    return sum(int(image[height // 32, (2 * bit + 1) * width // (2 * BITS), 1] > 127) << bit for bit in range(BITS))


if __name__ == "__main__":
    sys.exit(main())
