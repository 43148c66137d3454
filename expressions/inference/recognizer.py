"""From a frame to the faces in it and their expressions."""

from pathlib import Path

import cv2

from expressions import UserError
from expressions.classifier import Classifier
from expressions.images import crop
from expressions.inference.tracker import OVERLAP, PART, FaceDetector, Numbering, Tracker

ROOT = Path(__file__).resolve().parents[2]  # the folder of the two scripts
MODEL, CASCADE = ROOT / "models" / "emotion_model.h5", ROOT / "haarcascade_frontalface_default.xml"


class ExpressionRecognizer:
    """Finds the faces in pictures and labels their expressions.

    model: an .h5 of train.py. cascade: a face detector's file. votes: label faces as ten people would vote, where the
    model has learned that. threads: for the network; None for as many as pay where nothing else is to be done.
    Raises UserError when a file is missing, damaged or unfit.
    """

    def __init__(self, model=MODEL, cascade=CASCADE, votes=False, threads=None):
        self.detector, self.votes = FaceDetector(cascade), votes
        self.classifier = Classifier.load(model, threads=threads)
        if votes and not self.classifier.has_votes:
            raise UserError(f"--votes: {model} has not learned from votes; train it with FER+ beside the data set")
        self.labels = self.classifier.labels
        self.reset()

    def reset(self, end=PART):
        """Forget the faces seen so far: another film or camera begins.

        end: when its first part does, in seconds; infinite for a camera, which is followed by one tracker for ever."""
        self.tracker, self.successor, self.end = self.new_tracker(), None, end
        self.numbering = Numbering()

    def new_tracker(self):
        return Tracker(self.detector, self.labels)

    def recognize(self, image, seconds=None):
        """Find and label the faces in a picture, BGR uint8 (height, width, 3). Returns a list of `tracker.Face`.

        seconds: when it was taken, in a film; then faces are followed and their labels steadied from one to the next.
        """
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if seconds is None:
            return Numbering().name(self.follow(self.new_tracker(), gray, None))
        if seconds >= self.end:
            self.tracker, self.successor = self.successor or self.new_tracker(), None
            self.end = (seconds // PART + 1) * PART
            self.numbering.change()
        faces = self.follow(self.tracker, gray, seconds)
        if seconds >= self.end - OVERLAP:
            self.successor = self.successor or self.new_tracker()
            self.numbering.meet(faces, self.follow(self.successor, gray, seconds))
        return self.numbering.name(faces)

    def follow(self, tracker, gray, seconds):
        """What one tracker sees in one frame, gray uint8 (height, width): a list of `Face`, numbered by it."""
        tracks = tracker.find(gray, seconds or 0.0)
        crops = []
        for track in tracker.due(tracks):
            face = crop(gray, track.box)
            # of a picture both views are taken; in a film one at a time, in turn, for smoothing over time unites them
            crops.append(cv2.flip(face, 1) if track.views % 2 else face)
        probabilities = self.classifier.predict_proba(crops, flip_tta=seconds is None, votes=self.votes)
        return tracker.judge(tracks, probabilities, seconds or 0.0)
