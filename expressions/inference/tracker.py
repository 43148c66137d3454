"""Follow faces from frame to frame: where each is, who it is, and which expression it shows.

The surroundings of known faces are searched in every frame, and one slice of the frame for new ones. What a slice finds
is searched closely, and counts as a face once its mean score over some frames is high enough.

A video is followed in segments, each by a tracker of its own, so that many computers can share a long video. A tracker
begins a little before its segment; faces that two trackers see there in the same place are the same person.
"""

import math
from collections import Counter

import cv2
import numpy as np

from expressions import UNCERTAIN
from expressions.images import crop
from expressions.inference.detector import (
    crop_roi,
    downscale,
    group_detections,
    iou,
    to_box,
    to_detection,
)
from expressions.inference.types import Box, Detection, Face

WIDE_ROI_SCALE = 2.2  # width of the region where a lost face is searched, in widths of the face
TEMPLATE_SIZE, MIN_SIMILARITY = 24, 0.6  # pixels of a face's last image; least correlation with the same face

SINGLE_FRAME_SCORE = 2.0  # mean of both mirror images; a face of this score is shown in the first frame
SCORE_GAIN = 0.3  # weight of the newest score in the running mean over frames
CONFIRM_SCORE, HIDE_SCORE, DROP_SCORE = 2.5, 0.6, 0.25  # running means: shown from here, no longer shown, forgotten
MAX_LOST_SECONDS = 1.5  # a face that the cascade doesn't find for longer is forgotten
MAX_TEMPLATE_SECONDS = 0.5  # for so long it is searched with its last image
MATCH_RADIUS, RADIUS_PER_SECOND = 0.7, 1.0  # distance from the prediction, in widths; and more for each second unseen
APPEARANCE_WEIGHT = 0.5  # distance in widths that counts as much as no correlation at all
OCCLUSION_IOU = 0.1  # faces that overlap more may hide one another
SCENE_CHANGE, MAX_GAP_SECONDS = 30, 0.5  # mean difference in gray levels, and time, from one frame to the next
SMOOTHING_SECONDS = np.array([0.04, 0.04, 0.12])  # time constants of the drawn position (x, y) and size

SEGMENT_SECONDS, SEGMENT_OVERLAP = 60, 2  # seconds that one tracker follows, and that it begins earlier
SAME_FACE_IOU = 0.5  # two trackers mean the same face where their boxes overlap more

MEMORY_SECONDS = 0.3  # time constant of the smoothing of probabilities
LABEL_HYSTERESIS = 0.1  # the label changes once another one leads by this much
MIN_CONFIDENCE = 0.35  # a face whose probabilities are all lower is uncertain
MAX_CLASSIFIED_PER_FRAME = 3  # known faces; more take turns, so that a crowd doesn't make the frame late


class Track:
    """A face that is followed. number: its identity, from 1. box: where it is, a Box in pixels of the frame."""

    def __init__(self, track_id, face, seconds, gray, score):
        self.track_id, self.score, self.confirmed, self.box = track_id, score, score >= CONFIRM_SCORE, None
        self.position = self.smoothed = to_state(face)  # where it was last seen, and the same smoothed
        self.velocity = self.smoothed_velocity = np.zeros(3)  # a second
        self.last_seen = self.last_detected = seconds  # last, at all, and by the cascade
        self.template, self.probabilities, self.label = crop_template(gray, face), None, None
        self.classified_at, self.times_classified = None, 0  # when its expression was last read, and how often

    def predict(self, seconds):
        """Where the face is at a time, a Detection, if it goes on as it moved."""
        x, y, size = self.position + self.velocity * (seconds - self.last_seen)
        return Detection(x, y, math.exp(size))

    def match_template(self, gray, seconds):
        """Look for the face as it last looked, for the cascade misses turned heads. Returns a Detection or None."""
        place = self.predict(seconds)
        part, left, top, scale = crop_roi(gray, place, 2, TEMPLATE_SIZE)
        if min(part.shape) < TEMPLATE_SIZE:
            return None
        _, alike, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(part, self.template, cv2.TM_CCOEFF_NORMED))
        middle = TEMPLATE_SIZE / 2
        return (
            Detection((x + middle) / scale + left, (y + middle) / scale + top, place.size)
            if alike > MIN_SIMILARITY
            else None
        )

    def update_position(self, face, seconds):
        """The face was seen there, at a later time."""
        passed, place = max(seconds - self.last_seen, 1e-3), to_state(face)
        self.velocity, self.position, self.last_seen = (place - self.position) / passed * (1, 1, 0.5), place, seconds
        # an alpha-beta filter (Benedict and Bordner 1962) doesn't lag behind a steady movement; behind another one it
        # would, so what is far from where it is expected is smoothed less
        self.smoothed = self.smoothed + self.smoothed_velocity * passed
        error = place - self.smoothed
        far = np.hypot(*error[:2]) / face.size
        gain = np.maximum(
            1 - np.exp(-passed / SMOOTHING_SECONDS), np.minimum(1, (10 * far, 10 * far, abs(error[2]) / 0.3))
        )
        self.smoothed = self.smoothed + gain * error
        self.smoothed_velocity = self.smoothed_velocity + gain**2 / (2 - gain) * error / passed

    def update_from_detection(self, face, seconds, gray):
        """The cascade found the face there."""
        self.update_position(face, seconds)
        self.last_detected, self.template = seconds, crop_template(gray, face)
        self.update_score(face.score)

    def update_score(self, score):
        """Take a sighting's weight, 0 for none, as score that this is a face."""
        self.score += SCORE_GAIN * (max(0, score) - self.score)
        self.confirmed = self.score >= (HIDE_SCORE if self.confirmed else CONFIRM_SCORE)

    def update_expression(self, probabilities, seconds):
        """Smooth probabilities, float32 (classes,), over time and choose the label with care."""
        if self.probabilities is None:
            self.probabilities, self.classified_at = probabilities, seconds
        latest = 1 - math.exp((self.classified_at - seconds) / MEMORY_SECONDS)
        self.probabilities = self.probabilities + np.float32(latest) * (probabilities - self.probabilities)
        self.classified_at, self.times_classified = seconds, self.times_classified + 1
        probabilities = np.append(self.probabilities, MIN_CONFIDENCE)  # to be uncertain is one label more
        best = probabilities.argmax()
        if self.label is None or probabilities[best] - probabilities[self.label] >= LABEL_HYSTERESIS:
            self.label = best

    def face(self, labels):
        """The Face as it is shown; labels: the classifier's."""
        labels = (*labels, UNCERTAIN)
        # what stands beside a label is its own probability; beside UNCERTAIN, the likeliest one's
        confidence = self.probabilities[self.label] if self.label < len(labels) - 1 else self.probabilities.max()
        return Face(self.box, labels[self.label], float(confidence), self.track_id, self.probabilities)


class Tracker:
    """Finds faces in the frames of one source, and follows each with its own number, place, and expression.

    detector: a FaceDetector. labels: the classifier's, in order. The same frames give the same faces, whatever the time
    they take.
    """

    def __init__(self, detector, labels):
        self.detector, self.labels = detector, labels
        self.tracks, self.thumbnail, self.shape, self.last, self.turn, self.number = [], None, None, None, 0, 0

    def update(self, gray, seconds):
        """Find the faces in the next frame: gray, uint8 (height, width), at a time that doesn't go back.

        Returns Tracks, those of faces seen in this frame, in the order of their numbers. The first frame, one of
        another scene, and one after a gap of MAX_GAP_SECONDS are searched as a whole, which takes some ten times as long.
        """
        gray, scale = downscale(gray)
        tracks = self.tracks
        if self.is_scene_change(gray, seconds):
            tracks.clear()
            for face in self.detector.detect(gray):
                self.add(
                    face,
                    seconds,
                    gray,
                    max(CONFIRM_SCORE, face.score) if face.score >= SINGLE_FRAME_SCORE else face.score,
                )
        else:
            found = self.associate(gray, seconds)
            lost = [track for track in tracks if track.last_seen < seconds]
            for track in lost:
                self.recover_lost(track, gray, seconds, found)
            for face in found:
                if all(iou(face, other.predict(seconds)) < 0.3 for other in tracks):
                    self.add(face, seconds, gray, SCORE_GAIN * face.score)
        height, width = gray.shape
        self.tracks = [
            track
            for track in tracks
            if seconds - track.last_detected <= MAX_LOST_SECONDS
            and track.score >= DROP_SCORE
            and 0 <= track.position[0] < width
            and 0 <= track.position[1] < height
        ]
        seen = [track for track in self.tracks if track.confirmed and track.last_seen == seconds]
        for track in seen:
            x, y, size = track.smoothed
            track.box = to_box(Detection(x, y, math.exp(size)), scale)
        return seen

    def is_scene_change(self, gray, seconds):
        """Whether this frame does not go on from the last one."""
        before, shape, last = self.thumbnail, self.shape, self.last
        self.thumbnail, self.last = cv2.resize(gray, (32, 24), interpolation=cv2.INTER_AREA), seconds
        self.shape = gray.shape  # of another one, as when a stream comes back, places would mean something else
        if before is None or shape != gray.shape or not 0 <= seconds - last <= MAX_GAP_SECONDS:
            return True
        return cv2.absdiff(self.thumbnail, before).mean() > SCENE_CHANGE

    def add(self, face, seconds, gray, score):
        self.number += 1
        self.tracks.append(Track(self.number, face, seconds, gray, score))

    def associate(self, gray, seconds):
        """Look for the known faces and in a slice of the frame; returns Detections that no track takes for its own."""
        detect_near = self.detector.detect_near
        expected = [track.predict(seconds) for track in self.tracks]
        flip = self.turn % 2 == 1  # in every other frame
        found = [face for place in expected for face in detect_near(gray, place, flip=flip)]
        known = expected + found
        for rough in self.detector.scan_slice(gray, self.turn):
            if not any(max(abs(rough.x - face.x), abs(rough.y - face.y)) < face.size / 2 for face in known):
                known.append(rough)
                found += detect_near(gray, rough)
        self.turn += 1
        found = group_detections(found)
        pairs = []
        for face in found:
            picture = crop_template(gray, face)
            for track, place in zip(self.tracks, expected, strict=True):
                far = math.hypot(face.x - place.x, face.y - place.y) / place.size
                if (
                    far < MATCH_RADIUS + RADIUS_PER_SECOND * (seconds - track.last_seen)
                    and abs(math.log(face.size / place.size)) < 0.4
                ):
                    alike = cv2.matchTemplate(track.template, picture, cv2.TM_CCOEFF_NORMED)[0, 0]
                    pairs.append((far + APPEARANCE_WEIGHT * (1 - alike), track, face))
        taken = []
        for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
            if track.last_seen < seconds and face not in taken:
                track.update_from_detection(face, seconds, gray)
                taken.append(face)
        return [face for face in found if face not in taken]

    def recover_lost(self, track, gray, seconds, others):
        """Look for a face that isn't where it was expected: by its looks, then with the cascade farther off."""
        if not track.confirmed:
            return track.update_score(0)
        others = others + [other.predict(seconds) for other in self.tracks if other.last_seen == seconds]

        def free(face):
            return all(iou(face, other) < OCCLUSION_IOU for other in others)

        place = track.predict(seconds)
        track.velocity = track.smoothed_velocity * (1, 1, 0)  # smoother, to go on with unseen
        if not free(place):  # behind another face, whose looks would be taken for its own
            return
        face = track.match_template(gray, seconds) if seconds - track.last_detected <= MAX_TEMPLATE_SECONDS else None
        if face and free(face):
            return track.update_position(face, seconds)
        far = [face for face in self.detector.detect_near(gray, place, WIDE_ROI_SCALE) if free(face)]
        if far:
            track.update_from_detection(
                min(far, key=lambda face: math.hypot(face.x - place.x, face.y - place.y)), seconds, gray
            )

    def select_for_classification(self, tracks):
        """Those of the `tracks` that `update` returned whose expressions are to be read in this frame: new ones, and of
        the others the MAX_CLASSIFIED_PER_FRAME that have waited longest."""
        new = [track for track in tracks if not track.times_classified]
        known = (track for track in tracks if track.times_classified)
        return (
            new
            + sorted(known, key=lambda track: (track.classified_at, track.times_classified))[:MAX_CLASSIFIED_PER_FRAME]
        )

    def update_expression(self, tracks, probabilities, seconds):
        """Tell the expressions of the `tracks` that `update` returned, from what was read in those that were selected.

        probabilities: float32 (due, classes), smoothed here with a time constant of MEMORY_SECONDS seconds. Returns a Face for
        each track.
        """
        for track, row in zip(self.select_for_classification(tracks), probabilities, strict=True):
            track.update_expression(row, seconds)
        return [track.face(self.labels) for track in tracks]


class TrackStitcher:
    """Numbers people in the order in which they are first shown, from 1, and gives those that one tracker after another
    follows the same number throughout."""

    def __init__(self):
        self.numbers, self.shown, self.met = {}, 0, Counter()  # numbers: of people, by the tracker's own

    def add_overlap(self, faces, others):
        """Take in what the tracker, and the one that will come after it, see in the same frame."""
        for face in faces:
            for other in others:
                if iou(to_detection(face.box), to_detection(other.box)) > SAME_FACE_IOU:
                    self.met[face.track_id, other.track_id] += 1

    def next_segment(self):
        """Go on with the tracker that comes after: who was met most often in the same place is the same person."""
        numbers = {}
        for (number, other), _ in self.met.most_common():
            person = self.numbers.get(number)
            if person and other not in numbers and person not in numbers.values():
                numbers[other] = person
        self.numbers, self.met = numbers, Counter()

    def assign_ids(self, faces):
        """The Faces with the numbers of people for the tracker's."""
        for face in faces:
            if face.track_id not in self.numbers:
                self.shown += 1
                self.numbers[face.track_id] = self.shown
        return [face._replace(track_id=self.numbers[face.track_id]) for face in faces]


def crop_template(gray, face):
    """A face as it is remembered: uint8 (TEMPLATE_SIZE, TEMPLATE_SIZE)."""
    side = max(1, round(face.size))
    picture = crop(gray, Box(round(face.x - side / 2), round(face.y - side / 2), side, side))
    return cv2.resize(picture, (TEMPLATE_SIZE, TEMPLATE_SIZE), interpolation=cv2.INTER_AREA)


def to_state(face):
    """A Detection as a track moves it: its centre, and the logarithm of its size."""
    return np.array((face.x, face.y, math.log(face.size)))
