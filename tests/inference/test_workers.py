"""Processes and clusters that work on tasks: no more than a system allows, and none lost with a worker."""

import os
import signal
import subprocess
import sys
import time
import types
from collections import deque
from pathlib import Path

import pytest
from conftest import ROOT, needs

from expressions import UserError
from expressions.inference import workers


@pytest.mark.slow
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


@pytest.mark.faults
@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
@pytest.mark.parametrize(
    "version, is_refused", [("2.51.2", True), ("1.13.0", True), ("2.52.0", False), ("3.0.0.dev0", False)]
)
def test_a_ray_that_lets_everybody_in_is_refused(monkeypatch, address, version, is_refused):
    class StartedError(Exception):
        pass

    def start(*_, **options):
        raise StartedError

    ray = types.SimpleNamespace(__version__=version, init=start)
    crashes = ("LocalRayletDiedError", "NodeDiedError", "OutOfMemoryError", "WorkerCrashedError")
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", types.SimpleNamespace(**dict.fromkeys(crashes, OSError)))
    monkeypatch.setattr(workers.socket, "create_connection", lambda *_: types.SimpleNamespace(close=lambda: None))
    expected, message = (UserError, f"Ray {version} can't keep") if is_refused else (StartedError, None)
    with pytest.raises(expected, match=message), workers.cluster(address, ROOT):
        pass
    assert (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])) == (("", 0) if address else ("token", 64))


LISTENING = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from expressions.inference import workers

def work(number):
    return number

with workers.cluster("", Path(sys.argv[1])) as pool:
    assert not Path.home().joinpath(".ray").exists()
    assert pool.submit(work, 1).result() == 1
    said = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents, family = [line.split() for line in said.splitlines()], {str(os.getpid())}
    for _ in range(9):
        family |= {child for child, parent in parents if parent in family}
    files = {os.readlink(file) for each in family for file in Path(f"/proc/{each}/fd").glob("*") if file.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, = words = line.split()
            if state == "0A" and f"socket:[{words[9]}]" in files:
                print(address.split(":")[0])
"""


@needs("ray")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tables of sockets")
def test_no_other_machine_reaches_the_cluster_of_this_one(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path)}
    words = [sys.executable, "-c", LISTENING, str(ROOT)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    listening = result.stdout.split()
    assert result.returncode == 0 and len(listening) > 4 and set(listening) <= loopback, result
