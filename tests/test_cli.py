"""Where a script's output goes nowhere: closed pipes, full disks, terminals without the letters of a name."""

import shutil
import subprocess

import pytest
from conftest import ENVIRONMENT, command, one_line, read_rows, write_data

from expressions.inference.sources import Source


def shell(line, folder, **environment):
    """Run a line of bash with the scripts as $DETECT and $TRAIN; returns its status, output and errors."""
    scripts = {"DETECT": " ".join(command("realtime_detect.py")), "TRAIN": " ".join(command("train.py"))}
    environment = ENVIRONMENT | scripts | environment
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=environment, timeout=100
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    "line, said",
    [
        ("$DETECT $ARGUMENTS | true; exit ${PIPESTATUS[0]}", (141, "", "")),
        pytest.param("$DETECT $ARGUMENTS 2>&1 | true; exit ${PIPESTATUS[0]}", (141, "", ""), marks=pytest.mark.slow),
        pytest.param(
            "$DETECT --source none.mp4 --csv b.csv 2>&1 | true; exit ${PIPESTATUS[0]}",
            (141, "", ""),
            marks=pytest.mark.slow,
        ),
        ("$DETECT $ARGUMENTS >&-", (0, "", "")),
        pytest.param("$DETECT $ARGUMENTS >&- 2>&-", (0, "", ""), marks=pytest.mark.slow),
    ],
    ids=["pipe closed", "both pipes closed", "pipe of errors closed", "standard output closed", "both closed"],
)
def test_nobody_listens(tmp_path, trained, video, line, said):
    arguments = f"--source {video} --model {trained} --csv seen.csv --save out.avi"
    assert shell(line, tmp_path, ARGUMENTS=arguments) == said
    if "none" not in line:
        assert len(read_rows(tmp_path / "seen.csv")) == 20
        with Source(tmp_path / "out.avi") as saved:
            assert len(list(saved)) == 20


@pytest.mark.faults
@pytest.mark.slow
def test_head_gets_its_line(tmp_path, trained, video):
    for name in ("a", "b", "c"):
        shutil.copy(video, tmp_path / f"{name}.avi")
    line = f"PYTHONUNBUFFERED=1 $DETECT --source '*.avi' --model {trained} --csv seen.csv | head -1"
    status, said, error = shell(line, tmp_path)
    assert said.startswith("a.avi: 20 frames") and said.count("\n") == 1 and error == ""


@pytest.mark.faults
def test_standard_output_on_a_full_disk(tmp_path, trained, video):
    result = shell(f"$DETECT --source {video} --model {trained} --csv seen.csv > /dev/full", tmp_path)
    assert one_line(result, "No space left on device") and len(read_rows(tmp_path / "seen.csv")) == 20


@pytest.mark.faults
def test_a_terminal_without_the_letters_of_a_name(tmp_path, trained, video):
    shutil.copy(video, tmp_path / "Käthe 图.avi")
    line = f"$DETECT --source 'Käthe 图.avi' --model {trained} --csv seen.csv"
    status, said, error = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert (status, error) == (0, "") and said.startswith(r"K\xe4the \u56fe.avi: 20 frames")


@pytest.mark.faults
@pytest.mark.slow
def test_nobody_reads_what_training_prints(tmp_path, data_folder):
    line = f"set -o pipefail; $TRAIN --data {data_folder} --model model.h5 --batch-size 16 --epochs 40 | head -1"
    status, said, error = shell(line, tmp_path)
    assert (said.count("\n"), error) == (1, "")
    assert status in (1, 141)  # 1 where it is Rich, by which Keras prints its table, that notices


@pytest.mark.faults
@pytest.mark.slow
def test_training_at_a_terminal_that_is_closed_from_the_start(tmp_path, data_folder):
    line = f"$TRAIN --data {data_folder} --model model.h5 --batch-size 16 --epochs 1 >&- 2>&-"
    assert shell(line, tmp_path) == (0, "", "") and (tmp_path / "model.h5").exists()


@pytest.mark.faults
@pytest.mark.slow
def test_training_at_a_terminal_without_the_letters_of_a_class(tmp_path):
    write_data(tmp_path / "data", {"train": 2, "validation": 1}, labels=("froh", "m\u00fcde"))
    line = "LC_ALL=C $TRAIN --data data --model model.h5 --batch-size 16 --epochs 1"
    status, said, error = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert status == 0 and "m\\xfcde" in said, error
