"""Tables of what was seen."""

import csv
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ENVIRONMENT, command, fill, one_line, read_rows, slow_but, write_video
from samples import Face, Frame

from expressions import EMOTIONS, UNCERTAIN, UserError
from expressions.inference.batch import Index
from expressions.inference.tables import COLUMNS, STDOUT, Table


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
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_classes_of_the_names_of_columns_have_columns_of_their_own(tmp_path, suffix):
    labels, path = ("frame", "(frame)", "label", "x", "=1+1", "happy"), tmp_path / f"seen.{suffix}"
    cells = ["(frame)", "((frame))", "(label)", "(x)", "(=1+1)", "happy"]
    probabilities = np.arange(6) / 10
    with Table(path, labels) as table:
        for label in (*labels, UNCERTAIN):
            table.write("a.mp4", Frame(0, 0.0), [Face(1, label, probabilities=probabilities)])
    rows = read_rows(path) if suffix == "csv" else [json.loads(line) for line in path.read_text().splitlines()]
    assert list(rows[0]) == [*COLUMNS, *cells]
    assert [row["label"] for row in rows] == [*cells, UNCERTAIN]
    assert [float(rows[0][cell]) for cell in cells] == probabilities.tolist() and int(rows[0]["frame"]) == 0


@pytest.mark.faults
@pytest.mark.parametrize("sign", ["=", "+", "-", "@"])
def test_no_spreadsheet_takes_the_name_of_a_file_for_a_formula(tmp_path, monkeypatch, sign):
    """And yet it names the file."""
    monkeypatch.chdir(tmp_path)
    name = f"{sign}1+1.mp4"
    Path(name).touch()
    with Table("seen.csv", EMOTIONS) as table:
        table.write(name, Frame(0, 0.0), [Face(1, "sad")])
    cells = [row["source"] for row in read_rows("seen.csv")]
    with Index("results", "us") as index:
        assert index.needs_processing(name, f"{name}.csv")
        Path("results", f"{name}.csv").touch()
        index.add(name, f"{name}.csv", (0, 1, 1, 1, 0, 0))
        index.fail(name, f"{name}: no video")
    [row], [failed] = read_rows("results/index.csv"), read_rows("results/failed.csv")
    cells += [row["source"], failed["source"], failed["why"].removesuffix(": no video")]
    assert all(not cell.startswith(sign) and os.path.samefile(cell, name) for cell in cells)
    assert os.path.exists(os.path.join("results", row["result"])) and not row["result"].startswith(sign)
    with Index("results", "us") as index:
        assert not index.needs_processing(name, f"{name}.csv")


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


@pytest.mark.faults
@pytest.mark.parametrize("suffix", slow_but([".csv", ".jsonl"], ".csv"))
def test_the_disk_is_full_for_a_table(detect, tmp_path, frame, small_disk, suffix):
    """It ends with whole rows, as many as there was room for."""
    fill(small_disk, 8192)
    source, table = write_video(tmp_path / "long.avi", [frame] * 120), small_disk / f"seen{suffix}"
    result = detect("--source", source, f"--{suffix[1:]}", table, "--summary", tmp_path / "timeline.png")
    assert one_line(result, str(table), "No space left on device; rows are missing".replace(" device;", " device);"))
    text = table.read_text()
    assert text.endswith("\n") and 6000 < len(text) <= 8192
    kept = read_rows(table) if suffix == ".csv" else [json.loads(line) for line in text.splitlines()]
    assert [int(row["frame"]) for row in kept] == list(range(len(kept))) and len(kept[-1]) == 17
    assert cv2.imread(str(tmp_path / "timeline.png")) is not None  # what was seen until then


@pytest.mark.faults
def test_a_table_on_dev_full(detect, tmp_path, video):
    table = tmp_path / "seen.csv"
    table.symlink_to("/dev/full")
    assert one_line(detect("--source", video, "--csv", table, "--overwrite"), str(table), "No space left on device")


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_two_programs_write_the_same_table(tmp_path, suffix):
    path = tmp_path / f"seen{suffix}"
    with Table(path, EMOTIONS, overwrite=True) as table:
        table.write("first", SimpleNamespace(number=0, seconds=0.0), [])
        before = path.read_bytes()
        with pytest.raises(UserError, match="another program is writing it"):
            Table(path, EMOTIONS, overwrite=True)
        assert path.read_bytes() == before


@pytest.mark.parametrize("option", ["--csv", "--jsonl"])
def test_rows_on_standard_output(detect, video, monkeypatch, tmp_path, option):
    """Nothing but rows, even where a file has the name -, which is left alone; the rest is on standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_text("precious")
    status, said, error = detect("--source", video, option, "-")
    lines = said.splitlines()
    rows = list(csv.DictReader(lines)) if option == "--csv" else [json.loads(line) for line in lines]
    assert status == 0 and [int(row["frame"]) for row in rows] == list(range(20)) and len(rows[0]) == 17
    assert "20 frames" in error and "track 1" in error and (tmp_path / "-").read_text() == "precious"


def test_rows_on_standard_output_come_at_once_and_after_what_a_file_has(tmp_path):
    """As with `>> log`."""
    log, output = tmp_path / "log", os.dup(1)
    log.write_text("precious\n")
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
    try:
        with Table(STDOUT, EMOTIONS, suffix=".jsonl") as table:
            table.write("a.mp4", Frame(0, 0.0), [Face(1, "sad")])
            first, second = log.read_text().splitlines()
    finally:
        os.dup2(output, 1)
        os.close(output)
    assert first == "precious" and json.loads(second)["label"] == "sad"


@pytest.mark.faults
def test_a_reader_that_has_seen_enough(tmp_path, trained, frame):
    """As `| head -1`: the program ends without a word, as others do."""
    source = write_video(tmp_path / "long.avi", [frame] * 150)
    words = command("realtime_detect.py", "--source", source, "--model", trained, "--jsonl", "-")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    assert process.wait() == 141 and "Traceback" not in process.stderr.read()


@pytest.mark.faults
@pytest.mark.parametrize(
    "options, words",
    [
        (["--csv", "-", "--jsonl", "-"], "named twice"),
        (["--csv", "-", "--workers", "2"], "need one folder"),
        (["--summary", "-"], "has to end in .png"),
    ],
)
def test_what_standard_output_can_t_take(detect, video, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    status, said, error = detect("--source", video, *options)
    assert status == 2 and said == "" and words in error and os.listdir() == []
