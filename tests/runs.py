"""Runs of train.py that several tests share."""

import functools
import os
import subprocess
import tempfile
from multiprocessing import forkserver, get_context

import pytest
from conftest import ROOT, WITHOUT_PRIVILEGES, command
from small_train import main_in_fork

import train


@functools.cache
def fork_server():
    """Start the process that imports train.py for all runs."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["small_train"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        forkserver.ensure_running()
    return context


def words(data, model, *more, epochs=2):
    return ["--data", data, "--model", model, "--batch-size", 16, "--epochs", epochs, *more]


class Run:
    """A run of train.py in a process forked from one that has imported it, for importing takes longer than a short run.

    It has what tests need of Popen.
    """

    def __init__(self, arguments, environment, small):
        self.output = tempfile.NamedTemporaryFile("r")
        arguments = arguments, environment, self.output.name, small
        self.process = fork_server().Process(target=main_in_fork, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join(300)
        return self.process.exitcode

    def communicate(self):
        self.wait()
        return self.output.read(), None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()


def begin(*arguments, small=True, **environment):
    """Start train.py, by default with a small network."""
    return Run(arguments, environment, small)


def run_without_privileges(*arguments):
    """Run train.py to its end; what it printed stands in stdout."""
    return subprocess.run(
        [*WITHOUT_PRIVILEGES, *command("train.py", *arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip


def refused(capsys, arguments, sentence):
    assert train.main([str(word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
