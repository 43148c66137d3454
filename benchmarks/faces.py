"""Count the faces that the tracker and OpenCV's plain search find in the same moving images, and time both.

    python benchmarks/faces.py --data data/fer2013         faces of FER2013's validation split
    python benchmarks/faces.py                             drawn faces
    python benchmarks/faces.py --detector yunet            the tracker with the other face detector

Videos are made in memory: faces that move, grow, shrink and tilt over textures, and the portrait that Matplotlib
carries. Plain is detectMultiScale(1.1, 5, minSize=(30, 30)) in every frame, shrunk as the tracker's. Both run in one
thread and in turn. A face counts as found where a box overlaps with it by at least 0.4 (intersection over union); boxes
that overlap with none are false. Easy faces are those that the plain search finds in a still, 120 pixels wide, before
gray.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from expressions import EMOTIONS, UserError
from expressions.inference.detector import MAX_FRAME_SIDE, HaarDetector, load_detector
from expressions.inference.tracker import Tracker
from expressions.training import dataset, synthetic

RATE, FRAMES, APPEARS = 30, 60, 20  # frames a second, a video, before a new face
SIZES = (640, 480), (1280, 720)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of FER2013; without it faces are drawn")
    parser.add_argument("--detector", default="haar", help="as of realtime_detect.py")
    parser.add_argument("--videos", type=int, default=3, help="of each kind (default: 3)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)
    try:
        images, tracked = face_images(options.data), load_detector(options.detector)
    except UserError as error:
        parser.error(str(error))
    random, detector = np.random.default_rng(0), HaarDetector()
    easy = np.array([is_easy(detector, image) for image in images])
    print(f"{easy.sum()} of {len(easy)} faces are easy")
    for size in SIZES:
        for count in (1, 3, 7):
            cells = [random.choice(len(images), count, replace=False) for _ in range(options.videos)]
            videos = [face_video(images[cell], size, random) for cell in cells]
            compare(f"{count} faces, {size[0]}x{size[1]}", tracked, detector, videos, [easy[cell] for cell in cells])
        videos = [portrait_video(detector, size, random) for _ in range(options.videos)]
        compare(f"portrait, {size[0]}x{size[1]}", tracked, detector, videos, [[True]] * options.videos)
    waits = []
    for _ in range(10 * options.videos):
        (face,) = images[random.choice(np.flatnonzero(easy), 1)]
        waits.append(frames_until_seen(tracked, face_video(face[None], SIZES[0], random, appears=APPEARS)))
    seen = [wait for wait in waits if wait is not None]
    print(
        f"new easy face: seen within {FRAMES - APPEARS} frames in {len(seen)} of {len(waits)} videos; "
        f"after {statistics.median(seen):.0f} frames (median), {np.percentile(seen, 90):.0f} (nine tenths)"
    )


def face_images(folder, count=200):
    """Images of faces, uint8 (count, side, side)."""
    random = np.random.default_rng(1)
    if folder is None:
        return np.stack([synthetic.draw_face(EMOTIONS[index % 7], random, 160) for index in range(count)])
    images = dataset.load(folder, training=False).splits["validation"].images
    return images[random.choice(len(images), count, replace=False)].reshape(count, *images.shape[1:3])


def face_video(images, size, random, appears=0):
    """A video of faces: yields gray uint8 (height, width), and the true boxes, (faces, 4), x, y, width, height.

    images: uint8 (faces, side, side). appears: the number of frames before the faces come into the image.
    """
    (width, height), count, side = size, len(images), images.shape[1]
    scene = texture(random, (width + 40, height + 40))
    columns = int(np.ceil(np.sqrt(count * width / height)))
    cell_width, cell_height = width / columns, height / np.ceil(count / columns)
    face_size = [min(random.uniform(0.12, 0.4) * height, 0.75 * min(cell_width, cell_height)) for _ in images]
    frequencies, phases = random.uniform(0.15, 0.5, (count, 4)), random.uniform(0, 2 * np.pi, (count, 4))
    tilts = random.uniform(0, 8, count)  # degrees
    edge = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / (0.06 * side)
    mask = np.clip(np.minimum(edge[:, None], edge), 0, 1).astype(np.float32)  # faces melt into the scene at their edges
    for index in range(FRAMES):
        wave = np.sin(2 * np.pi * frequencies * index / RATE + phases)
        left, top = (round(20 + 20 * np.sin(rate * index / RATE)) for rate in (0.7, 0.5))  # the camera sways
        frame = scene[top : top + height, left : left + width].astype(np.float32)
        boxes = []
        for number, (image, (grow, across, down, tilt)) in enumerate(zip(images, wave, strict=True)):
            if index < appears:
                continue
            wide = face_size[number] * (1 + 0.2 * grow)
            row, column = divmod(number, columns)
            x = (column + 0.5) * cell_width + across * (cell_width - wide) / 2
            y = (row + 0.5) * cell_height + down * (cell_height - wide) / 2
            place = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), tilts[number] * tilt, wide / side)
            place[:, 2] += np.array([x, y]) - side / 2
            paste(frame, image, mask, place)
            boxes.append((x - wide / 2, y - wide / 2, wide, wide))
        yield noisy(frame), np.array(boxes).reshape(-1, 4)


def portrait_video(detector, size, random):
    """A video of the portrait that Matplotlib carries, moved and scaled; yields as `face_video` does."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)
    face = np.array(max(plain(detector, image), key=lambda box: box[2]), float)
    (width, height), phases = size, random.uniform(0, 2 * np.pi, 3)
    scene = texture(random, size)
    for index in range(FRAMES):
        grow, across, down = np.sin(2 * np.pi * 0.3 * index / RATE + phases)
        scale = height / image.shape[0] * (0.8 + 0.2 * grow)
        spare = np.array([width, height]) - scale * np.array(image.shape[::-1])
        corner = spare * (0.5 + 0.5 * np.array([across, down]))
        frame = scene.astype(np.float32)
        place = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
        paste(frame, image, np.ones(image.shape, np.float32), place)
        yield noisy(frame), np.array([[*(face[:2] * scale + corner), *(face[2:] * scale)]])


def paste(frame, image, mask, place):
    """Blend an image into a frame, float32, where the affine map `place` (2, 3) takes it."""
    # shrinks without turning into a sieve: the image is first brought near its size
    scale = float(np.hypot(place[0, 0], place[1, 0]))
    if scale < 1:
        image, mask = (
            cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for part in (image, mask)
        )
        place = np.hstack([place[:, :2] / scale, place[:, 2:]])
    size = frame.shape[1::-1]
    part = cv2.warpAffine(image, place, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    share = cv2.warpAffine(mask, place, size)
    frame += share * (part - frame)


def texture(random, size):
    """A scene without faces, uint8: clouds of several sizes, and rectangles as of furniture and windows."""
    width, height = size
    scene = np.full((height, width), 128.0)
    for grain in (4, 8, 16, 32, 64, 128):
        noise = random.normal(0, 1, (height // grain + 2, width // grain + 2))
        scene += 5 * np.sqrt(grain / 8) * cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    for _ in range(40):
        x, y, wide, high = random.uniform((0, 0, 0.02, 0.02), (1, 1, 0.3, 0.3)) * (width, height, width, height)
        scene[int(y) : int(y + high), int(x) : int(x + wide)] += random.uniform(-60, 60)
    return np.clip(scene, 0, 255).astype(np.uint8)


def noisy(frame):
    """A frame as a camera's sensor gives it: uint8, with noise."""
    return np.clip(frame + cv2.randn(np.empty_like(frame), 0, 3), 0, 255).astype(np.uint8)


def plain(detector, gray):
    """The search that most programs do in every frame: boxes."""
    scale = min(1, MAX_FRAME_SIDE / max(gray.shape))
    small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
    found = detector.cascade.detectMultiScale(small, scaleFactor=1.1, minNeighbors=5, minSize=(30, 30))
    return [tuple(box / scale) for box in found]


def is_easy(detector, image):
    still = np.full((240, 240), 128, np.uint8)
    still[60:180, 60:180] = cv2.resize(image, (120, 120), interpolation=cv2.INTER_CUBIC)
    return bool((overlaps([(60, 60, 120, 120)], plain(detector, still)) >= 0.4).any())


def overlaps(truth, boxes):
    """Intersection over union of each of n true boxes with each of m others: (n, m)."""
    truth, boxes = (np.array(part, float).reshape(-1, 4) for part in (truth, boxes))
    low = np.maximum(truth[:, None, :2], boxes[:, :2])
    high = np.minimum((truth[:, :2] + truth[:, 2:])[:, None], boxes[:, :2] + boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    return shared / (truth[:, 2:].prod(axis=1)[:, None] + boxes[:, 2:].prod(axis=1) - shared)


def compare(name, tracked, detector, videos, easy):
    """Search videos with the tracker and plainly; print how many faces each finds, how many false ones, how fast."""
    counts = {"tracker": np.zeros(3), "plain": np.zeros(3)}  # faces, easy faces, false
    seconds = {"tracker": [], "plain": []}
    faces, easy_faces, frames = 0, 0, 0
    for frames_of_video, is_easy in zip(videos, easy, strict=True):
        tracker = Tracker(tracked)
        searches = {
            "tracker": lambda gray, time, tracker=tracker: [track.box for track in tracker.update(gray, time)],
            "plain": lambda gray, _: plain(detector, gray),
        }
        for index, (gray, truth) in enumerate(frames_of_video):
            frames, faces, easy_faces = frames + 1, faces + len(truth), easy_faces + sum(is_easy)
            for way, search in searches.items():
                began = time.perf_counter()
                boxes = search(gray, index / RATE)
                seconds[way].append(time.perf_counter() - began)
                fits = overlaps(truth, boxes) >= 0.4
                found = fits.any(axis=1)
                counts[way] += found.sum(), found[is_easy].sum(), (~fits.any(axis=0)).sum()
    print(name)
    for way, (found, easy_found, false) in counts.items():
        milliseconds = np.array(seconds[way]) * 1e3
        print(
            f"  {way:8}{found / faces:6.1%} of faces, {easy_found / max(1, easy_faces):6.1%} of easy ones, "
            f"{false / frames:.2f} false a frame; {np.median(milliseconds):5.1f} ms a frame (median), "
            f"{np.percentile(milliseconds, 95):5.1f} (95th percentile)",
            flush=True,
        )


def frames_until_seen(tracked, frames):
    """How many frames after it appears a face is seen; 0 in the first one; None if it is not."""
    tracker = Tracker(tracked)
    for index, (gray, truth) in enumerate(frames):
        boxes = [track.box for track in tracker.update(gray, index / RATE)]
        if (overlaps(truth, boxes) >= 0.4).any():
            return index - APPEARS
    return None


if __name__ == "__main__":
    main()
