"""Make the animated picture of the README: draw people whose expressions change, label them, and convert the video.

    python train.py                                         without a data set in data/: a model of drawn faces
    python benchmarks/demo.py models/synthetic_model.h5     needs the command ffmpeg

Writes docs/faces.webm, the people alone, and docs/demo.webp.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import realtime_detect
from expressions.training.synthetic import draw_face

RATE, HELD, CHANGING = 20, 28, 6  # frames a second; frames for which an expression stays, and in which it changes
WIDTH, HEIGHT, FACE = 720, 288, 150  # pixels
PEOPLE = {58: ("neutral", "happy", "surprise"), 64: ("sad", "neutral", "angry"), 7: ("happy", "fear", "disgust")}
FRAMES = 3 * (HELD + CHANGING)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    model, video = sys.argv[1], ROOT / "docs" / "faces.webm"
    with av.open(video, "w") as container:
        stream = container.add_stream("libvpx", rate=RATE, options={"crf": "20", "b": "1M"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in draw_scenes():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray")))
        container.mux(stream.encode())
    with tempfile.TemporaryDirectory() as folder:
        annotated = Path(folder) / "demo.webm"
        words = ["--source", video, "--model", model, "--no-window", "--bars", "--save", annotated]
        if status := realtime_detect.main(list(map(str, words))):
            sys.exit(status)
        convert = ["ffmpeg", "-v", "error", "-y", "-i", annotated, "-vf", "fps=10", "-loop", "0", "-quality", "75"]
        subprocess.run([*convert, ROOT / "docs" / "demo.webp"], check=True)


def draw_scenes():
    """Yield the frames of the video, gray uint8 (HEIGHT, WIDTH). The last one leads over to the first."""
    noise, background = np.random.default_rng(0), np.linspace(150, 95, HEIGHT, dtype=np.float32)[:, None]
    middle = (FACE - 1) / 2
    distance = np.hypot(*(np.mgrid[:FACE, :FACE] - middle)) / middle
    mask = np.clip(6 * (1.05 - distance), 0, 1).astype(np.float32)  # a face melts into the scene at its edge
    for frame in range(FRAMES):
        scene, time = np.tile(background, WIDTH), 2 * np.pi * frame / FRAMES
        for number, (seed, expressions) in enumerate(PEOPLE.items()):
            place = cv2.getRotationMatrix2D((middle, middle), 3 * np.sin(time + number), 1)
            place[0, 2] += WIDTH * (2 * number + 1) / 6 + 14 * np.sin(time + 2 * number) - middle
            place[1, 2] += HEIGHT * 0.54 + 8 * np.sin(2 * time + number) - middle
            share = cv2.warpAffine(mask, place, (WIDTH, HEIGHT))
            scene += share * (cv2.warpAffine(draw_person(seed, expressions, frame), place, (WIDTH, HEIGHT)) - scene)
        yield np.clip(scene + noise.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)


def draw_person(seed, expressions, frame):
    """Draw the person of a seed in a frame, float32 (FACE, FACE); each expression fades into the next one."""
    index, within = divmod(frame, HELD + CHANGING)
    now, then = (
        draw_face(expressions[number % len(expressions)], np.random.default_rng(seed), FACE).astype(np.float32)
        for number in (index, index + 1)
    )
    return now + max(0, within - HELD) / CHANGING * (then - now)


if __name__ == "__main__":
    main()
