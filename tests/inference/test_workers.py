"""Processes and clusters that work on tasks: no more than a system allows, and none lost with a worker."""

import os
import signal
import time
from collections import deque
from pathlib import Path

import pytest
from conftest import ROOT, needs

from expressions import UserError
from expressions.inference import workers


def test_more_workers_than_a_system_allows_open_files_are_not_started(capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, before[1]))  # 256 on a Mac
    try:
        with workers.processes(100) as pool:
            assert pool.capacity() == 4 and "--workers 100: only 4 are started" in capsys.readouterr().out
            assert len(list(workers.run_tasks(pool, time.sleep, [0.5, 0.6, 0.7, 0.8, 0.9], deque()))) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def double(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 14 and not (marker := Path(os.environ["MARKER"])).exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def unfit(number):
    raise UserError("no model here")


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=[needs("ray"), pytest.mark.slow])])
def test_a_task_that_kills_its_workers_is_given_up_and_no_other(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / "tests" / place) for place in ("", "inference")))
    taken = []

    def tasks():
        for number in range(40):
            taken.append(number)
            yield number

    with workers.processes(2) if engine == "processes" else workers.cluster("", ROOT) as pool:
        results = {}
        for number, result in workers.run_tasks(pool, double, tasks(), deque()):
            assert number not in results and len(taken) <= len(results) + pool.capacity() + 1  # no more than needed
            results[number] = result
        assert results.pop(13) is None
        assert results == {number: 2 * number for number in range(40) if number != 13}
        with pytest.raises(UserError, match="no model here"):
            list(workers.run_tasks(pool, unfit, [1], deque()))
