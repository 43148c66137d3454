"""The options of train.py."""

import contextlib
import importlib.util
import io
import subprocess
import sys
from argparse import Namespace

import pytest
from conftest import ROOT

import train
from expressions import EMOTIONS, UserError
from expressions.training import command_line, readers, trainer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--epochs 0", "--epochs: 0: takes a whole number from 1"),
        ("--batch-size 1", "--batch-size: 1: takes a whole number from 2"),
        ("--seed 5000000000", "--seed: 5000000000: takes a whole number from 0"),
        ("--seed x", "--seed: x: takes a whole number from 0"),
        ("--precision float16", "--precision: invalid choice"),
        ("--network x", "--network: invalid choice"),
        ("--fold 0/4", "--fold: 0/4: takes K/N with a K from 1 to N"),
        ("--fold 5/4", "--fold: 5/4: takes K/N"),
        ("--fold 1/04", "--fold: 1/04: takes K/N"),
        ("--fold 1/1", "--fold: 1/1: takes K/N"),
        ("--fold half", "--fold: half: takes K/N"),
        ("--soft-labels x.npz", "--soft-labels takes --teacher"),
        ("--split train", "--split, --labels and --scaling go with --evaluate"),
        ("--export x.keras", "x.keras: takes a file that ends in .tflite or .onnx"),
        ("--export no/x.tflite", "no/x.tflite: takes a file that ends in .tflite or .onnx, in a folder that exists"),
        ("--export x.onnx", "x.onnx: tf2onnx, which makes ONNX files, is missing: pip install tf2onnx"),
        ("--export x.tflite --split train", "--export takes only --model, --labels and --scaling"),
        ("--export x.tflite --evaluate model.h5", " takes only "),
        ("--evaluate model.h5 --resume", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --epochs 3", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --precision float32", "--evaluate takes only --data, --split, --labels and --scaling"),
        ("--evaluate model.h5 --seed 3", "--evaluate takes only --data, --split, --labels and --scaling"),
    ],
)
def test_options_out_of_range(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        train.main(arguments.split())
    assert caught.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_a_comma_at_the_end_of_the_labels_begins_no_other():
    assert command_line.parse(["--evaluate", "a.h5", "--labels", "angry, happy,"], "").labels == ["angry", "happy"]


def test_what_the_help_says_is_what_the_program_does():
    """It is written before the modules that know it, which take seconds to load."""
    scratch, drawn, started = train.FROM_SCRATCH, train.DRAWN_FACES, train.FINE_TUNING
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        command_line.parse(["--help"], train.__doc__)
    said = " ".join(text.getvalue().split())
    assert f"{scratch.epochs}; {drawn.epochs} on drawn faces; {started.epochs} with --start" in said
    assert f"{scratch.batch_size}; {drawn.batch_size} on drawn faces)" in said
    assert tuple(train.NETWORKS) == command_line.NETWORKS and tuple(readers.SPLITS) == command_line.SPLITS


def test_help_and_mistakes_are_answered_before_keras_is_loaded():
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py")]
    for arguments, status in (["--help"], 0), (["--epochs", "0"], 2):
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert result.returncode == status and "Loading" not in result.stdout
        assert not any(f" {name}\n" in result.stderr for name in ("keras", "tensorflow", "pandas", "cv2"))


def test_soft_labels_have_a_file_of_their_own(tmp_path):
    taken = tmp_path / "taken.npz"
    options = Namespace(batch_size=64, model=tmp_path / "model.h5", start=None, teacher=[taken], show=None)
    for path, words in (
        (tmp_path / "soft.h5", "ends in .npz"),
        (tmp_path / "none" / "soft.npz", "in a folder that exists"),
        (tmp_path / ".." / tmp_path.name / "taken.npz", "is a teacher as well"),
    ):
        with pytest.raises(UserError, match=words):
            trainer.check_options(Namespace(**vars(options), soft_labels=path), EMOTIONS)
    trainer.check_options(Namespace(**vars(options), soft_labels=tmp_path / "soft.npz"), EMOTIONS)
