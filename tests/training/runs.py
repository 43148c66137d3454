"""Runs of train.py that several tests share."""

import os
import subprocess

from conftest import SMALL_TRAIN, command, heed_ctrl_c

import train


def words(data, model, *more, epochs=2):
    return ["--data", data, "--model", model, "--batch-size", 16, "--epochs", epochs, *more]


def run(*arguments, before=(), prepare=None):
    """Run train.py to its end; what it printed stands in stdout."""
    return subprocess.run(
        [*before, *command("train.py", *arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=prepare, timeout=300,
    )  # fmt: skip


def begin(*arguments, script=SMALL_TRAIN, **environment):
    """Start train.py, by default with a small network."""
    return subprocess.Popen(
        command(script, *arguments), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=heed_ctrl_c, env=os.environ | environment,
    )  # fmt: skip


def refused(capsys, arguments, sentence):
    assert train.main([str(word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
