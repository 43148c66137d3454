"""Follow faces from frame to frame: where each is, who it is, and which expression it shows.

What a detector finds counts as a face once its mean score over some frames is high enough.

A video is followed in segments, each by a tracker of its own, so that many computers can share a long video. A tracker
begins a little before its segment; faces that two trackers see there in the same place are the same person.
"""

import itertools
import math
from collections import Counter, defaultdict

import cv2
import numpy as np

from expressions import UNCERTAIN
from expressions.images import crop
from expressions.inference.detector import HaarDetector, YuNetDetector, crop_roi, downscale, iou, to_detection
from expressions.inference.types import Box, Detection, Face

WIDE_ROI_SCALE = 2.2  # width of the region where a lost face is searched, in widths of the face
TEMPLATE_SIZE, MIN_SIMILARITY = 24, 0.6  # pixels of a face's last image; least correlation with the same face
SUBPIXELS = 4  # places between two of these pixels; at whole ones alone, the box would shake

SINGLE_FRAME_SCORE = 2.0  # mean of both mirror images; a face of this score is shown in the first frame
SCORE_GAIN = 0.3  # weight of the newest score in the running mean over frames
CONFIRM_SCORE, HIDE_SCORE, DROP_SCORE = 2.5, 0.6, 0.25  # running means: shown from here, no longer shown, forgotten
MAX_LOST_SECONDS = 1.5  # a face that the detector doesn't find for longer is forgotten
MAX_TEMPLATE_SECONDS = 0.5  # for so long it is searched with its last image
MATCH_RADIUS, RADIUS_PER_SECOND = 0.7, 1.0  # distance from the prediction, in widths; and more for each second unseen
APPEARANCE_WEIGHT = 0.5  # distance in widths that counts as much as no correlation at all
OCCLUSION_IOU = 0.1  # faces that overlap more may hide one another
NEW_FACE_IOU = 0.3  # what overlaps more with a known face is no new one
SCENE_CHANGE, MAX_GAP_SECONDS = 30, 0.5  # mean difference in gray levels, and time, from one frame to the next
SMOOTHING_SECONDS = np.array([0.04, 0.04, 0.12])  # time constants of the drawn position (x, y) and size

SEGMENT_SECONDS, SEGMENT_OVERLAP = 60, 2  # seconds that one tracker follows, and that it begins earlier
SAME_FACE_IOU = 0.5  # two trackers mean the same face where their boxes overlap more

MEMORY_SECONDS = 0.3  # time constant of the smoothing of probabilities
LABEL_HYSTERESIS = 0.1  # the label changes once another one leads by this much
MIN_CONFIDENCE = 0.3  # a face whose probabilities are all lower is uncertain: one in three such labels is right
MAX_CLASSIFIED_PER_FRAME = 3  # known faces; more take turns, so that a crowd doesn't make the frame late


class Track:
    """A face that is followed."""

    def __init__(self, track_id: int, face: Detection, seconds: float, gray: np.ndarray, score: float):
        self.track_id, self.box = track_id, None  # from 1; a Box in pixels of the frame, once it is shown
        self.score, self.confirmed = score, score >= CONFIRM_SCORE  # running mean; whether it counts as a face
        self.state = self.smoothed = _to_state(face)  # at `last_seen`; `smoothed` is what is drawn
        self.angle = face.angle
        self.velocity = self.smoothed_velocity = np.zeros(3)  # per second
        self.last_seen = self.last_detected = seconds  # the second one by the detector
        self.template = _crop_template(gray, face)
        self.probabilities = self.label = self.classified_at = None
        self.neutral = None  # this person's NeutralFace
        self.times_classified = 0

    def predict(self, seconds: float) -> Detection:
        """Return where the face is at a time if it goes on as it moved."""
        x, y, size = self.state + self.velocity * (seconds - self.last_seen)
        return Detection(x, y, math.exp(size))

    def match_template(self, gray: np.ndarray, place: Detection) -> Detection | None:
        """Search around a place for the last image of the face, because the detector misses turned heads."""
        roi, left, top, scale = crop_roi(gray, place, 2, TEMPLATE_SIZE)
        if min(roi.shape) < TEMPLATE_SIZE:
            return None
        similarities = cv2.matchTemplate(roi, self.template, cv2.TM_CCOEFF_NORMED)
        similarities = cv2.resize(similarities, None, fx=SUBPIXELS, fy=SUBPIXELS, interpolation=cv2.INTER_CUBIC)
        _, similarity, _, corner = cv2.minMaxLoc(similarities)
        if similarity <= MIN_SIMILARITY:
            return None
        x, y = ((value + 0.5) / SUBPIXELS + (TEMPLATE_SIZE - 1) / 2 for value in corner)
        return Detection(x / scale + left, y / scale + top, place.size)

    def update_position(self, face: Detection, seconds: float) -> None:
        """Move to where the face is at a later time."""
        passed, state = max(seconds - self.last_seen, 1e-3), _to_state(face)
        self.velocity, self.state, self.last_seen = (state - self.state) / passed * (1, 1, 0.5), state, seconds
        # an alpha-beta filter (Benedict and Bordner 1962) doesn't lag behind a steady movement; it would behind any
        # other one, so a position far from the prediction is smoothed less
        self.smoothed = self.smoothed + self.smoothed_velocity * passed
        error = state - self.smoothed
        far = np.hypot(*error[:2]) / face.size
        least_gain = np.minimum(1, (10 * far, 10 * far, abs(error[2]) / 0.3))
        gain = np.maximum(1 - np.exp(-passed / SMOOTHING_SECONDS), least_gain)
        self.smoothed = self.smoothed + gain * error
        self.smoothed_velocity = self.smoothed_velocity + gain**2 / (2 - gain) * error / passed

    def update_from_detection(self, face: Detection, seconds: float, gray: np.ndarray) -> None:
        """Move to where the detector found the face."""
        self.update_position(face, seconds)
        self.last_detected, self.template, self.angle = seconds, _crop_template(gray, face), face.angle
        self.update_score(face.score)

    def update_score(self, score: float) -> None:
        """Average the scores of detections, 0 where there is none."""
        self.score += SCORE_GAIN * (max(0, score) - self.score)
        self.confirmed = self.score >= (HIDE_SCORE if self.confirmed else CONFIRM_SCORE)

    def is_alive(self, shape: tuple[int, int], seconds: float) -> bool:
        """Return whether to go on with the face, in frames of this shape."""
        (x, y, _), (height, width) = self.state, shape
        recent = seconds - self.last_detected <= MAX_LOST_SECONDS
        return recent and self.score >= DROP_SCORE and 0 <= x < width and 0 <= y < height

    def crop(self, gray: np.ndarray) -> np.ndarray:
        """Cut the face out of the frame, uint8 (height, width), and turn it upright by the line through the eyes."""
        if not self.angle:
            return crop(gray, self.box)
        side, border = self.box.width, self.box.width // 4  # of what is turned, its corners come into the square
        region = crop(gray, Box(self.box.x - border, self.box.y - border, *[side + 2 * border] * 2))
        center = (region.shape[0] - 1) / 2
        turn = cv2.getRotationMatrix2D((center, center), self.angle, 1)
        turn[:, 2] -= border
        return cv2.warpAffine(region, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)

    def update_expression(self, probabilities: np.ndarray, seconds: float) -> None:
        """Smooth probabilities, float32 (classes,), over time and choose the label."""
        if self.neutral:
            probabilities = self.neutral.correct(probabilities, seconds)
        if self.probabilities is None:
            self.probabilities, self.classified_at = probabilities, seconds
        gain = 1 - math.exp((self.classified_at - seconds) / MEMORY_SECONDS)
        self.probabilities = self.probabilities + np.float32(gain) * (probabilities - self.probabilities)
        self.classified_at, self.times_classified = seconds, self.times_classified + 1
        candidates = np.append(self.probabilities, MIN_CONFIDENCE)  # UNCERTAIN is one label more
        best = candidates.argmax()
        if self.label is None or candidates[best] - candidates[self.label] >= LABEL_HYSTERESIS:
            self.label = best

    def to_face(self, labels: tuple[str, ...]) -> Face:
        """Return what is shown of the face; `labels` are the classifier's."""
        label = (*labels, UNCERTAIN)[self.label]
        confidence = self.probabilities.max() if label == UNCERTAIN else self.probabilities[self.label]
        return Face(self.box, label, float(confidence), self.track_id, tuple(self.probabilities.tolist()))


class Tracker:
    """Finds the faces in the frames of one source and follows each. The same frames always give the same tracks."""

    def __init__(self, detector: HaarDetector | YuNetDetector):
        self.detector, self.frames, self.new_ids = detector, 0, itertools.count(1)
        self.tracks, self.visible = [], []  # all faces that are followed; those in the latest frame
        self.latest = None, None, None  # frame: its thumbnail, shape and time
        self.searched = None  # when a frame was last searched

    def update(self, gray: np.ndarray, seconds: float | None) -> list[Track]:
        """Return the tracks of the faces that are seen in the next frame, uint8 (height, width), by track_id.

        The first frame, one of another scene, and one after a gap of MAX_GAP_SECONDS are searched as a whole, which
        takes a cascade about ten times as long. `seconds` is None for an image, which is searched in full size.
        """
        if seconds is None:
            seconds, scale, found = 0.0, 1, self.detector.detect_image(gray)
            self.tracks = [Track(next(self.new_ids), face, seconds, gray, CONFIRM_SCORE) for face in found]
        else:
            gray, scale = downscale(gray)
            self._follow(gray, seconds)
        self.tracks = [track for track in self.tracks if track.is_alive(gray.shape, seconds)]
        self.visible = [track for track in self.tracks if track.confirmed and track.last_seen == seconds]
        for track in self.visible:  # in the frame as it was before `downscale`, cropped as FER2013 crops faces
            x, y, size = *track.smoothed[:2], math.exp(track.smoothed[2])
            side, y = round(size * self.detector.box_scale / scale), y + self.detector.box_shift * size
            track.box = Box(round(x / scale - side / 2), round(y / scale - side / 2), side, side)
        return self.visible

    def select_for_classification(self) -> list[Track]:
        """Return the visible tracks to classify in a frame: new ones, and the known ones that have waited longest."""
        new = [track for track in self.visible if not track.times_classified]
        known = (track for track in self.visible if track.times_classified)
        known = sorted(known, key=lambda track: (track.classified_at, track.times_classified))
        return new + known[:MAX_CLASSIFIED_PER_FRAME]

    def _follow(self, gray, seconds):
        if self._is_scene_change(gray, seconds):
            self.tracks, self.searched = [], seconds
            for face in self.detector.detect(gray):
                score = max(CONFIRM_SCORE, face.score) if face.score >= SINGLE_FRAME_SCORE else face.score
                self.tracks.append(Track(next(self.new_ids), face, seconds, gray, score))
            return
        index, self.frames = self.frames, self.frames + 1
        if index % self.detector.search_every and self._follow_templates(gray, seconds):
            return
        self.searched = seconds
        expected = [track.predict(seconds) for track in self.tracks]
        found = self.detector.detect_next(gray, expected, index)
        unmatched = self._associate(found, expected, gray, seconds)
        for track in [track for track in self.tracks if track.last_seen < seconds]:
            self._recover_lost(track, unmatched, gray, seconds)
        for face in unmatched:
            if all(iou(face, track.predict(seconds)) < NEW_FACE_IOU for track in self.tracks):
                self.tracks.append(Track(next(self.new_ids), face, seconds, gray, SCORE_GAIN * face.score))

    def _follow_templates(self, gray, seconds):
        """Move all faces to where their last images are; False, and none is moved, if a search has to find them."""
        found = []
        for track in self.tracks:
            if track.score < CONFIRM_SCORE or track.last_detected < self.searched:  # weak, new or missed
                return False
            size = track.smoothed[2] + track.smoothed_velocity[2] * (seconds - track.last_seen)  # no template tells it
            face = track.match_template(gray, track.predict(seconds)._replace(size=math.exp(size)))
            if not face or any(iou(face, other) > OCCLUSION_IOU for other in found):
                return False
            found.append(face)
        for track, face in zip(self.tracks, found, strict=True):
            track.update_position(face, seconds)
        return bool(found)

    def _is_scene_change(self, gray, seconds):
        thumbnail = cv2.resize(gray, (32, 24), interpolation=cv2.INTER_AREA)
        (before, shape, last), self.latest = self.latest, (thumbnail, gray.shape, seconds)
        if shape != gray.shape or not 0 <= seconds - last <= MAX_GAP_SECONDS:  # a stream may come back in another size
            return True
        return cv2.absdiff(thumbnail, before).mean() > SCENE_CHANGE

    def _associate(self, found, expected, gray, seconds):
        """Give each detection to the nearest track, by position and appearance; return those left over."""
        pairs = []
        for face in found:
            template = _crop_template(gray, face)
            for track, place in zip(self.tracks, expected, strict=True):
                distance = math.hypot(face.x - place.x, face.y - place.y) / place.size
                radius = MATCH_RADIUS + RADIUS_PER_SECOND * (seconds - track.last_seen)
                if distance < radius and abs(math.log(face.size / place.size)) < 0.4:
                    similarity = cv2.matchTemplate(track.template, template, cv2.TM_CCOEFF_NORMED)[0, 0]
                    pairs.append((distance + APPEARANCE_WEIGHT * (1 - similarity), track, face))
        matched = []
        for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
            if track.last_seen < seconds and face not in matched:
                track.update_from_detection(face, seconds, gray)
                matched.append(face)
        return [face for face in found if face not in matched]

    def _recover_lost(self, track, unmatched, gray, seconds):
        """Search for a face that was not found where it was expected: with its last image, then in a wider region."""
        if not track.confirmed:
            track.update_score(0)
            return
        others = unmatched + [other.predict(seconds) for other in self.tracks if other.last_seen == seconds]

        def is_free(face):
            return all(iou(face, other) < OCCLUSION_IOU for other in others)

        place = track.predict(seconds)
        track.velocity = track.smoothed_velocity * (1, 1, 0)  # steadier, for a face that is not seen
        if not is_free(place):  # behind another face, which would be taken for it
            return
        if seconds - track.last_detected <= MAX_TEMPLATE_SECONDS:
            face = track.match_template(gray, track.predict(seconds))
            if face and is_free(face):
                track.update_position(face, seconds)
                return
        found = filter(is_free, self.detector.detect_near(gray, place, WIDE_ROI_SCALE))
        face = min(found, key=lambda face: math.hypot(face.x - place.x, face.y - place.y), default=None)
        if face:
            track.update_from_detection(face, seconds, gray)


class TrackStitcher:
    """Numbers people from 1, in the order in which they are first shown, across the trackers of successive segments."""

    def __init__(self):
        self.person_ids = defaultdict(itertools.count(1).__next__)  # by the current tracker's track_id
        self.overlaps = Counter()

    def add_overlap(self, faces: list[Face], next_faces: list[Face]) -> None:
        """Count which faces of the current and the next tracker are in the same place in the same frame."""
        for face in faces:
            for other in next_faces:
                if iou(to_detection(face.box), to_detection(other.box)) > SAME_FACE_IOU:
                    self.overlaps[face.track_id, other.track_id] += 1

    def next_segment(self) -> None:
        """Go on with the next tracker: faces that were most often in the same place are the same person."""
        person_ids = defaultdict(self.person_ids.default_factory)
        for (track_id, next_id), _ in self.overlaps.most_common():
            person = self.person_ids.get(track_id)
            if person and next_id not in person_ids and person not in person_ids.values():
                person_ids[next_id] = person
        self.person_ids, self.overlaps = person_ids, Counter()

    def assign_ids(self, faces: list[Face]) -> list[Face]:
        """Return the faces with the people's numbers in place of the tracker's."""
        return [face._replace(track_id=self.person_ids[face.track_id]) for face in faces]


def _crop_template(gray, face):
    side = max(1, round(face.size))
    image = crop(gray, Box(round(face.x - side / 2), round(face.y - side / 2), side, side))
    return cv2.resize(image, (TEMPLATE_SIZE, TEMPLATE_SIZE), interpolation=cv2.INTER_AREA)


def _to_state(face):
    return np.array((face.x, face.y, math.log(face.size)))  # sizes change by factors
