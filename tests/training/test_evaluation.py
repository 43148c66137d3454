"""train.py --evaluate: a model file measured again."""

import re
import shutil

import h5py
import pytest
from conftest import write_data

import train
from expressions import EMOTIONS
from expressions.model_file import read_metadata


@pytest.mark.slow
def test_a_model_is_measured_again(trained, data_folder, tmp_path, capsys):
    figures = read_metadata(trained)["metrics"]["single view"]
    assert train.main(["--evaluate", str(trained), "--data", str(data_folder)]) == 0
    output = capsys.readouterr().out
    assert "on validation, n = 21" in output and "None of these images also stand in train." in output
    assert re.search(rf"top-1 +{figures['top1']:.1%}", output) and "true, predicted:" in output

    foreign = shutil.copy(trained, tmp_path / "foreign.h5")
    with h5py.File(foreign, "r+") as file:
        del file.attrs["facts"]
    arguments = ["--evaluate", str(foreign), "--data", str(data_folder), "--split", "train"]
    assert train.main(arguments) == 2
    assert "--labels and --scaling" in capsys.readouterr().err
    arguments += ["--scaling", "unit", "--labels"]
    assert train.main([*arguments, ",".join(EMOTIONS)]) == 0
    assert "on train, n = 56" in capsys.readouterr().out
    assert train.main([*arguments, "anger,disgust,fear,happy,neutral,sad,surprise"]) == 2
    assert "the data set has angry too" in capsys.readouterr().err
    assert train.main(["--evaluate", str(trained), "--data", str(data_folder), "--split", "test"]) == 2
    assert "has train, validation only" in capsys.readouterr().err


def test_copies_of_training_images_are_measured_apart(trained, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    shutil.copy(data / "validation" / "sad" / "sad_1.png", data / "train" / "sad" / "copy.png")
    assert train.main(["--evaluate", str(trained), "--data", str(data)]) == 0
    assert "Without the 1 images that also stand in train, n = 20:" in capsys.readouterr().out
