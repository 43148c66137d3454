"""What holds for every input, tried on hundreds that a machine makes up."""

import csv
import json
from collections import namedtuple

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expressions import EMOTIONS, UNCERTAIN, UserError
from expressions.cli import escape_unprintable
from expressions.images import crop, decode_image, preprocess_face
from expressions.inference import overlay
from expressions.inference.detector import HaarDetector
from expressions.inference.names import parse_size
from expressions.inference.summary import Summary
from expressions.inference.tables import Table, path_cell
from expressions.inference.tracker import Tracker
from expressions.inference.types import Box, Face
from expressions.model_validation import parse_metadata
from expressions.training import dataset, readers

pytestmark = pytest.mark.faults
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("project")

CODES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # of fer2013.csv
Frame = namedtuple("Frame", "number seconds")
BOXES = st.builds(Box, *[st.integers(-300, 300)] * 2, *[st.integers(1, 300)] * 2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def random_image(height, width, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused_or(read, *arguments):
    """What `read` returns; None where it says in one line what is wrong."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error)
        return None


@given(st.text(st.characters()))
def test_any_text_becomes_one_printable_line(text):
    line = escape_unprintable(text)
    assert line.isprintable() and isinstance(line.encode(), bytes)
    assert not text.isprintable() or line == text


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([None, 1, 3, 4]))
def test_any_image_becomes_one_of_the_network(height, width, channels):
    prepared = preprocess_face(random_image(height, width, channels))
    assert prepared.shape == (48, 48) and prepared.dtype == np.uint8


@given(st.binary(max_size=400), st.integers(0, 60), st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tiff"]))
def test_any_bytes_are_an_image_or_none(noise, place, suffix):
    """Noise alone, and in the middle of a good file."""
    good = cv2.imencode(suffix, random_image(20, 20, 3))[1].tobytes()
    for data in (noise, good[:place] + noise + good[place:], good[:place] + noise):
        image = refused_or(decode_image, data, "me")
        assert image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)


@given(st.binary(max_size=600))
def test_any_bytes_after_a_good_first_line_are_a_table_or_refused(tmp_path, noise):
    (tmp_path / "fer2013.csv").write_bytes(b"emotion,pixels,Usage\n" + noise)
    refused_or(dataset.load, tmp_path / "fer2013.csv")


@given(st.lists(st.tuples(*[st.text(max_size=12)] * 3), max_size=5), st.sampled_from("\n\r;,\t"))
def test_any_fields_are_a_table_or_refused(tmp_path, rows, end):
    lines = [",".join(row) for row in rows]
    text = "\n".join(["emotion,pixels,Usage", *lines, end])
    (tmp_path / "fer2013.csv").write_text(text, encoding="utf-8", errors="replace")
    refused_or(dataset.load, tmp_path)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=12))
def test_a_good_table_comes_back_pixel_by_pixel(tmp_path, rows):
    lines, expected = ["emotion,pixels,Usage"], {"train": [], "validation": []}
    for code, seed, training in rows:
        image = random_image(48, 48, seed=seed)
        lines.append(f"{code},{' '.join(map(str, image.ravel()))},{'Training' if training else 'PublicTest'}")
        expected["train" if training else "validation"].append((EMOTIONS.index(CODES[code]), image))
    (tmp_path / "fer2013.csv").write_text("\n".join(lines))
    splits = readers.read_csv(tmp_path / "fer2013.csv", None).splits
    assert set(splits) == {name for name, images in expected.items() if images}
    for name, split in splits.items():
        assert split.labels.tolist() == [label for label, _ in expected[name]]
        assert all((got == image).all() for got, (_, image) in zip(split.images, expected[name], strict=True))


@given(st.lists(st.lists(st.integers(0, 10), min_size=10, max_size=10), min_size=1, max_size=5))
def test_votes_become_shares(tmp_path, counts):
    columns = [*readers.FERPLUS_COLUMNS, *readers.FERPLUS_OTHERS]
    lines = [f"Training,{number}.png,{','.join(map(str, row))}" for number, row in enumerate(counts)]
    (tmp_path / "fer2013new.csv").write_text("\n".join([f"Usage,Image name,{','.join(columns)}", *lines]))
    shares = readers.read_votes([tmp_path], readers.Tree(tmp_path))[readers.VOTES].sum(axis=1)
    np.testing.assert_allclose(shares, [float(any(row)) for row in counts], atol=1e-6)


@given(st.text(max_size=40) | JSON.map(json.dumps), st.none() | st.text(max_size=40) | JSON.map(json.dumps))
def test_any_description_of_a_network_is_refused(metadata, config):
    """None of these is a network by chance."""
    with pytest.raises(UserError):
        parse_metadata(metadata, config, {})


@given(JSON, st.sampled_from(["labels", "scaling", "temperature", "fold", "votes"]))
def test_any_metadata_of_a_good_network_is_taken_or_refused(value, name):
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 48, 48, 1], "name": "input"}},
        {"class_name": "Flatten", "config": {"name": "flat"}},
    ]
    config = {"class_name": "Sequential", "config": {"name": "small", "layers": layers}}
    metadata = {"labels": ["a", "b"], "scaling": "unit"} | {name: value}
    said = refused_or(parse_metadata, json.dumps(metadata), json.dumps(config), {})
    assert said is None or set(said[0]) == set(metadata)


@given(BOXES, st.integers(1, 200), st.integers(1, 200), st.sampled_from([None, 3]))
def test_a_crop_has_the_size_of_its_box_and_the_pixels_below_it(box, height, width, channels):
    frame = random_image(height, width, channels)
    part = crop(frame, box)
    assert part.shape == (box.height, box.width, *frame.shape[2:])
    for row, column in ((0, 0), (box.height - 1, box.width - 1), (box.height // 2, box.width // 2)):
        y, x = np.clip(box.y + row, 0, height - 1), np.clip(box.x + column, 0, width - 1)
        assert (part[row, column] == frame[y, x]).all()


@settings(max_examples=60)
@given(st.lists(BOXES, max_size=6), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.data())
def test_faces_anywhere_are_drawn_into_a_copy(boxes, height, width, bars, data):
    frame = random_image(height, width, 3)
    before, chances = frame.copy(), np.full(7, 1 / 7, np.float32)
    labels = data.draw(st.lists(st.sampled_from([*EMOTIONS, UNCERTAIN]), min_size=len(boxes), max_size=len(boxes)))
    faces = [Face(box, label, 0.5, 1, chances) for box, label in zip(boxes, labels, strict=True)]
    drawn = overlay.Annotator(EMOTIONS, bars).draw(frame, faces)
    assert drawn.shape == frame.shape and drawn.dtype == np.uint8 and (frame == before).all()


@pytest.fixture(scope="module")
def detector():
    return HaarDetector(ROOT / "haarcascade_frontalface_default.xml")


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 160), st.integers(1, 160), st.floats(-5, 60), st.integers(0, 2)),
        min_size=1,
        max_size=6,
    )
)
def test_a_tracker_takes_frames_of_any_size_at_any_time(detector, frames):
    """Backwards too, as where the clock of a camera is set."""
    tracker = Tracker(detector)
    for height, width, seconds, seed in frames:
        gray = random_image(height, width, seed=seed)
        tracks = tracker.update(gray, seconds)
        for track in tracker.select_for_classification():
            track.update_expression(np.full(7, 1 / 7, np.float32), seconds)
        faces = [track.to_face(EMOTIONS) for track in tracks]
        numbers = [face.track_id for face in faces]
        assert len(set(numbers)) == len(numbers) and all(number > 0 for number in numbers)
        assert all(face.box.width > 0 and abs(sum(face.probabilities) - 1) < 1e-5 for face in faces)


@given(st.text(st.characters(), max_size=20), BOXES, st.floats(0, 1e6), st.integers(1, 10**9), st.integers(0, 5))
def test_a_row_comes_back_as_it_was_written(tmp_path, name, box, seconds, number, count):
    chances = tuple(np.random.default_rng(count).dirichlet(np.ones(7)).tolist())
    faces = [Face(box, "happy", chances[3], number, chances)] * count
    for suffix in ("csv", "jsonl"):
        with Table(tmp_path / f"rows.{suffix}", EMOTIONS, overwrite=True) as table:
            table.write(name, Frame(number, seconds), faces)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").split("\n") if line]
    assert len(rows) == len(lines) == count
    for row in [*rows, *lines]:
        assert row["source"] == path_cell(name.encode(errors="backslashreplace").decode())
        assert [int(row[key]) for key in ("frame", "track", *Box._fields)] == [number, number, *box]
        assert float(row["seconds"]) == round(seconds, 3)
        assert [float(row[label]) for label in EMOTIONS] == [round(chance, 4) for chance in chances]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.floats(-1e3, 1e6), st.lists(st.sampled_from([*EMOTIONS, UNCERTAIN]), max_size=3)
        )
    )
)
def test_a_summary_of_anything_is_some_lines(frames):
    summary = Summary()
    for number, (source, seconds, labels) in enumerate(frames):
        faces = [Face(Box(0, 0, 9, 9), label, 0.5, index, ()) for index, label in enumerate(labels)]
        summary.add(source, Frame(number, seconds), faces, is_image=False)
    assert isinstance(summary.describe(), str) and len(summary.describe().splitlines()) <= 6


@given(st.text(max_size=12) | st.from_regex("[0-9]{1,6}x[0-9]{1,6}", fullmatch=True))
def test_any_size_is_one_or_refused(text):
    size = refused_or(parse_size, text)
    assert size is None or (min(size) >= 1 and max(size) < 10**5)
