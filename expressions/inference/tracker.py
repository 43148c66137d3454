"""Find faces in gray frames with a Haar cascade, follow each from frame to frame, and steady what is said of it.

A search of a whole frame takes the time of many. So each frame is searched closely around the faces that are known, and
one slice of it coarsely for new ones; eight slices are a whole frame. What a slice finds is looked at closely, and is a
face once the cascade has been sure of it over some frames.

A film is followed in parts, each by a tracker of its own that knows nothing of the part before, so that many computers
can share a long one. It begins a little before its part, and faces that both trackers see there are the same person.
"""

import math
import os
from collections import Counter
from itertools import zip_longest
from typing import NamedTuple

import cv2
import numpy as np

from expressions import UNCERTAIN, UserError
from expressions.images import crop
from expressions.inference.types import Box, Face

WORKING_SIDE = 640  # pixels; a larger frame is searched at this size, for the search takes time with every pixel
SMALLEST_FACE = 30  # pixels in the searched frame
WINDOW = 24  # pixels, width of the cascade's window
FRAMING, LOWER = 1.05, 0.04  # FER2013 frames faces this much wider than the cascade, and lower by this share of it

# slices of a frame: how often it is halved, which band of how many; of like cost, and small faces in turn with large
BANDS = ([(0, band, 4) for band in range(4)], [(1, band, 3) for band in range(3)], [(2, 0, 1)])
SLICES = [part for parts in zip_longest(*BANDS) for part in parts if part]

CLOSE, REACH, FAR_REACH = 52, 1.5, 2.2  # pixels of a face in a close look; widths of what is looked at
PATCH, ALIKE = 24, 0.6  # pixels of a face as it is remembered; least correlation with one that is the same

# the weight of a sighting (see `together`): about 4 for faces, 1 for what only resembles one
SURE = 2.0  # mean of both views, for a face in a single frame
GAIN = 0.3  # of a sighting in the running mean over frames
BELIEVED, DOUBTED, DROPPED = 2.5, 0.6, 0.25  # running means: shown from here, no longer shown, forgotten
LIFE = 1.5  # seconds that a face is remembered when the cascade doesn't find it
BLINK = 0.5  # seconds of those in which it is looked for by its looks
NEAR, SPREAD = 0.7, 1.0  # widths that a face may be from where it is expected; more of them for each second unseen
LOOKS = 0.5  # widths from there, worth as much as looking quite unlike
TOUCH = 0.1  # share by which two faces overlap that may hide one another
OTHER_SCENE, PAUSE = 30, 0.5  # mean difference in gray levels, and seconds, from one frame to the next

STEADY = np.array([0.04, 0.04, 0.12])  # seconds over which the drawn place and size are smoothed

PART, OVERLAP = 60, 2  # seconds of a film that one tracker follows, and that it begins earlier
SAME_PLACE = 0.5  # intersection over union of the boxes that two trackers give to one face

MEMORY = 0.3  # seconds, time constant of the smoothing of probabilities
MARGIN = 0.1  # a label changes once another one leads by this much
UNSURE = 0.35  # probability below which a face is called uncertain
JUDGED = 3  # faces a frame whose expression is read anew; of more, in turn, so that a crowd doesn't make it late


class Sighting(NamedTuple):
    """Where a face is, in pixels of the searched frame: its centre and width; and the cascade's weight."""

    x: float
    y: float
    size: float
    weight: float = 0.0


class FaceDetector:
    """Finds frontal faces (Viola and Jones 2001, doi:10.1109/CVPR.2001.990517) with the OpenCV cascade at `path`.

    Raises UserError when the file is missing or no cascade, or this OpenCV has no cascade classifier.
    """

    def __init__(self, path):
        if not hasattr(cv2, "CascadeClassifier"):
            raise UserError(f"OpenCV {cv2.__version__} has no CascadeClassifier; run: pip install 'opencv-python<5'")
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such cascade file; it comes with this project, get it from there")
        try:
            self.cascade = cv2.CascadeClassifier(os.fsencode(path))
        except (cv2.error, SystemError):  # OpenCV 4 raises on a file that is no XML, or returns an empty cascade
            self.cascade = None
        if self.cascade is None or self.cascade.empty():
            raise UserError(f"{path}: not a Haar cascade that OpenCV can read; get the project's own file again")

    def search(self, gray):
        """Search all of a frame that is at most WORKING_SIDE wide and high; returns Sightings of what may be faces,
        from left to right."""
        rough = self.cascade.detectMultiScale(gray, 1.1, minNeighbors=3, minSize=(SMALLEST_FACE, SMALLEST_FACE))
        return sorted(merged([face for box in rough for face in self.look_twice(gray, sighting(box))]))

    def look_twice(self, gray, place):
        """Look closely around a Sighting and at the mirror image; returns Sightings with the mean weight of both."""
        both = [face for mirrored in (False, True) for face in self.look(gray, place, mirrored=mirrored)]
        return merged(both, lambda weights: sum(weights) / 2)

    def look(self, gray, place, reach=REACH, mirrored=False):
        """Look closely around a Sighting, as far as `reach` times its width; returns Sightings of about its size.

        mirrored: look at the mirror image instead, in which what only resembles a face is seldom found again."""
        part, left, top, scale = around(gray, place, reach, CLOSE)
        smallest, largest = round(CLOSE * 0.8), round(CLOSE * 1.25)
        if min(part.shape) < smallest:
            return []
        if mirrored:
            part = cv2.flip(part, 1)
        boxes, _, weights = self.cascade.detectMultiScale3(
            part, 1.1, minNeighbors=0, minSize=(smallest,) * 2, maxSize=(largest,) * 2, outputRejectLevels=True
        )
        if mirrored:
            boxes = [(part.shape[1] - x - width, y, width, height) for x, y, width, height in boxes]
        found = (sighting(box, left, top, 1 / scale, weight) for box, weight in zip(boxes, weights, strict=True))
        return merged(found, together)

    def glance(self, gray, turn):
        """Search a slice of a frame, the next one each turn, coarsely; returns Sightings of what may be faces."""
        halvings, band, bands = SLICES[turn % len(SLICES)]
        down, right = divmod(turn // len(SLICES) % 4, 2)  # the search skips every other pixel: not the same each time
        found = []
        while min(gray.shape) >> halvings >= WINDOW:
            height, width = (side >> halvings for side in gray.shape)
            picture = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA) if halvings else gray
            left, smallest = band * width // bands + right, max(WINDOW, SMALLEST_FACE >> halvings)
            part = picture[down:, left : (band + 1) * width // bands + 2 * WINDOW]
            boxes = self.cascade.detectMultiScale(
                part, 1.2, minNeighbors=0, minSize=(smallest,) * 2, maxSize=(2 * WINDOW - 1,) * 2
            )
            # sorted, for the cascade's threads find them in an order of their own
            found += sorted(sighting(box, left << halvings, down << halvings, 1 << halvings) for box in boxes)
            if halvings < 2:
                break
            halvings += 1  # the last slice is all that is left: large faces, quickly found
        return found


class Track:
    """A face that is followed. number: its identity, from 1. box: where it is, a Box in pixels of the frame."""

    def __init__(self, number, face, seconds, gray, evidence):
        self.number, self.evidence, self.believed, self.box = number, evidence, evidence >= BELIEVED, None
        self.place = self.drawn = vector(face)  # where it was last seen, and the same smoothed
        self.speed = self.drawn_speed = np.zeros(3)  # a second
        self.seen = self.found = seconds  # last, at all, and by the cascade
        self.patch, self.probabilities, self.label = patch(gray, face), None, None
        self.judged, self.views = None, 0  # when its expression was last read, and how often

    def expected(self, seconds):
        """Where the face is at a time, a Sighting, if it goes on as it moved."""
        x, y, size = self.place + self.speed * (seconds - self.seen)
        return Sighting(x, y, math.exp(size))

    def recall(self, gray, seconds):
        """Look for the face as it last looked, for the cascade misses turned heads. Returns a Sighting or None."""
        place = self.expected(seconds)
        part, left, top, scale = around(gray, place, 2, PATCH)
        if min(part.shape) < PATCH:
            return None
        _, alike, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(part, self.patch, cv2.TM_CCOEFF_NORMED))
        middle = PATCH / 2
        return Sighting((x + middle) / scale + left, (y + middle) / scale + top, place.size) if alike > ALIKE else None

    def move(self, face, seconds):
        """The face was seen there, at a later time."""
        passed, place = max(seconds - self.seen, 1e-3), vector(face)
        self.speed, self.place, self.seen = (place - self.place) / passed * (1, 1, 0.5), place, seconds
        # an alpha-beta filter (Benedict and Bordner 1962) doesn't lag behind a steady movement; behind another one it
        # would, so what is far from where it is expected is smoothed less
        self.drawn = self.drawn + self.drawn_speed * passed
        error = place - self.drawn
        far = np.hypot(*error[:2]) / face.size
        gain = np.maximum(1 - np.exp(-passed / STEADY), np.minimum(1, (10 * far, 10 * far, abs(error[2]) / 0.3)))
        self.drawn = self.drawn + gain * error
        self.drawn_speed = self.drawn_speed + gain**2 / (2 - gain) * error / passed

    def confirm(self, face, seconds, gray):
        """The cascade found the face there."""
        self.move(face, seconds)
        self.found, self.patch = seconds, patch(gray, face)
        self.weigh(face.weight)

    def weigh(self, weight):
        """Take a sighting's weight, 0 for none, as evidence that this is a face."""
        self.evidence += GAIN * (max(0, weight) - self.evidence)
        self.believed = self.evidence >= (DOUBTED if self.believed else BELIEVED)

    def judge(self, probabilities, seconds):
        """Smooth probabilities, float32 (classes,), over time and choose the label with care."""
        if self.probabilities is None:
            self.probabilities, self.judged = probabilities, seconds
        latest = 1 - math.exp((self.judged - seconds) / MEMORY)
        self.probabilities = self.probabilities + np.float32(latest) * (probabilities - self.probabilities)
        self.judged, self.views = seconds, self.views + 1
        probabilities = np.append(self.probabilities, UNSURE)  # to be uncertain is one label more
        best = probabilities.argmax()
        if self.label is None or probabilities[best] - probabilities[self.label] >= MARGIN:
            self.label = best

    def face(self, labels):
        """The Face as it is shown; labels: the classifier's."""
        labels = (*labels, UNCERTAIN)
        # what stands beside a label is its own probability; beside UNCERTAIN, the likeliest one's
        confidence = self.probabilities[self.label] if self.label < len(labels) - 1 else self.probabilities.max()
        return Face(self.box, labels[self.label], float(confidence), self.number, self.probabilities)


class Tracker:
    """Finds faces in the frames of one source, and follows each with its own number, place, and expression.

    detector: a FaceDetector. labels: the classifier's, in order. The same frames give the same faces, whatever the time
    they take.
    """

    def __init__(self, detector, labels):
        self.detector, self.labels = detector, labels
        self.tracks, self.thumbnail, self.shape, self.last, self.turn, self.number = [], None, None, None, 0, 0

    def find(self, gray, seconds):
        """Find the faces in the next frame: gray, uint8 (height, width), at a time that doesn't go back.

        Returns Tracks, those of faces seen in this frame, in the order of their numbers. The first frame, one of
        another scene, and one after a gap of PAUSE are searched as a whole, which takes some ten times as long.
        """
        gray, scale = shrunk(gray)
        tracks = self.tracks
        if self.begins(gray, seconds):
            tracks.clear()
            for face in self.detector.search(gray):
                self.add(face, seconds, gray, max(BELIEVED, face.weight) if face.weight >= SURE else face.weight)
        else:
            found = self.matched(gray, seconds)
            lost = [track for track in tracks if track.seen < seconds]
            for track in lost:
                self.follow(track, gray, seconds, found)
            for face in found:
                if all(overlap(face, other.expected(seconds)) < 0.3 for other in tracks):
                    self.add(face, seconds, gray, GAIN * face.weight)
        height, width = gray.shape
        self.tracks = [
            track
            for track in tracks
            if seconds - track.found <= LIFE
            and track.evidence >= DROPPED
            and 0 <= track.place[0] < width
            and 0 <= track.place[1] < height
        ]
        seen = [track for track in self.tracks if track.believed and track.seen == seconds]
        for track in seen:
            x, y, size = track.drawn
            track.box = framed(Sighting(x, y, math.exp(size)), scale)
        return seen

    def begins(self, gray, seconds):
        """Whether this frame does not go on from the last one."""
        before, shape, last = self.thumbnail, self.shape, self.last
        self.thumbnail, self.last = cv2.resize(gray, (32, 24), interpolation=cv2.INTER_AREA), seconds
        self.shape = gray.shape  # of another one, as when a stream comes back, places would mean something else
        if before is None or shape != gray.shape or not 0 <= seconds - last <= PAUSE:
            return True
        return cv2.absdiff(self.thumbnail, before).mean() > OTHER_SCENE

    def add(self, face, seconds, gray, evidence):
        self.number += 1
        self.tracks.append(Track(self.number, face, seconds, gray, evidence))

    def matched(self, gray, seconds):
        """Look for the known faces and in a slice of the frame; returns Sightings that no track takes for its own."""
        look = self.detector.look
        expected = [track.expected(seconds) for track in self.tracks]
        mirrored = self.turn % 2 == 1  # in every other frame
        found = [face for place in expected for face in look(gray, place, mirrored=mirrored)]
        known = expected + found
        for rough in self.detector.glance(gray, self.turn):
            if not any(max(abs(rough.x - face.x), abs(rough.y - face.y)) < face.size / 2 for face in known):
                known.append(rough)
                found += look(gray, rough)
        self.turn += 1
        found = merged(found)
        pairs = []
        for face in found:
            picture = patch(gray, face)
            for track, place in zip(self.tracks, expected, strict=True):
                far = math.hypot(face.x - place.x, face.y - place.y) / place.size
                if far < NEAR + SPREAD * (seconds - track.seen) and abs(math.log(face.size / place.size)) < 0.4:
                    alike = cv2.matchTemplate(track.patch, picture, cv2.TM_CCOEFF_NORMED)[0, 0]
                    pairs.append((far + LOOKS * (1 - alike), track, face))
        taken = []
        for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
            if track.seen < seconds and face not in taken:
                track.confirm(face, seconds, gray)
                taken.append(face)
        return [face for face in found if face not in taken]

    def follow(self, track, gray, seconds, others):
        """Look for a face that isn't where it was expected: by its looks, then with the cascade farther off."""
        if not track.believed:
            return track.weigh(0)
        others = others + [other.expected(seconds) for other in self.tracks if other.seen == seconds]

        def free(face):
            return all(overlap(face, other) < TOUCH for other in others)

        place = track.expected(seconds)
        track.speed = track.drawn_speed * (1, 1, 0)  # smoother, to go on with unseen
        if not free(place):  # behind another face, whose looks would be taken for its own
            return
        face = track.recall(gray, seconds) if seconds - track.found <= BLINK else None
        if face and free(face):
            return track.move(face, seconds)
        far = [face for face in self.detector.look(gray, place, FAR_REACH) if free(face)]
        if far:
            track.confirm(min(far, key=lambda face: math.hypot(face.x - place.x, face.y - place.y)), seconds, gray)

    def due(self, tracks):
        """Those of the `tracks` that `find` returned whose expressions are to be read in this frame: new ones, and of
        the others the JUDGED that have waited longest."""
        new = [track for track in tracks if not track.views]
        known = (track for track in tracks if track.views)
        return new + sorted(known, key=lambda track: (track.judged, track.views))[:JUDGED]

    def judge(self, tracks, probabilities, seconds):
        """Tell the expressions of the `tracks` that `find` returned, from what was read in those that were `due`.

        probabilities: float32 (due, classes), smoothed here with a time constant of MEMORY seconds. Returns a Face for
        each track.
        """
        for track, row in zip(self.due(tracks), probabilities, strict=True):
            track.judge(row, seconds)
        return [track.face(self.labels) for track in tracks]


class Numbering:
    """Numbers people in the order in which they are first shown, from 1, and gives those that one tracker after another
    follows the same number throughout."""

    def __init__(self):
        self.numbers, self.shown, self.met = {}, 0, Counter()  # numbers: of people, by the tracker's own

    def meet(self, faces, others):
        """Take in what the tracker, and the one that will come after it, see in the same frame."""
        for face in faces:
            for other in others:
                if overlap(sighting(face.box), sighting(other.box)) > SAME_PLACE:
                    self.met[face.track_id, other.track_id] += 1

    def change(self):
        """Go on with the tracker that comes after: who was met most often in the same place is the same person."""
        numbers = {}
        for (number, other), _ in self.met.most_common():
            person = self.numbers.get(number)
            if person and other not in numbers and person not in numbers.values():
                numbers[other] = person
        self.numbers, self.met = numbers, Counter()

    def name(self, faces):
        """The Faces with the numbers of people for the tracker's."""
        for face in faces:
            if face.track_id not in self.numbers:
                self.shown += 1
                self.numbers[face.track_id] = self.shown
        return [face._replace(track_id=self.numbers[face.track_id]) for face in faces]


def shrunk(gray):
    """A frame no side of which is longer than WORKING_SIDE, and its scale, 1 at most."""
    scale = min(1, WORKING_SIDE / max(gray.shape))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in reversed(gray.shape)]
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return gray, scale


def sighting(box, left=0, top=0, scale=1, weight=0):
    """A Sighting from the cascade's box in a part of a frame that begins at (left, top) and is shrunk by `scale`."""
    x, y, width, height = (float(value) * scale for value in box)
    return Sighting(x + width / 2 + left, y + height / 2 + top, width, float(weight))


def framed(face, scale):
    """The Box of a Sighting in a frame that was searched at `scale`, framed as FER2013 frames faces."""
    size = round(face.size * FRAMING / scale)
    x, y = face.x / scale, (face.y + LOWER * face.size) / scale
    return Box(round(x - size / 2), round(y - size / 2), size, size)


def around(gray, place, reach, size):
    """What lies around a Sighting, `reach` times as wide, scaled so that the face gets `size` pixels wide.

    Returns gray uint8, its left and top edges in the frame, and the scale; at a frame's edge there is less.
    """
    half, scale = place.size * reach / 2, size / place.size
    left, top = (max(0, round(value - half)) for value in place[:2])
    part = gray[top : max(top, round(place.y + half)), left : max(left, round(place.x + half))]
    if min(part.shape) * scale < 1:
        return part[:0, :0], left, top, scale
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(part, None, fx=scale, fy=scale, interpolation=method), left, top, scale


def patch(gray, face):
    """A face as it is remembered: uint8 (PATCH, PATCH)."""
    side = max(1, round(face.size))
    picture = crop(gray, Box(round(face.x - side / 2), round(face.y - side / 2), side, side))
    return cv2.resize(picture, (PATCH, PATCH), interpolation=cv2.INTER_AREA)


def vector(face):
    """A Sighting as a track moves it: its centre, and the logarithm of its size."""
    return np.array((face.x, face.y, math.log(face.size)))


def overlap(one, other):
    """Intersection over union of two Sightings."""
    reach = (one.size + other.size) / 2
    width = min(reach - abs(one.x - other.x), one.size, other.size)
    height = min(reach - abs(one.y - other.y), one.size, other.size)
    shared = max(0, width) * max(0, height)
    return shared / (one.size**2 + other.size**2 - shared)


def merged(faces, weigh=max):
    """Make one Sighting of those that overlap: the mean of them, with what `weigh` makes of their weights."""
    faces, result = sorted(faces, key=lambda face: (-face.weight, *face)), []  # whatever order they were found in
    while faces:
        same = [face for face in faces if overlap(face, faces[0]) > 0.4]
        weights = [max(0, face.weight) for face in same]
        x, y, size, _ = np.average(same, axis=0, weights=np.array(weights) + 2)
        result.append(Sighting(x, y, size, weigh(weights)))
        faces = [face for face in faces if face not in same]
    return result


def together(weights):
    """The weight of a Sighting that the cascade hit in several windows, from the sums of its last stage in each.

    It tells faces from the rest better than the largest of them, or their number, does."""
    return math.sqrt(sum(weights))
