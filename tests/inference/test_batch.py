"""Many files by many workers: the rows of one, each file once, whatever dies."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import command, fill, heed_ctrl_c, needs, one_line, read_rows, run, wait_for, write_video
from samples import RATE, write_scene
from tqdm import tqdm

from expressions import UserError
from expressions.inference import jobs
from expressions.inference.batch import Coordinator, Index
from expressions.inference.sources import Source
from expressions.inference.tracker import SEGMENT_OVERLAP, SEGMENT_SECONDS

OTHERS = ",".join([*Index.COLUMNS, "made_by"]) + "\n" + "x," * len(Index.COLUMNS) + "others\n"  # an index


@pytest.fixture(scope="module")
def material(tmp_path_factory, frame):
    """A folder with a video of three parts, a short one, an image, and what is none."""
    folder = tmp_path_factory.mktemp("material")
    write_scene(folder / "long.avi", 2 * SEGMENT_SECONDS + 5)
    write_scene(folder / "short.avi", 3)
    cv2.imwrite(str(folder / "me.png"), frame)
    (folder / "bad.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def expected(material, tmp_path_factory, trained):
    """The rows of each file as one process writes them, into one table."""
    table = tmp_path_factory.mktemp("one") / "seen.csv"
    result = run("realtime_detect.py", "--source", material, "--model", trained, "--csv", table, "--no-window")
    assert result.returncode == 2 and "bad.mp4" in result.stderr
    rows = {}
    for row in read_rows(table):
        rows.setdefault(Path(row["source"]).name, []).append(row)
    return rows


def annotate(material, trained, folder, *arguments):
    return run("realtime_detect.py", "--source", material, "--model", trained, "--csv", folder, *arguments)


def check(folder, expected):
    """All is there, once, and as it should be."""
    index = read_rows(folder / "index.csv")
    assert sorted(Path(row["source"]).name for row in index) == ["long.avi", "me.png", "short.avi"]
    for row in index:
        rows = read_rows(folder / row["result"])
        assert rows == expected[Path(row["source"]).name]
        assert int(row["faces"]) == len(rows) and int(row["people"]) == len({row["track"] for row in rows})
    assert {path.name for path in folder.iterdir()} == {
        "index.csv", "failed.csv", "long.avi.csv", "me.png.csv", "short.avi.csv",
    }  # fmt: skip
    assert [Path(row["source"]).name for row in read_rows(folder / "failed.csv")] == ["bad.mp4"]


@pytest.mark.slow
def test_a_long_video_has_several_parts_and_people_keep_their_numbers(expected):
    """One is there all the time, on the left, and so has the same number on both sides of each seam."""
    left = [row for row in expected["long.avi"] if int(row["x"]) < 120]
    assert len(left) > 0.95 * (2 * SEGMENT_SECONDS + 5) * RATE
    for seam in (SEGMENT_SECONDS, 2 * SEGMENT_SECONDS):
        near = [row for row in left if abs(float(row["seconds"]) - seam) < 2 * SEGMENT_OVERLAP]
        assert len({row["track"] for row in near}) == 1 and len(near) > 0.95 * 4 * SEGMENT_OVERLAP * RATE
    assert len({row["track"] for row in left}) == 3  # and another one after each cut of the video


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(material, expected, trained, tmp_path):
    results = tmp_path / "results"
    result = annotate(material, trained, results, "--workers", 2)
    assert result.returncode == 1, result.stderr
    check(results, expected)
    assert "bad.mp4: not a video" in result.stderr and "1 files could not be done" in result.stderr
    assert "3 files: " in result.stdout

    times = {path: path.stat().st_mtime_ns for path in results.glob("*.avi.csv")}
    os.utime(material / "me.png")  # as if it had been changed
    (results / "short.avi.csv").unlink()
    again = annotate(material, trained, results, "--workers", 1)
    assert again.returncode == 1 and "2 files, 1 done before or named twice:" in again.stdout
    assert (results / "long.avi.csv").stat().st_mtime_ns == times[results / "long.avi.csv"]
    assert read_rows(results / "short.avi.csv") == expected["short.avi"]


@pytest.mark.slow
@pytest.mark.faults
def test_a_video_of_three_frames_that_claims_years(trained, frame, tmp_path):
    video = write_video(tmp_path / "a.avi", [frame] * 3)
    data = video.read_bytes()
    for name, place in ((b"avih", 24), (b"strh", 40)):  # how many frames there are, at ten a second
        at = data.index(name) + place
        assert data[at : at + 4] == struct.pack("<I", 3)
        data = data[:at] + struct.pack("<I", 2**31 - 1) + data[at + 4 :]
    video.write_bytes(data)
    began = time.monotonic()
    result = annotate(video, trained, tmp_path / "results", "--workers", 2)
    assert result.returncode == 0, result.stderr
    [row] = read_rows(tmp_path / "results" / "index.csv")
    assert row["frames"] == "3" and time.monotonic() - began < 60


@needs("ray")
@pytest.mark.slow
def test_ray_writes_what_one_process_writes(material, expected, trained, tmp_path):
    result = annotate(material, trained, tmp_path / "results", "--ray")
    assert result.returncode == 1, result.stderr
    check(tmp_path / "results", expected)


def children(process):
    """The worker processes of a run."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


@pytest.fixture
def started(material, trained, tmp_path):
    """A run of two workers in the background."""
    arguments = "--source", material, "--model", trained, "--csv", tmp_path / "results", "--workers", 2
    process = subprocess.Popen(
        command("realtime_detect.py", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_ctrl_c, cwd="/",
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.faults
def test_workers_that_are_killed(started, expected, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(4):
        wait_for(lambda: started.poll() is not None or len(children(started)) == 2)
        time.sleep(random.uniform(0.3, 1.5))
        if started.poll() is None and (alive := children(started)):
            os.kill(random.choice(alive), signal.SIGKILL)
    output, errors = started.communicate(timeout=120)
    assert started.returncode == 1, errors
    check(tmp_path / "results", expected)


@pytest.mark.faults
def test_a_dangling_link_first_is_one_failure(photo, trained, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("nowhere")
    shutil.copy(photo, tmp_path / "in")
    words = "--source", tmp_path / "in", "--model", trained, "--csv", tmp_path / "out", "--workers", 2
    result = run("realtime_detect.py", *words)
    assert result.returncode == 1 and "a.png" in result.stderr and "1 files: " in result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(started, material, expected, trained, tmp_path, number):
    results = tmp_path / "results"
    wait_for(lambda: list((results / ".parts").glob("*-0.json")))
    workers_then = children(started)
    os.kill(started.pid, number)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[number] and "Traceback" not in errors
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers_then))  # and leaves no one behind
    assert not (results / "long.avi.csv").exists()
    [segment] = (results / ".parts").glob("*-0.json")
    before = segment.stat().st_mtime_ns
    result = annotate(material, trained, results, "--workers", 2)
    assert result.returncode == 1, result.stderr
    assert before < (results / "long.avi.csv").stat().st_mtime_ns
    check(results, expected)


@pytest.mark.slow
@pytest.mark.faults
def test_a_video_that_can_not_be_entered_is_labelled_in_one_go(material, expected, trained, tmp_path, monkeypatch):
    """Entered in its middle, it gives other pictures than when it is read from its start."""
    entered = []

    class Inexact(Source):
        def __init__(self, source, size=None, start=0.0):
            super().__init__(source, size, start)
            self.is_entered = start > 0

        def __iter__(self):
            if self.is_entered:
                entered.append(self.name)
            for frame in super().__iter__():
                yield frame._replace(image=cv2.flip(frame.image, 1)) if self.is_entered else frame

    monkeypatch.setattr(jobs, "Source", Inexact)
    video, results = material / "long.avi", tmp_path / "results"
    settings = jobs.Settings(trained, "haar", results, ".csv", "x")
    job = jobs.Job(settings, str(video), str(video), "long.csv")
    try:
        for segment in range(3):
            assert jobs.run_job(job._replace(segment=segment)) == jobs.SegmentDone(3)
        done = jobs.run_job(join := job._replace(segment=None, segments=3))
        assert jobs.run_job(join) == done  # given out again, for the process died while it removed the segments
    finally:
        cv2.setNumThreads(-1)
        jobs.worker_recognizer.cache_clear()
    assert len(entered) == 2 and done.frames == (2 * SEGMENT_SECONDS + 5) * RATE
    assert read_rows(results / "long.csv") == expected["long.avi"]
    assert not list((results / ".parts").iterdir())


@needs("pyarrow")
@pytest.mark.slow
def test_parquet_has_what_csv_has(material, expected, trained, tmp_path):
    from pyarrow import parquet

    arguments = "--source", material / "short.avi", "--model", trained, "--workers", 1
    result = run("realtime_detect.py", *arguments, "--parquet", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    rows = parquet.read_table(tmp_path / "results" / "short.avi.parquet").to_pylist()
    assert len(rows) == len(expected["short.avi"]) > 10
    for row, wanted in zip(rows, expected["short.avi"], strict=True):
        assert {name: type(value)(wanted[name]) for name, value in row.items()} == row


def test_a_list_names_files_once_each_wherever_they_lie(detect, photo, trained, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "in" / "deep").mkdir(parents=True)
    shutil.copy(photo, here / "in" / "deep")
    names = ["in/deep/me.png", "", str(photo), "in/deep/me.png", "in/none.png", "/dev/video98"]
    (here / "list.txt").write_text("\n".join(names))
    arguments = "--source", "list.txt", "--model", trained, "--workers", 1, "--csv", "results"
    result = run("realtime_detect.py", *arguments, folder=here)
    assert result.returncode == 1 and "none.png: No such file" in result.stderr
    assert "/dev/video98: is no file; --workers" in result.stderr  # a camera would never end
    index = read_rows(here / "results" / "index.csv")
    assert [row["source"] for row in index] == [names[0], names[2]]
    assert index[0]["result"] == "in/deep/me.png.csv" and index[1]["result"].startswith("__/")
    for row in index:
        assert read_rows(here / "results" / row["result"])[0]["source"] == row["source"]
    monkeypatch.chdir(here)
    assert detect("--source", "list.txt", "--csv", "all.csv")[0] == 2
    assert [row["source"] for row in read_rows("all.csv")] == names[:1] + names[2:4]


@pytest.mark.faults
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workers", "0", "--csv", "x"], "--workers: 0: takes a whole number from 1 to 1000"),
        (["--workers", "2"], "need one folder, as --csv or --parquet"),
        (["--parquet", "x"], "--parquet needs --workers or --ray"),
        (["--workers", "2", "--csv", "x", "--parquet", "y"], "need one folder"),
        (["--workers", "2", "--ray", "--csv", "x"], "--ray: not allowed with argument --workers"),
        (["--workers", "2", "--csv", "x", "--save", "y"], "--save: goes with one file at a time"),
        (["--workers", "2", "--csv", "{file}"], "is a file; --workers and --ray take a folder"),
        (["--workers", "2", "--csv", "{full}"], "is of another model, detector or kind of table"),
        (["--workers", "2", "--csv", "{torn}"], "can't be read or written"),
        (["--workers", "2", "--csv", "x", "--source", "{folder}/none/*.mp4"], "no image or video there"),
        (["--workers", "2", "--csv", "x", "--source", "{utf16}"], "utf16.txt: is no UTF-8 text"),
        (["--csv", "x.csv", "--source", "{utf16}"], "utf16.txt: is no UTF-8 text"),
        (["--workers", "2", "--csv", "x", "--source", "0"], "and no cameras"),
        (["--workers", "2", "--csv", "{folder}"], "holds other files"),
        (["--workers", "2", "--csv", "x", "--source", "{empty}"], "empty; give the name of a file"),
        (["--workers", "2", "--csv", "/proc/x"], "can't be read or written"),
    ],
)
def test_what_can_not_be(detect, photo, trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (("full", OTHERS), ("torn", "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.csv").write_text(text)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "utf16.txt").write_text("a.png\n", encoding="utf-16")
    places = {
        "utf16": tmp_path / "utf16.txt",
        "empty": tmp_path / "empty.txt",
        "file": trained,
        "folder": tmp_path,
        "full": tmp_path / "full",
        "torn": tmp_path / "torn",
    }
    given = [argument.format(**places) for argument in arguments]
    source = [] if "--source" in given else ["--source", photo]
    status, _, error = detect(*source, *given)
    assert status == 2 and message in error and "Traceback" not in error, error
    assert (tmp_path / "full" / "index.csv").read_text() == OTHERS


@needs("ray")
@pytest.mark.slow
@pytest.mark.faults
def test_a_cluster_that_is_not_there(photo, trained, tmp_path):
    """In a process of its own, for Ray keeps what it read of the environment when it was imported first."""
    result = annotate(photo, trained, tmp_path / "results", "--ray", "127.0.0.1:1")
    assert one_line((result.returncode, result.stdout, result.stderr), "--ray 127.0.0.1:1: no cluster there")


def test_outcomes_lead_to_further_jobs_and_rows(tmp_path):
    """A video of three segments, one that fails in a segment while another one is out, one that kills its workers."""
    names = [str(tmp_path / f"{name}.mp4") for name in ("long", "failing", "deadly")]
    settings = jobs.Settings(None, "haar", tmp_path / "results", ".csv", "us")
    with Index(settings.folder, "us") as index:
        coordinator = Coordinator(str(tmp_path), settings, index, tqdm(disable=True))
        long, failing, deadly = coordinator.plan(names)
        assert [job.result for job in (long, failing, deadly)] == ["long.mp4.csv", "failing.mp4.csv", "deadly.mp4.csv"]
        coordinator.settle(long, jobs.SegmentDone(2))  # it says so
        coordinator.settle(failing, jobs.SegmentDone(3))
        second, *others = coordinator.priority_jobs
        assert (second.source, second.segment, [job.segment for job in others]) == (names[0], 1, [1, 2])
        coordinator.priority_jobs.clear()
        coordinator.settle(others[1], jobs.Failed("no such frame"))
        coordinator.settle(others[0], jobs.SegmentDone(3))
        coordinator.settle(deadly, None)
        assert not coordinator.priority_jobs
        coordinator.settle(second, jobs.SegmentDone(3))  # and is longer
        coordinator.settle(coordinator.priority_jobs.popleft(), jobs.SegmentDone(3))
        assert list(coordinator.priority_jobs) == [long._replace(segment=None, segments=3)]
        coordinator.settle(coordinator.priority_jobs.pop(), jobs.Done(150.0, 1500, 3000, 2, 0, 0.0))
        messages = coordinator.report()
    assert len(messages) == 3 and messages[0] == "no such frame" and "given up after 5 workers died" in messages[1]
    assert [row["source"] for row in read_rows(index.path)] == names[:1]
    assert [row["source"] for row in read_rows(index.failed_path)] == names[1:]


def test_of_a_video_that_claims_years_few_segments_are_tried(tmp_path):
    """More of them only as they prove to have frames; and what it lacks at its end is no reason to begin again."""
    settings = jobs.Settings(None, "haar", tmp_path / "results", ".csv", "us")
    with Index(settings.folder, "us") as index:
        coordinator = Coordinator(str(tmp_path), settings, index, tqdm(disable=True))
        [job] = coordinator.plan([str(tmp_path / "long.mp4")])
        coordinator.settle(job, jobs.SegmentDone(13_000_000, has_frames=True))
        tried = []
        while coordinator.priority_jobs[0].segment is not None:
            job = coordinator.priority_jobs.popleft()
            tried.append(job.segment)
            coordinator.settle(job, jobs.SegmentDone(13_000_000, has_frames=job.segment < 100))
    assert tried == list(range(1, 64 + 2 * 100)) and coordinator.priority_jobs.pop().segments == 264


def stitched(folder, *segments):
    """The times of a video's frames from its segments, each with the times of its frames and whether it goes on."""
    paths = []
    for number, (times, goes_on) in enumerate(segments):
        paths.append(folder / f"{number}.json")
        missing = None if goes_on else 7.5
        paths[-1].write_text(json.dumps([[[seconds, 0, 0, []] for seconds in times], len(segments), missing]))
    counts = Counter()
    frames = [frame.seconds for frame, _ in jobs._stitch_segments(paths, counts)]
    return frames, counts["missing"]


def test_a_video_that_is_shorter_than_it_says_is_stitched_up_to_its_end(tmp_path):
    segments = ([30, 59], True), ([59, 90], False), ([], False), ([], False)
    assert stitched(tmp_path, *segments) == ([30, 59, 90], 7.5)


@pytest.mark.faults
@pytest.mark.parametrize(
    "segments",
    [
        [([30, 59], True), ([], False)],
        [([30], True), ([], False)],
        [([30], True), ([70], False)],
        [([], True), ([70], False)],
        [([], True), ([], True)],
        [([], False)],
    ],
    ids=["frames of a seam", "frames after one", "no frame in a seam", "none at the start", "no end", "none at all"],
)
def test_segments_that_lack_frames_are_not_stitched(tmp_path, segments):
    with pytest.raises(jobs._SegmentMismatchError):
        stitched(tmp_path, *segments)


@pytest.mark.faults
def test_a_full_disk_leaves_whole_rows_in_the_index(small_disk, tmp_path):
    """Though the system takes the part of a row that there is room for."""
    folder, source = small_disk / "results", tmp_path / "a.mp4"
    source.touch()

    def enter(index):
        for number in range(200):
            if index.needs_processing(source, f"{number}.csv"):
                (folder / f"{number}.csv").touch()
                index.add(source, f"{number}.csv", (0, 1, 2, 1, 0, 0))

    with Index(folder, "us") as index:
        fill(small_disk, 8192)
        with pytest.raises(UserError, match="No space left on device"):
            enter(index)
    text = (folder / "index.csv").read_text()
    assert 8000 < len(text) <= 12288 and text.endswith("\n")
    assert {line.count(",") for line in text.splitlines()} == {10}
    with Index(folder, "us") as index, pytest.raises(UserError, match="No space left on device"):
        for number in range(200):
            index.fail(source, f"{number} says why" * 9)
    (small_disk / "filler").unlink()
    assert (folder / "failed.csv").read_text().endswith("\n" * bool(index.failed))
    with Index(folder, "us") as index:
        enter(index)
    assert len(read_rows(folder / "index.csv")) == 200


def test_an_index_is_whole_after_a_kill_and_has_one_writer(tmp_path):
    folder = tmp_path / "results"
    (tmp_path / "a").write_text("a")
    with Index(folder, "us") as index:
        assert index.needs_processing(tmp_path / "a", "a.csv") and not index.needs_processing(tmp_path / "a", "a.csv")
        (folder / "a.csv").write_text("rows")
        index.add(tmp_path / "a", "a.csv", (0, 1, 2, 1, 0, 0))
        with pytest.raises(UserError, match="another program is writing it"):
            Index(folder, "us")
    (folder / "failed.csv").write_text("of the run before")
    with pytest.raises(UserError, match="is of another model"):
        Index(folder, "others")
    assert (folder / "failed.csv").exists()
    with open(folder / "index.csv", "a") as file:
        file.write("half a ro")
    with Index(folder, "us") as index:
        assert not index.needs_processing(tmp_path / "a", "a.csv")
    rows = read_rows(folder / "index.csv")
    assert len(rows) == 1 and rows[0]["faces"] == "2"
    (folder / "index.csv").write_text("source,byt")  # killed before the first row
    with Index(folder, "us") as index:
        assert index.needs_processing(tmp_path / "a", "a.csv")
    assert read_rows(folder / "index.csv") == []


def test_an_index_takes_a_file_for_done_as_it_is_now_alone(tmp_path):
    """One that grows while it is labelled, and one that is as it was before the last time."""
    video, folder, counts = tmp_path / "a", tmp_path / "results", (0, 1, 2, 1, 0, 0)

    def process(text, then=None):
        video.write_text(text)
        os.utime(video, (len(text),) * 2)
        with Index(folder, "us") as index:
            if not index.needs_processing(video, "a.csv"):
                return False
            if then:
                video.write_text(then)
            (folder / "a.csv").write_text("rows")
            index.add(video, "a.csv", counts)
            return True

    assert process("half", then="whole") and process("whole") and not process("whole")
    assert process("other one") and process("whole") and not process("whole")


def test_an_index_leaves_a_folder_of_other_files_alone_and_keeps_its_own_names(tmp_path):
    (tmp_path / "a.mp4.csv").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        Index(tmp_path, "us")
    assert os.listdir(tmp_path) == ["a.mp4.csv"]
    (tmp_path / "index.csv").write_text("id,name,mine")  # and no line end: it could be half a row of a killed run
    with pytest.raises(UserError, match="is of another model"):
        Index(tmp_path, "us")
    assert (tmp_path / "index.csv").read_text() == "id,name,mine"
    with Index(tmp_path / "results", "us") as index, pytest.raises(UserError, match="which is the folder's own"):
        index.needs_processing(tmp_path / "index", "index.csv")
