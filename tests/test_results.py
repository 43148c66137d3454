"""Tables of what was seen, and the summary of who showed what for how long."""

import csv
import json
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from expressions import EMOTIONS, UserError
from expressions.inference.summary import Summary
from expressions.inference.tables import COLUMNS, Table


class Frame(NamedTuple):
    number: int
    seconds: float


class Face(NamedTuple):
    track_id: int
    label: str
    box: tuple = (1, 2, 30, 40)
    confidence: float = 0.5
    probabilities: np.ndarray = np.float32([0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_row_a_face_a_frame(tmp_path, suffix):
    path = tmp_path / f"seen.{suffix}"
    with Table(path, EMOTIONS) as table:
        table.write("video, one.mp4", Frame(0, 0.0), [Face(1, "angry"), Face(2, "sad")])
        table.write("video, one.mp4", Frame(1, 1 / 30), [])
        table.write("video, one.mp4", Frame(2, 2 / 30), [Face(2, "sad")])
        text = path.read_text()  # already there while the table is open
    rows = (
        list(csv.DictReader(text.splitlines())) if suffix == "csv" else [json.loads(row) for row in text.splitlines()]
    )
    assert [list(row) for row in rows] == [[*COLUMNS, *EMOTIONS]] * 3
    assert [(int(row["frame"]), int(row["track"]), row["label"]) for row in rows] == [
        (0, 1, "angry"), (0, 2, "sad"), (2, 2, "sad"),
    ]  # fmt: skip
    last = rows[-1]
    assert last["source"] == "video, one.mp4" and float(last["seconds"]) == pytest.approx(0.067)
    assert [int(last[name]) for name in ("x", "y", "width", "height")] == [1, 2, 30, 40]
    assert float(last["confidence"]) == float(last["angry"]) == 0.5 and float(last["surprise"]) == 0


@pytest.mark.faults
def test_a_file_that_is_there_is_kept_unless_asked(tmp_path):
    path = tmp_path / "seen.csv"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        Table(path, EMOTIONS)
    assert path.read_text() == "precious"
    with Table(path, EMOTIONS, overwrite=True) as table:
        assert path.read_text() == "precious"  # until there is something better
        table.write("0", Frame(0, 0.0), [])
        assert path.read_text().startswith("source,")
    with pytest.raises(UserError, match="can't be written"):
        Table(tmp_path / "none" / "seen.csv", EMOTIONS)


def show(summary, name, labels_by_person, rate=10):
    for number in range(max(map(len, labels_by_person.values()))):
        faces = [Face(person, labels[number]) for person, labels in labels_by_person.items() if number < len(labels)]
        summary.add(name, Frame(number, number / rate), faces, is_image=False)


def test_shares_of_time_for_each_person():
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 31 + ["sad"] * 10, 2: ["neutral"] * 21})
    assert summary.describe() == "person 1, 4.0 s: happy 75%, sad 25%\nperson 2, 2.0 s: neutral 100%"
    show(summary, "b.mp4", {1: ["angry"] * 11})
    assert summary.describe().splitlines()[2] == "b.mp4, person 1, 1.0 s: angry 100%"


def test_frames_that_come_late_count_for_longer():
    summary = Summary()
    for number, (seconds, label) in enumerate([(5.0, "sad"), (5.1, "sad"), (6.0, "happy"), (6.1, "sad")]):
        summary.add("0", Frame(number, seconds), [Face(1, label)], is_image=False)
    assert summary.describe() == "person 1, 1.1 s: happy 82%, sad 18%"


def test_time_without_anyone_and_a_source_that_begins_anew_count_for_nobody():
    summary = Summary()
    for start, person in ((0, 1), (600, 2), (0, 2)):
        for number in range(10):
            summary.add("0", Frame(number, start + number / 10), [Face(person, "sad")], is_image=False)
    assert summary.describe() == "person 2, 1.8 s: sad 100%\nperson 1, 0.9 s: sad 100%"
    assert [end - start for _, start, end in summary.intervals["0", 2]] == pytest.approx([0.9, 0.9])


def test_many_people_and_images():
    summary = Summary()
    show(summary, "a.mp4", {person: ["happy"] * (5 + person) for person in range(1, 10)})
    lines = summary.describe().splitlines()
    assert lines[0].startswith("person 9") and lines[-1] == "and 4 others" and len(lines) == 6
    images = Summary()
    for name in ("a.png", "b.png"):
        images.add(name, Frame(0, 0.0), [Face(1, "happy"), Face(2, "sad")], is_image=True)
    assert images.describe() == "4 faces in pictures: happy 50%, sad 50%"
    show(images, "a.mp4", {1: ["sad"] * 51} | dict.fromkeys(range(2, 9), ["sad"]))  # seven in one frame alone
    assert images.describe() == "person 1, 5.0 s: sad 100%\n4 faces in pictures: happy 50%, sad 50%"
    assert Summary().describe() == ""


def test_the_timeline_shows_each_stretch_in_its_colour(tmp_path):
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 30 + ["sad"] * 10, 2: ["sad"] * 5})
    assert [label for label, _, _ in summary.intervals["a.mp4", 1]] == ["happy", "sad"]
    summary.draw(tmp_path / "timeline.png", {"happy": (66, 228, 240), "sad": (178, 114, 0)})
    image = cv2.imread(str(tmp_path / "timeline.png"))
    happy, sad = ((image == colour).all(axis=2).sum() for colour in ((66, 228, 240), (178, 114, 0)))
    assert happy > 1.5 * sad > 0  # 2.9 seconds against 1.4


@pytest.mark.faults
def test_a_timeline_of_nobody(tmp_path):
    Summary().draw(tmp_path / "timeline.png", {})
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None


def test_what_is_kept_of_a_long_video_doesn_t_grow_with_its_frames():
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 5000})
    assert len(summary.intervals["a.mp4", 1]) == 1
