"""The drawing: on a copy, in the right place, legible everywhere, and not over a face while there is room elsewhere."""

import cv2
import numpy as np
import pytest

from expressions import EMOTIONS, UNCERTAIN
from expressions.inference import overlay
from expressions.inference.overlay import Annotator
from expressions.inference.types import Box, Face

SIZES = [(240, 320), (480, 640), (1080, 1920)]  # height and width


def draw(frame, faces, labels=EMOTIONS, bars=False):
    return Annotator(labels, bars).draw(frame, faces)


def covers(one, other):
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def random_faces(random, size, count):
    """At most so many faces of any size that don't overlap; some reach out of the frame."""
    boxes = []
    for side in random.uniform(0.08, 0.5, 100) * size[0]:
        x, y = random.uniform(-side / 4, np.subtract(size[::-1], side * 3 / 4))
        box = Box(*map(int, (x, y, side, side)))
        if len(boxes) < count and not any(covers(box, other) for other in boxes):
            boxes.append(box)
    rows = random.dirichlet(np.full(7, 0.5), len(boxes))
    return [
        Face(box, EMOTIONS[row.argmax()], float(row.max()), number, tuple(row))
        for number, (box, row) in enumerate(zip(boxes, rows, strict=True), 1)
    ]


def has_room(size, plate, boxes):
    """Whether a plate of this size has a place in the frame where it covers none of the boxes."""
    taken = np.zeros(size, np.uint8)
    for x, y, width, height in boxes:
        taken[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = 1
    sums = cv2.integral(taken)
    high, wide = plate.height, plate.width
    return (sums[high:, wide:] - sums[high:, :-wide] - sums[:-high, wide:] + sums[:-high, :-wide] == 0).any()


@pytest.mark.parametrize("size", [*SIZES, (120, 160)])
def test_draws_on_a_copy_at_any_size(size):
    height, width = size
    frame = np.full((height, width, 3), 90, np.uint8)
    box = Box(width // 4, height // 3, width // 4, height // 3)
    image = draw(frame, [Face(box, "happy", 0.93, 1, ())])
    assert (frame == 90).all() and image.shape == frame.shape
    coloured = (image == overlay.COLOURS["happy"]).all(axis=2)
    assert coloured[box.y + box.height // 2, : box.x + box.width // 2].sum() >= 2  # the left line of the box
    inside = image[box.y + box.height // 2, box.x + box.width // 2]
    assert (inside == 90).all()  # the face itself stays visible


def test_no_face_changes_nothing():
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    np.testing.assert_array_equal(draw(frame, []), frame)


@pytest.mark.parametrize("box", [Box(0, 0, 80, 80), Box(560, 0, 80, 80), Box(300, 400, 80, 80)])
def test_a_label_at_the_edge_stays_in_the_image(box):
    """As many pixels of the plate are seen at the edge as in the middle of the frame."""
    frame = np.zeros((480, 640, 3), np.uint8)

    def plate(at):
        image = draw(frame, [Face(at, "surprise", 1.0, 1, ())])
        return (image == overlay.COLOURS["surprise"]).all(axis=2).sum()

    assert plate(box) > 0.9 * plate(Box(280, 200, 80, 80))


def test_the_labels_of_another_data_set_get_colours_of_their_own():
    labels = ("bored", "happy", "tired", "awake", "in love")
    colours = overlay.palette(labels)
    assert len(set(colours.values())) == 6 and colours["happy"] == overlay.COLOURS["happy"]
    image = draw(np.zeros((200, 200, 3), np.uint8), [Face(Box(50, 80, 60, 60), "tired", 0.5, 1, ())], labels)
    assert (image == colours["tired"]).all(axis=2).any()
    assert len(overlay.palette([str(number) for number in range(99)])) == 100
    assert overlay.palette(EMOTIONS) == overlay.COLOURS


@pytest.mark.parametrize("size", SIZES)
def test_the_bar_has_a_part_for_each_expression_as_long_as_it_is_likely(size):
    face = Face(Box(100, 100, 60, 60), UNCERTAIN, 0.5, 1, (0.5, 0.0, 0.0, 0.25, 0.25, 0.0, 0.0))
    annotator, frame = Annotator(EMOTIONS, bars=True), np.zeros((*size, 3), np.uint8)
    image, [plate] = annotator.draw(frame, [face]), annotator.place_plates(frame, [face])
    parts = {label: (image == overlay.COLOURS[label]).all(axis=2) for label in ("angry", "happy", "neutral", "fear")}
    longest = {label: part.sum(axis=1).max() for label, part in parts.items()}
    assert longest["angry"] == pytest.approx(2 * longest["happy"], abs=2) and longest["fear"] == 0
    assert longest["angry"] + longest["happy"] + longest["neutral"] == pytest.approx(plate.width, abs=2)
    rows, columns = np.nonzero(parts["angry"])
    assert len(set(rows)) >= 2 and plate.y < rows.min() <= rows.max() < plate.y + plate.height and columns.min() < 104


@pytest.mark.parametrize("size", SIZES)
def test_no_plate_covers_another_or_a_face_that_it_need_not_cover(size):
    """In 200 random layouts of one to eight faces."""
    random, line = np.random.default_rng(size[0]), overlay.MIN_LINE + round(4 * size[0] / 800)
    covering, frame = 0, np.full((*size, 3), 200, np.uint8)
    for layout in range(200):
        faces, annotator = random_faces(random, size, 1 + layout % 8), Annotator(EMOTIONS, bars=True)
        boxes = [face.box for face in faces]
        plates = annotator.place_plates(frame, faces)
        for number, plate in enumerate(plates):
            others = plates[:number] + plates[number + 1 :]
            assert not any(covers(plate, other) for other in others)
            assert plate.x >= 0 <= plate.y and plate.x + plate.width <= size[1] and plate.y + plate.height <= size[0]
            if any(covers(plate, box) for box in boxes):
                covering += 1
                assert not has_room(size, plate, boxes + others), (layout, plate)
        if size[0] < 1000 and not any(covers(plate, box) for plate in plates for box in boxes):
            image = annotator.draw(frame, faces)
            for x, y, width, height in boxes:  # neither plates nor the lines to them
                inner = image[max(0, y + line) : y + height - line, max(0, x + line) : x + width - line]
                assert (inner == 200).all(), layout
    assert covering < {240: 250, 480: 40, 1080: 1}[size[0]]  # of about 800 plates


def test_a_plate_stays_at_its_place_while_that_is_free():
    """A face that is held about where there is just room above it, and one that fills the frame."""
    random, annotator = np.random.default_rng(0), Annotator(EMOTIONS, bars=True)
    frame, sides, corners = np.zeros((240, 320, 3), np.uint8), [], []
    for _ in range(450):
        x, y = random.integers(0, 9, 2)
        face = Face(Box(140 + x, 16 + y, 90, 90), "happy", 0.5, 1, (1, 0, 0, 0, 0, 0, 0))
        sides.append(np.sign(annotator.place_plates(frame, [face])[0].y - face.box.y))
        large = face._replace(box=Box(x - 4, y - 4, 320, 240), track_id=2)
        corners.append(annotator.place_plates(frame, [large])[0][:2])
    assert (np.diff(sides) != 0).sum() <= 1 and len(set(corners)) <= 9  # it follows the face, at the same side


def test_a_plate_goes_where_it_is_free_from_a_face_that_comes():
    annotator, frame = Annotator(EMOTIONS), np.zeros((480, 640, 3), np.uint8)
    first = Face(Box(100, 200, 100, 100), "happy", 0.5, 1, ())
    above = annotator.place_plates(frame, [first])[0]
    assert above.y + above.height == 200
    second = Face(Box(120, 130, 60, 60), "sad", 0.5, 2, ())
    plates = annotator.place_plates(frame, [second, first])
    assert not any(covers(plate, face.box) for plate in plates for face in (first, second))
    assert annotator.place_plates(frame, [first]) == plates[1:]  # and stays there when it has gone
    assert len(annotator.places) == 2
    for number in range(500):
        annotator.place_plates(frame, [first, second._replace(track_id=number)])
    assert len(annotator.places) <= overlay.MAX_PLACES + 2 and annotator.place_plates(frame, [first]) == plates[1:]


def test_a_plate_that_lies_elsewhere_has_a_line_to_its_face():
    """A face among eight others; the line runs behind them."""
    frame = np.zeros((480, 640, 3), np.uint8)
    boxes = [Box(170 + 104 * column, 90 + 104 * row, 99, 99) for column in range(3) for row in range(3)]
    boxes.append(boxes.pop(4))
    faces = [Face(box, "happy", 0.5, number, ()) for number, box in enumerate(boxes[:8])]
    faces.append(Face(boxes[8], "angry", 0.5, 8, ()))
    annotator = Annotator(EMOTIONS)
    image, plate = annotator.draw(frame, faces), annotator.place_plates(frame, faces)[-1]
    line = (image == overlay.COLOURS["angry"]).all(axis=2)
    for x, y, width, height in (plate, boxes[8]):
        line[y - 3 : y + height + 3, x - 3 : x + width + 3] = False
    assert not any(covers(plate, box) for box in boxes) and line.any()
    for x, y, width, height in boxes:
        assert not image[y + 4 : y + height - 4, x + 4 : x + width - 4].any()


def test_plates_keep_clear_of_the_status_line():
    frame = np.zeros((240, 320, 3), np.uint8)
    status = overlay.place_status(frame, "q quit  s save  p pause")[0]
    low = Face(Box(0, 10, 200, 200), "happy", 0.5, 1, ())
    annotator = Annotator(EMOTIONS)
    assert annotator.place_plates(frame, [low])[0].y >= 210
    assert not covers(annotator.place_plates(frame, [low], [status])[0], status)


def test_number_and_confidence_are_written_and_an_uncertain_face_has_none():
    """Told by the width of the text on the plate."""

    def width(**values):
        face = Face(Box(200, 200, 50, 50), "happy", 0.5, 1, ())._replace(**values)
        image = draw(np.zeros((480, 640, 3), np.uint8), [face])[183:197, 200:]
        colour = overlay.COLOURS.get(face.label, overlay.OTHER_COLOUR)
        return np.flatnonzero((image.any(axis=2) & (image != colour).any(axis=2)).any(axis=0)).max()

    assert width(track_id=33) > width(track_id=3) and width(label=UNCERTAIN) < width(label="unnerving")


@pytest.mark.parametrize("size", [(240, 320), (1080, 1920)])
def test_the_line_of_keys_stands_whole_in_the_lower_left_corner(size):
    image, text = np.zeros((*size, 3), np.uint8), "25 frames/s   q quit  s save  p pause  b bars  m mirror  h hide"
    overlay.draw_status(image, text)
    drawn = (image > 0).any(axis=2)
    assert drawn[-1, 0] and not drawn[: size[0] // 2].any() and not drawn[:, -1].any() and drawn.any(axis=0).sum() > 200
    x, y, width, height = overlay.place_status(image, text)[0]
    assert drawn.any(axis=0).sum() == width and drawn.any(axis=1).sum() == height == size[0] - y and x == 0


@pytest.mark.faults
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), pytest.param((4320, 7680), marks=pytest.mark.slow)])
def test_any_box_is_drawn_on_any_frame(size):
    """Boxes that lie outside, or that are larger than the frame, on frames with no room for a word."""
    for box in (Box(0, 0, 1, 1), Box(-50, -40, 100, 100), Box(size[1] - 5, 0, 300, 300), Box(-9, 0, 10**6, 10**6)):
        faces = [Face(box, "happy", 1.0, number, np.full(7, 1 / 7)) for number in (1, 2)]
        image = draw(np.zeros((*size, 3), np.uint8), faces, bars=True)
        overlay.draw_status(image, "25 frames/s   q quit")
        assert image.shape == (*size, 3)
