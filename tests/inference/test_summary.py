"""The summary of who showed what for how long, and its timeline."""

import os
from types import SimpleNamespace

import cv2
import pytest
from conftest import fill, one_line, slow_but
from samples import Face, Frame

from expressions.inference.summary import Summary


def show(summary, name, labels_by_person, rate=10):
    for number in range(max(map(len, labels_by_person.values()))):
        faces = [Face(person, labels[number]) for person, labels in labels_by_person.items() if number < len(labels)]
        summary.add(name, Frame(number, number / rate), faces, is_image=False)


def test_shares_of_time_for_each_person():
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 31 + ["sad"] * 10, 2: ["neutral"] * 21})
    assert summary.describe() == "track 1, 4.0 s: happy 75%, sad 25%\ntrack 2, 2.0 s: neutral 100%"
    show(summary, "b.mp4", {1: ["angry"] * 11})
    assert summary.describe().splitlines()[2] == "b.mp4, track 1, 1.0 s: angry 100%"


def test_frames_that_come_late_count_for_longer():
    summary = Summary()
    for number, (seconds, label) in enumerate([(5.0, "sad"), (5.1, "sad"), (6.0, "happy"), (6.1, "sad")]):
        summary.add("0", Frame(number, seconds), [Face(1, label)], is_image=False)
    assert summary.describe() == "track 1, 1.1 s: happy 82%, sad 18%"


def test_time_without_anyone_and_a_source_that_begins_anew_count_for_nobody():
    summary = Summary()
    for start, person in ((0, 1), (600, 2), (0, 2)):
        for number in range(10):
            summary.add("0", Frame(number, start + number / 10), [Face(person, "sad")], is_image=False)
    assert summary.describe() == "track 2, 1.8 s: sad 100%\ntrack 1, 0.9 s: sad 100%"
    assert [end - start for _, start, end in summary.intervals["0", 2]] == pytest.approx([0.9, 0.9])


def test_many_people_and_images():
    summary = Summary()
    show(summary, "a.mp4", {person: ["happy"] * (5 + person) for person in range(1, 10)})
    lines = summary.describe().splitlines()
    assert lines[0].startswith("track 9") and lines[-1] == "and 4 others" and len(lines) == 6
    images = Summary()
    for name in ("a.png", "b.png"):
        images.add(name, Frame(0, 0.0), [Face(1, "happy"), Face(2, "sad")], is_image=True)
    assert images.describe() == "2 images, 4 faces: happy 50%, sad 50%"
    images.add("c.png", Frame(0, 0.0), [], is_image=True)
    show(images, "a.mp4", {1: ["sad"] * 51} | dict.fromkeys(range(2, 9), ["sad"]))  # seven in one frame alone
    assert images.describe() == "track 1, 5.0 s: sad 100%\n3 images, 4 faces, 1 without one: happy 50%, sad 50%"
    assert Summary().describe() == ""


def test_pictures_without_faces_are_counted():
    summary = Summary()
    summary.add("a.png", Frame(0, 0.0), [], is_image=True)
    assert summary.describe() == "1 image, 0 faces, 1 without one"
    summary.add("b.png", Frame(0, 0.0), [Face(1, "happy")], is_image=True)
    assert summary.describe() == "2 images, 1 face, 1 without one: happy 100%"


def test_the_timeline_shows_each_stretch_in_its_colour(tmp_path):
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 30 + ["sad"] * 10, 2: ["sad"] * 5})
    assert [label for label, _, _ in summary.intervals["a.mp4", 1]] == ["happy", "sad"]
    summary.draw(tmp_path / "timeline.png", {"happy": (66, 228, 240), "sad": (178, 114, 0)})
    image = cv2.imread(str(tmp_path / "timeline.png"))
    happy, sad = ((image == colour).all(axis=2).sum() for colour in ((66, 228, 240), (178, 114, 0)))
    assert happy > 1.5 * sad > 0  # 2.9 seconds against 1.4


def test_the_timeline_names_file_and_tracks_in_order_and_ends_with_the_video(tmp_path, monkeypatch):
    """The one who is seen longest came last, and has gone at the end."""
    from matplotlib.figure import Figure

    summary, figures = Summary(), []
    show(summary, "in/a$b.mp4", {1: ["sad"] * 5})
    for number in range(5, 61):
        faces = [Face(7, "happy")] if number < 30 else []
        summary.add("in/a$b.mp4", Frame(number, number / 10), faces, is_image=False)
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **b: figures.append(self) or save(self, *a, **b))
    summary.draw(tmp_path / "one.png", {})
    show(summary, "in/c.mp4", {1: ["sad"] * 5})
    summary.draw(tmp_path / "two.png", {})
    one, two = (figure.axes[0] for figure in figures)
    assert one.get_title() == "Expressions in in/a$b.mp4" and two.get_title() == "Expressions in 2 videos"
    assert [text.get_text() for text in one.get_yticklabels()] == ["track 1", "track 7"]
    names = ["in/a$b.mp4, track 1", "in/a$b.mp4, track 7", "in/c.mp4, track 1"]
    assert [text.get_text() for text in two.get_yticklabels()] == names
    assert one.get_xlim() == two.get_xlim() == (0, 6)


@pytest.mark.faults
def test_a_timeline_of_nobody(tmp_path):
    Summary().draw(tmp_path / "timeline.png", {})
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None


def test_what_is_kept_of_a_long_video_doesn_t_grow_with_its_frames():
    summary = Summary()
    show(summary, "a.mp4", {1: ["happy"] * 5000})
    assert len(summary.intervals["a.mp4", 1]) == 1


@pytest.mark.faults
@pytest.mark.parametrize("suffix", slow_but([".png", ".pdf", ".svg"], ".png"))
def test_the_disk_is_full_for_a_summary(detect, video, small_disk, suffix):
    timeline = small_disk / f"timeline{suffix}"
    timeline.write_text("precious")
    fill(small_disk, 0)
    status, said, error = detect("--source", video, "--summary", timeline, "--overwrite")
    assert one_line((status, said, error), f"--summary {timeline}", "No space left") and "track 1" in said
    assert timeline.read_text() == "precious" and len(os.listdir(small_disk)) == 2


@pytest.mark.faults
def test_a_timeline_with_a_formula_for_a_name(tmp_path):
    """matplotlib takes what stands between dollars for one, and raised where it is none."""
    summary = Summary()
    for name in ("$\\frac{$.mp4", "b\n\udce9.mp4"):
        for number in range(3):
            faces = [SimpleNamespace(track_id=1, label="happy")]
            summary.add(name, SimpleNamespace(number=number, seconds=number / 10), faces, is_image=False)
    summary.draw(tmp_path / "timeline.png", {})
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None and "b\\n\\udce9.mp4, track 1" in summary.describe()
