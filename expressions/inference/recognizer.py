"""From a frame to the faces in it and their expressions."""

import os
import threading
from pathlib import Path

import cv2
import numpy as np

from expressions import UNCERTAIN, UserError
from expressions.classifier import MODEL, Classifier
from expressions.images import to_gray
from expressions.inference.detector import load_detector
from expressions.inference.neutral import NeutralFace
from expressions.inference.tracker import SEGMENT_OVERLAP, SEGMENT_SECONDS, Tracker, TrackStitcher
from expressions.inference.types import Face

NEUTRAL = "neutral"  # the label that a face at rest should have


class ExpressionRecognizer:
    """Finds the faces in images and videos and labels their expressions, with a model of train.py and a face detector.

    `detector` is a name or a file for `load_detector`. `votes` is the weight of the votes in the probabilities, for
    `Classifier.predict_proba`; by default half, if the model has learned from votes. `threads` of the network: None for
    as many as are fastest when nothing else runs. Raises UserError where a file is missing, damaged or unfit.
    """

    def __init__(
        self,
        model: Path = MODEL,
        detector: str | os.PathLike = "haar",
        votes: float | None = None,
        threads: int | None = None,
    ):
        self.detector, self.classifier = load_detector(detector), Classifier.load(model, threads=threads)
        self.votes = self.classifier.shown_votes if votes is None else votes
        self.labels = self.classifier.labels
        if UNCERTAIN in self.labels:
            raise UserError(
                f"{model}: has a class called {UNCERTAIN}, which means that none is likely; train with another name"
            )
        self.lock = threading.Lock()  # the detector and the network serve one thread at a time
        self.reset()

    def reset(self, segment_end: float = SEGMENT_SECONDS) -> None:
        """Forget all faces: another source begins. Its first segment ends at a time, infinite for a camera."""
        self.tracker, self.next_tracker, self.segment_end = Tracker(self.detector), None, segment_end
        self.stitcher, self.neutral = TrackStitcher(), None  # neutral: the track whose neutral face is known

    def toggle_neutral(self) -> None:
        """Learn the neutral face of the largest face's person from the next second of a video, or forget it.

        From then on this person's expression is read relative to it, as long as the face is followed. It needs a model
        that has the label neutral.
        """
        with self.lock:
            if self.neutral_status:
                self.neutral.neutral = self.neutral = None
            elif self.tracker.visible and NEUTRAL in self.labels:
                self.neutral = max(self.tracker.visible, key=lambda track: track.box.width)
                self.neutral.neutral = NeutralFace(self.labels.index(NEUTRAL), self.neutral.last_seen)

    @property
    def neutral_status(self) -> str:
        """What to say of the neutral face: that it is being learned or used; empty without one."""
        if self.neutral not in self.tracker.tracks:
            return ""
        return "neutral face: hold still" if self.neutral.neutral.log_odds is None else "neutral face: on"

    def recognize(self, image: np.ndarray, seconds: float | None = None) -> list[Face]:
        """Find the faces in a frame, uint8 BGR (height, width, 3) or gray (height, width), and label their expressions.

        `seconds` is its time in a video, whose faces are followed from frame to frame; None for an image. Several
        threads may call it. Raises UserError for what is no such frame.
        """
        with self.lock:
            return self._recognize(image, seconds)

    def _recognize(self, image, seconds):
        gray = to_gray(image)
        if seconds is None:
            return TrackStitcher().assign_ids(self.recognize_tracks(Tracker(self.detector), gray, None))
        if seconds >= self.segment_end:
            self.tracker, self.next_tracker = self.next_tracker or Tracker(self.detector), None
            self.segment_end = (seconds // SEGMENT_SECONDS + 1) * SEGMENT_SECONDS
            person = self.neutral and self.stitcher.person_ids.get(self.neutral.track_id)
            self.stitcher.next_segment()
            for track in self.tracker.tracks:
                if person and self.stitcher.person_ids.get(track.track_id) == person:
                    track.neutral, self.neutral = self.neutral.neutral, track
        faces = self.recognize_tracks(self.tracker, gray, seconds)
        if seconds >= self.segment_end - SEGMENT_OVERLAP:
            self.next_tracker = self.next_tracker or Tracker(self.detector)
            self.stitcher.add_overlap(faces, self.recognize_tracks(self.next_tracker, gray, seconds))
        return self.stitcher.assign_ids(faces)

    def recognize_tracks(self, tracker: Tracker, gray: np.ndarray, seconds: float | None) -> list[Face]:
        """Return the faces that one tracker sees in a frame, gray uint8 (height, width), with its own track_ids."""
        tracks = tracker.update(gray, seconds)
        selected, crops = tracker.select_for_classification(), []
        for track in selected:
            face = track.crop(gray)
            # of an image, both mirror images are classified; of a video, they take turns, and smoothing unites them
            crops.append(cv2.flip(face, 1) if track.times_classified % 2 else face)
        probabilities = self.classifier.predict_proba(crops, flip_tta=seconds is None, votes=self.votes)
        for track, row in zip(selected, probabilities, strict=True):
            track.update_expression(row, seconds or 0.0)
        return [track.to_face(self.labels) for track in tracks]


class Labeller(ExpressionRecognizer):
    """ExpressionRecognizer by the names that it had in earlier versions."""

    label, start = ExpressionRecognizer.recognize, ExpressionRecognizer.reset
