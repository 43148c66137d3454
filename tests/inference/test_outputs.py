"""What a run writes where: never over a source, over another result, or where nobody may."""

import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from conftest import ENVIRONMENT, WITHOUT_PRIVILEGES, command, needs_root, one_line, read_rows, slow_but

from expressions.inference.sources import Source


def test_images_of_one_name_in_several_folders_are_saved_in_as_many(detect, tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in/one", "in/two/three"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(photo, tmp_path / folder)
    status, _, error = detect("--source", "in/**/*.png", "--save", "out")
    assert status == 0, error
    saved = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert saved == ["one/me.png", "two/three/me.png"]


@pytest.mark.faults
def test_names_of_results_that_are_no_utf_8(detect, tmp_path, photo, video):
    save, table, timeline = (
        os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + end) for end in (b".mp4", b".csv", b".png")
    )
    status, said, error = detect("--source", video, "--save", save, "--csv", table, "--summary", timeline)
    assert (status, error) == (0, "") and "caf\\udce9.mp4" in said and len(read_rows(table)) == 20
    assert os.path.getsize(save) > 1000 < os.path.getsize(timeline)


@pytest.mark.faults
@pytest.mark.parametrize("case", ["camera", "video", "model", "folder of nothing", "screen"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_run_that_does_not_begin_leaves_old_results_and_no_new_ones(detect, tmp_path, video, case, suffix):
    old, timeline, new = tmp_path / f"old{suffix}", tmp_path / "old.png", tmp_path / "new.csv"
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no picture")
    for path in (old, timeline):
        path.write_text("precious")
    arguments = {
        "camera": ["--source", 96],
        "video": ["--source", tmp_path / "text.mp4"],
        "model": ["--source", video, "--model", tmp_path / "none.h5"],
        "folder of nothing": ["--source", tmp_path / "in"],
        "screen": ["--source", "rtsp://127.0.0.1:1/none"],
    }[case]
    status, _, error = detect(*arguments, f"--{suffix[1:]}", old, "--summary", timeline, "--overwrite")
    assert status == 2 and "Traceback" not in error
    assert old.read_text() == timeline.read_text() == "precious"
    for _ in range(2):  # a table without rows need not be overwritten
        assert detect(*arguments, "--csv", new)[0] == 2
        assert new.exists() == (case == "folder of nothing") and (not new.exists() or read_rows(new) == [])


@pytest.mark.faults
@pytest.mark.parametrize(
    "option, name",
    slow_but([("csv", "a.csv"), ("jsonl", "a.jsonl"), ("save", "a.avi"), ("summary", "a.png")], ("save", "a.avi")),
)
@needs_root
def test_no_leave_to_write(tmp_path, trained, video, option, name):
    """Told before any work is done."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    words = command("realtime_detect.py", "--source", video, "--model", trained, f"--{option}", folder / name)
    result = subprocess.run([*WITHOUT_PRIVILEGES, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert one_line((result.returncode, result.stdout, result.stderr), f"--{option} {folder / name}", "be written")
    assert result.stdout == "" and os.listdir(folder) == []


@pytest.mark.faults
@needs_root
@pytest.mark.parametrize("name", slow_but(["seen.csv", "out.avi"], "seen.csv"))
def test_no_leave_to_write_over_a_file(tmp_path, trained, video, name):
    path = tmp_path / name
    path.write_text("precious")
    path.chmod(0o444)
    (tmp_path / "out.partial.avi").touch(mode=0o444)
    option = "--csv" if name.endswith("csv") else "--save"
    words = command("realtime_detect.py", "--source", video, "--model", trained, option, path, "--overwrite")
    result = subprocess.run([*WITHOUT_PRIVILEGES, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert one_line((result.returncode, "", result.stderr), str(path), "can't be written (Permission denied)")
    assert path.read_text() == "precious"


@pytest.mark.faults
@pytest.mark.parametrize(
    "options", [["--save", "me.png"], ["--summary", "me.png"], ["--save", "a.png", "--summary", "a.png"],
                ["--summary", "link.png"], ["--csv", "a.csv", "--jsonl", "same.jsonl"]],
    ids=["save the source", "summary the source", "save and summary", "link to the source", "csv and jsonl"],
)  # fmt: skip
def test_a_result_that_is_the_source_or_another_result(detect, photo, frame, monkeypatch, options):
    monkeypatch.chdir(photo.parent)
    os.symlink("me.png", "link.png")
    os.symlink("a.csv", "same.jsonl")
    assert one_line(detect("--source", "me.png", *options, "--overwrite", "--no-window"), "choose another name")
    np.testing.assert_array_equal(cv2.imread("me.png"), frame)
    assert sorted(os.listdir()) == ["link.png", "me.png", "same.jsonl"]


@pytest.mark.faults
def test_a_saved_video_never_takes_the_place_of_another_source(detect, tmp_path, video):
    """In the folder of the sources, a.mkv would be saved as a.mkv.mp4, which is a source as well."""
    for name in ("a.mkv", "a.mkv.mp4"):
        shutil.copy(video, tmp_path / name)
    status, _, error = detect("--source", tmp_path, "--save", tmp_path, "--overwrite")
    assert status == 2 and error.count("one of the sources") == 2 and "2 of 2" in error
    assert (tmp_path / "a.mkv.mp4").read_bytes() == video.read_bytes()


@pytest.mark.faults
def test_a_file_in_the_place_of_the_folder_for_results(detect, tmp_path, photo):
    (tmp_path / "out").write_text("precious")
    result = detect("--source", tmp_path / "*.png", "--save", tmp_path / "out")
    assert result[0] == 2 and f"--save {tmp_path / 'out'}: can't be made a folder" in result[2]
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.faults
def test_the_table_of_all_sources_is_gone(detect, tmp_path, video):
    """Then the other sources are left alone, and what was made of them before."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            shutil.copy(video, tmp_path / folder / f"{name}.avi")
    os.symlink("/dev/full", tmp_path / "link.csv")
    status, _, error = detect(
        "--source", tmp_path / "in", "--save", tmp_path / "out", "--csv", tmp_path / "link.csv", "--overwrite"
    )
    assert status == 2 and error.count("\n") == 2 and "1 of 2 sources" in error, error
    with Source(tmp_path / "out" / "b.avi") as other:
        assert len(list(other)) == 20
