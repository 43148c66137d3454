"""From a frame to the faces in it, however many there are and however they lie."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
from conftest import read_rows, write_video
from samples import FRAMES

import realtime_detect
from expressions import EMOTIONS, UNCERTAIN, UserError
from expressions.classifier import Classifier
from expressions.inference import overlay
from expressions.inference.recognizer import ExpressionRecognizer
from expressions.inference.sources import Source
from expressions.training import synthetic


def test_a_video_may_begin_at_any_time_and_jump(trained, frame):
    """The seconds of `time.time()`, say: some millions of minutes after the first one."""
    labeller = realtime_detect.Labeller(trained)

    def numbers(start):
        return {face.track_id for step in range(10) for face in labeller.recognize(frame, start + step / 10)}

    assert (numbers(0), numbers(1.7e9), numbers(1.7e9 + 59.5)) == ({1}, {2}, {3})


def test_the_label_drawn_is_the_likeliest_one_of_the_face(tmp_path, trained, photo, frame, monkeypatch):
    """Whatever the network says of a face stands on it: here that all faces are disgusted."""
    drawn = []
    monkeypatch.setattr(overlay.Annotator, "draw", lambda self, frame, faces: drawn.extend(faces) or frame)
    certain = np.eye(7, dtype=np.float32)[EMOTIONS.index("disgust")]
    monkeypatch.setattr(
        Classifier,
        "predict_proba",
        lambda self, faces, flip_tta, votes: np.tile(certain, (len(faces), 1)),
    )
    arguments = ["--source", str(photo), "--model", str(trained), "--save", str(tmp_path / "x.png"), "--no-window"]
    assert realtime_detect.main(arguments) == 0
    assert [(face.label, face.confidence) for face in drawn] == [("disgust", 1.0)]


KINDS = [kind for kind in FRAMES if kind != "8K"]


@pytest.mark.faults
@pytest.mark.parametrize("kind", [*KINDS, pytest.param("8K", marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".png", ".avi"])
def test_frames_without_a_face(detect, tmp_path, kind, suffix):
    """They come back as they are, and the table has no row; nothing is said."""
    source, saved, image = tmp_path / f"source{suffix}", tmp_path / f"saved{suffix}", FRAMES[kind]
    if suffix == ".png":
        cv2.imwrite(str(source), image)
    else:
        write_video(source, [image] * 2)
    status, _, error = detect("--source", source, "--save", saved, "--csv", tmp_path / "seen.csv", "--bars")
    assert status == 0 and error == "" and read_rows(tmp_path / "seen.csv") == []
    with Source(saved) as source:
        shapes = [frame.image.shape for frame in source]
    if suffix == ".png":
        assert shapes == [image.shape]
    else:  # a video has no odd sizes
        assert shapes == [tuple(length + length % 2 for length in image.shape[:2]) + (3,)] * 2


@pytest.mark.faults
@pytest.mark.slow
def test_two_hundred_faces(detect, tmp_path):
    random, image = np.random.default_rng(0), np.full((1280, 1600, 3), 128, np.uint8)
    for index in range(200):
        top, left = 8 + 125 * (index // 20), 5 + 79 * (index % 20)
        image[top : top + 72, left : left + 72] = synthetic.draw_face(EMOTIONS[index % 7], random, 72)[..., None]
    large = cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)  # as the detector sees it
    cv2.imwrite(str(tmp_path / "crowd.png"), image)
    table = tmp_path / "seen.csv"
    status, said, _ = detect(
        "--source", tmp_path / "crowd.png", "--save", tmp_path / "out.png", "--csv", table, "--bars"
    )
    assert status == 0 and large.shape[1] == 640 and f"1 image, {len(read_rows(table))} faces" in said
    assert len(read_rows(table)) > 20 and cv2.imread(str(tmp_path / "out.png")).shape == image.shape


@pytest.mark.faults
@pytest.mark.parametrize("left, top", [(-60, 120), (460, 120), (200, -50), (200, 300), (-60, -50)])
def test_a_face_that_the_border_cuts(detect, tmp_path, frame, left, top):
    """Whatever is found of it, its box and bars are drawn, in an image and in a video."""
    face, image = frame[120:360, 200:440], np.full((480, 640, 3), 128, np.uint8)
    part = image[max(0, top) : top + 240, max(0, left) : left + 240]
    part[:] = face[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    cv2.imwrite(str(tmp_path / "me.png"), image)
    write_video(tmp_path / "me.avi", [image] * 12)
    status, _, error = detect("--source", tmp_path / "me.*", "--save", tmp_path / "out", "--bars")
    assert (status, error) == (0, "") and sorted(os.listdir(tmp_path / "out")) == ["me.avi", "me.png"]


@pytest.mark.faults
def test_a_model_of_nan(detect, tmp_path, trained, photo):
    broken = shutil.copy(trained, tmp_path / "broken.h5")
    with h5py.File(broken, "r+") as file:

        def spoil(_, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                item[...] = np.nan

        file.visititems(spoil)
    old = tmp_path / "seen.csv"
    old.write_text("precious")
    result = detect("--model", broken, "--source", photo, "--csv", old, "--save", tmp_path / "o.png", "--overwrite")
    assert result[0] == 2 and result[2].count("\n") == 1 and "Nan" in result[2].title(), result
    assert old.read_text() == "precious" and not (tmp_path / "o.png").exists()


def test_a_resting_face_becomes_neutral_and_a_smile_stays_happy(trained, frame, monkeypatch):
    """Key n: of a person whose face at rest is read as sad. The network's answers are made up."""
    answers = {"rest": np.full(7, 0.02), "smile": np.full(7, 0.04)}
    answers["rest"][[EMOTIONS.index("sad"), EMOTIONS.index("neutral")]] = 0.6, 0.3
    answers["smile"][[EMOTIONS.index("happy"), EMOTIONS.index("neutral")]] = 0.6, 0.2
    shows, recognizer = ["rest"], realtime_detect.ExpressionRecognizer(trained)

    def predict_proba(self, faces, flip_tta, votes):
        return np.tile(np.float32(answers[shows[0]]), (len(faces), 1))

    monkeypatch.setattr(Classifier, "predict_proba", predict_proba)
    clock = iter(np.arange(1000) / 20)

    def labels(what, frames=30):
        shows[0] = what
        return [face.label for _ in range(frames) for face in recognizer.recognize(frame, next(clock))]

    recognizer.reset(segment_end=5.8)  # then another tracker goes on
    recognizer.toggle_neutral()  # without a face: nothing happens
    assert recognizer.neutral_status == "" and set(labels("rest")) == {"sad"}
    recognizer.toggle_neutral()
    assert labels("rest", 10)[-1] == "sad" and "hold still" in recognizer.neutral_status
    assert labels("rest")[-1] == "neutral" and "on" in recognizer.neutral_status
    assert labels("smile")[-1] == "happy" and labels("rest")[-1] == "neutral"
    recognizer.toggle_neutral()
    assert recognizer.neutral_status == "" and labels("rest")[-1] == "sad"


def test_programs_written_for_earlier_versions_go_on(trained, frame):
    labeller, recognizer = realtime_detect.Labeller(trained), realtime_detect.ExpressionRecognizer(trained)
    for seconds in (0.0, 0.1):
        old, new = labeller.label(frame, seconds), recognizer.recognize(frame, seconds)
        assert [(face.number, face.box, face.label) for face in old] == [(f.track_id, f.box, f.label) for f in new]
        assert len(new) > 0
    labeller.start()
    assert [face.number for face in labeller.label(frame, 0.0)][:1] == [1]


def test_several_threads_get_what_one_gets(trained, frame):
    recognizer = realtime_detect.ExpressionRecognizer(trained)
    images = [frame, cv2.resize(frame, None, fx=0.7, fy=0.7), frame[:, : frame.shape[1] // 2]] * 5

    def seen(image):
        return [(face.box, face.label, face.confidence) for face in recognizer.recognize(image)]

    alone = [seen(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(seen, images)) == alone
    assert any(alone)


@pytest.mark.faults
def test_a_model_with_a_class_called_as_what_is_said_of_unclear_faces(monkeypatch):
    labels = ("happy", UNCERTAIN)
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: SimpleNamespace(labels=labels, shown_votes=0.0))
    with pytest.raises(UserError, match="has a class called uncertain"):
        ExpressionRecognizer()
