"""A training run: what it starts from, how fast it learns, and what happens to it: stopped, out of room, refused."""

import re
import shutil
import signal
from argparse import Namespace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import WITHOUT_PRIVILEGES, wait_for, write_data
from model_files import write_metadata
from runs import begin, refused, run_without_privileges, words

import train
from expressions import UserError
from expressions.classifier import Classifier
from expressions.model_file import read_metadata
from expressions.training.trainer import out_of_memory_as_user_error, run_directory


@pytest.mark.parametrize(
    ("option", "flags", "policy"),
    [
        ("auto", "fpu avx2 avx512f avx512_bf16", "mixed_bfloat16"),
        ("auto", "fpu amx_bf16", "mixed_bfloat16"),
        ("auto", "fpu avx512f avx512_bf16_not", "float32"),
        ("auto", None, "float32"),
        ("float32", "avx512_bf16", "float32"),
        ("bfloat16", "fpu", "mixed_bfloat16"),
    ],
)
def test_the_processor_decides_the_precision(tmp_path, monkeypatch, option, flags, policy):
    monkeypatch.setattr(train.trainer, "CPUINFO", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert train.trainer.choose_precision(option) == policy
    if option == "auto":  # a run that goes on computes as it began
        assert train.trainer.choose_precision(option, ({"settings": {"precision": "other"}}, [])) == "other"


def test_the_learning_rate_climbs_and_falls_and_keeps_what_is_taken_off_it():
    def rates(start, factor=1):
        options, rate, seen = Namespace(epochs=20, start=start), 5.0, []
        schedule = train.trainer.learning_rate_schedule(0.1, options).schedule
        for epoch in range(20):
            rate = schedule(epoch, rate * (factor if epoch == 10 else 1))
            seen.append(rate)
        return np.array(seen)

    np.testing.assert_allclose(rates(None)[:3], [0.05, 0.1, 0.1 * 18 / 19])
    np.testing.assert_allclose(np.diff(rates(None)[1:]), -0.1 / 19)
    assert rates(None)[-1] == pytest.approx(0.1 / 19) and set(rates("model.h5").tolist()) == {0.1}
    np.testing.assert_allclose(rates(None, 0.5)[10:], rates(None)[10:] / 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_a_teacher_has_a_say_in_the_labels(trained, data_folder, tmp_path, capsys):
    data = train.dataset.load(data_folder)
    targets = train.trainer.images_and_targets(data, "validation", [trained, trained])[1]
    taught = train.teachers.soft_labels([trained], data.splits["validation"].images, data.labels)
    by_classifier = Classifier.load(trained).predict_proba(data.splits["validation"].images, flip_tta=True)
    assert np.abs(taught - by_classifier).max() < 0.2  # which sees no zoomed views
    share = train.trainer.TEACHER_SHARE
    expected = (1 - share) * np.eye(7)[data.splits["validation"].labels] + share * taught
    np.testing.assert_allclose(targets, expected, atol=1e-5)

    arguments = [
        "--data",
        str(data_folder),
        "--model",
        str(tmp_path / "pupil.h5"),
        "--epochs",
        "1",
        "--batch-size",
        "16",
    ]
    assert train.main([*arguments, "--teacher", str(trained)]) == 0
    assert "Its teachers: small.h5." in (tmp_path / "pupil" / "README.md").read_text()

    # what it says is written, and learned from
    data_options = ["--data", str(data_folder), "--teacher", str(trained), "--soft-labels", str(tmp_path / "soft.npz")]
    assert train.main(data_options) == 0
    assert train.main([*arguments, "--fold", "2/3", "--teacher", str(tmp_path / "soft.npz")]) == 0
    output = capsys.readouterr().out
    assert "left out part 2/3" in output and "Soft labels for 56 of 56" in output
    assert read_metadata(tmp_path / "pupil.h5")["fold"] == "2/3"
    assert "left out: 2/3." in (tmp_path / "pupil" / "README.md").read_text()
    part = train.teachers.fold_mask(data.splits["train"].images, "2/3").sum()
    targets = train.trainer.images_and_targets(data, "train", [tmp_path / "pupil.h5"])[1]
    assert f"Soft labels for {part} of 56" in capsys.readouterr().out and (targets.max(axis=1) < 1).sum() == part
    write_metadata(shutil.copy(trained, tmp_path / "other.h5"), {"labels": list("abcdefg"), "scaling": "unit"})
    assert train.main([*arguments, "--teacher", str(tmp_path / "other.h5")]) == 2
    assert "knows a, b, c, d, e, f, g, not angry" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "voted", "has_votes", "words"),
    [
        ("abc", True, True, ""),
        ("cab", False, False, ""),
        ("abc", False, True, ", without its outputs for votes"),
        ("abc", True, False, ", with new outputs for votes"),
        ("bx", False, True, ", with new outputs for x, without its outputs for a, c, votes"),
        ("xyz", False, False, ", with new outputs for x, y, z, without its outputs for a, b, c"),
    ],
)
def test_a_run_goes_on_with_the_outputs_that_its_data_has_use_for(monkeypatch, capsys, labels, voted, has_votes, words):
    def build(outputs, activation):
        dense = train.layers.Dense
        return train.keras.Sequential([train.keras.Input((2,)), dense(3), dense(outputs, activation)])

    def columns(names):  # of kernels; each output has its own
        return np.stack([np.full(3, ord(name), np.float32) for name in names], axis=1)

    def last_layer(names):
        return columns(names), np.array([ord(name) for name in names], np.float32)

    trunk = [np.ones((2, 3), np.float32), np.ones(3, np.float32)]
    weights, votes = [*trunk, *last_layer("abc")], last_layer("ABC*") if has_votes else None
    monkeypatch.setattr(train.trainer, "read_metadata", lambda _: {"network": "compact", "labels": list("abc")})
    monkeypatch.setattr(train.trainer, "read_weights", lambda _: (weights, votes))
    images = train.dataset.Split(np.zeros((2, 48, 48), np.uint8), np.arange(2), np.ones((2, 4)) if voted else None)
    data, options = train.dataset.Dataset("", tuple(labels), {"train": images}), Namespace(start=Path("old.h5"), seed=0)
    name, begun, said = train.trainer.starting_point(options, data, {"compact": build})
    assert (name, said) == ("compact", f"old.h5{words}") and f"Starting from old.h5{words}\n" in capsys.readouterr().out
    known, outputs = "abc" + "ABC*" * has_votes, labels + (labels.upper() + "*") * voted
    *kept, kernel, bias = begun
    assert all((one == other).all() for one, other in zip(kept, trunk, strict=True))
    for column, output in enumerate(outputs):
        assert (output in known) == (bias[column] == ord(output)) == (kernel[:, column] == ord(output)).all(), output
    assert bias.shape == (len(outputs),) and np.isfinite(kernel).all()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["no weights", "votes of other features", "a kernel of other outputs"])
def test_a_model_that_is_not_the_network_it_says_it_is(monkeypatch, damage):
    def build(outputs, activation):
        return train.keras.Sequential([train.keras.Input((2,)), train.keras.layers.Dense(outputs, activation)])

    weights = [np.zeros((2, 4 if damage.startswith("a kernel") else 2)), np.zeros(2)]
    votes = [np.zeros((3, 3)), np.zeros(3)] if damage.startswith("votes") else None
    said = {"network": "compact", "labels": ["a", "b"]}
    monkeypatch.setattr(train.trainer, "read_metadata", lambda _: said)
    monkeypatch.setattr(train.trainer, "read_weights", lambda _: ([] if damage == "no weights" else weights, votes))
    images = train.dataset.Split(np.zeros((2, 48, 48), np.uint8), np.arange(2))
    data, options = train.dataset.Dataset("", ("a", "b"), {"train": images}), Namespace(start=Path("old.h5"), seed=0)
    with pytest.raises(UserError, match="old.h5: is not the compact network"):
        train.trainer.starting_point(options, data, {"compact": build})
    said["network"] = ["compact"]  # what a file says may be of any type
    with pytest.raises(UserError, match="takes a model of train.py, with the network compact"):
        train.trainer.starting_point(options, data, {"compact": build})


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_a_run_goes_on_from_any_model_of_train_py(trained, data_folder, tmp_path, capsys):
    data, model = (
        write_data(tmp_path / "data", {"train": 4, "validation": 2}, labels=("awake", "happy")),
        tmp_path / "a.h5",
    )
    arguments = ["--start", str(trained), "--data", str(data), "--model", str(model), "--epochs", "1"]
    assert train.main(arguments) == 0
    words = "small.h5, with new outputs for awake, without its outputs for angry, disgust, fear, neutral, sad, surprise"
    assert f"started from {words}" in capsys.readouterr().out and read_metadata(model)["start"] == words
    assert f"Started from: {words}." in (tmp_path / "a" / "README.md").read_text()
    assert Classifier.load(model).labels == ("awake", "happy")
    arguments = ["--data", str(data_folder), "--model", str(tmp_path / "new.h5"), "--start", str(tmp_path / "other.h5")]
    for network, sentence in (("large", "is not the large network"), (["compact"], "takes a model of train.py")):
        shutil.copy(trained, tmp_path / "other.h5")
        write_metadata(tmp_path / "other.h5", read_metadata(trained) | {"network": network})
        assert train.main(arguments) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--start", str(trained), "--network", "classic"])


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_run_that_is_asked_to_end_leaves_a_model_and_can_be_resumed(tmp_path, data_folder, asked):
    process = begin(*words(data_folder, tmp_path / "model.h5", epochs=2000))
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    process.send_signal(asked)
    printed = process.communicate()[0]
    assert process.returncode == 0 and "Stopped." in printed and "Traceback" not in printed, printed
    assert read_metadata(tmp_path / "model.h5") and (tmp_path / "model" / "state.npz").exists()


# where it fills up: in the best model, in the state, in the model that ships, in the copy of the one of before
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [4, 15, 22, 25], indirect=True)
def test_a_full_disk_leaves_the_model_of_before(small_disk, data_folder, trained):
    model = small_disk / "model.h5"
    shutil.copy(trained, model)
    with h5py.File(model, "a") as file:
        file["filler"] = np.zeros(2_340_000, np.uint8)  # as large as a model of the compact network
    before = model.read_bytes()
    process = begin(*words(data_folder, model, epochs=1), small=False)
    printed = process.communicate()[0]
    last = printed.strip().splitlines()[-1]
    assert process.returncode == 2 and last.startswith("train.py: no space left on the disk"), printed
    assert "Traceback" not in printed and model.read_bytes() == before


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="needs setpriv")
@pytest.mark.parametrize("where", ["the folder", "the folder of the report"])
def test_a_folder_that_can_t_be_written_to(tmp_path, data_folder, where):
    model = tmp_path / "out" / "model.h5"
    closed = model.parent if where == "the folder" else model.with_suffix("")
    closed.mkdir(parents=True)
    closed.chmod(0o500)
    result = run_without_privileges(*words(data_folder, model))
    closed.chmod(0o700)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("train.py: ") and "Permission denied" in last, result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("gone", ["the report's folder", "the history", "the best model"])
def test_what_is_removed_during_a_run(tmp_path, data_folder, gone):
    """Says so in a line, or does without; a resumed run puts it right."""
    model = tmp_path / "model.h5"
    process = begin(*words(data_folder, model, epochs=12))
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    if gone == "the report's folder":
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
    else:
        (
            tmp_path / "model" / {"the history": "history.partial.csv", "the best model": "best.partial.keras"}[gone]
        ).unlink()
    printed = process.communicate()[0]
    assert process.returncode in (0, 2) and "Traceback" not in printed, printed
    if process.returncode:
        assert printed.strip().splitlines()[-1].startswith("train.py: ") and not model.exists()
    else:
        assert read_metadata(model) and (tmp_path / "model" / "README.md").exists()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_two_runs_of_one_model(tmp_path, data_folder, capsys):
    arguments = words(data_folder, tmp_path / "model.h5", epochs=2000)
    process = begin(*arguments)
    wait_for(lambda: (tmp_path / "model" / "state.npz").exists(), [process])
    refused(capsys, [*arguments, "--resume"], "another program is writing it")
    process.kill()
    process.communicate()
    assert train.main([str(word) for word in words(data_folder, tmp_path / "other.h5", epochs=1)]) == 0
    refused(capsys, arguments, "go on with --resume")  # the lock of a killed run is none


@pytest.mark.faults
@pytest.mark.slow
def test_names_with_points_are_names_of_their_own(tmp_path):
    mine = tmp_path / "v1.lock"
    mine.write_text("mine")
    with run_directory(tmp_path / "v1.0.h5") as first, run_directory(tmp_path / "v1.1.h5") as second:
        assert (first.name, second.name) == ("v1.0", "v1.1")
    assert mine.read_text() == "mine" and not list(first.iterdir())


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_a_batch_larger_than_the_data_is_all_of_them(tmp_path, data_folder):
    model = tmp_path / "model.h5"
    assert train.main(["--data", str(data_folder), "--model", str(model), "--epochs", "1", "--batch-size", "5000"]) == 0


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: of 8 GB"), ValueError("CUDA out of memory. Tried to")]
)
def test_a_batch_that_memory_can_t_hold(error):
    """Each backend says it in its own way."""
    words = "--batch-size 8000: no memory for so many images; give less"
    with pytest.raises(UserError, match=words), out_of_memory_as_user_error(8000):
        raise error


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError("out of memory.h5: is a folder"), ValueError("shapes (2,) and (3,)")])
def test_other_errors_of_a_step_stay_what_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))), out_of_memory_as_user_error(8000):
        raise error


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("case", ["a folder", "another ending", "a file for the report", "a folder of other files"])
def test_a_place_that_is_none_for_a_model(tmp_path, data_folder, capsys, case):
    model = tmp_path / ("model.keras" if case == "another ending" else "model.h5")
    if case == "a folder":
        model.mkdir()
    elif case == "a file for the report":
        model.with_suffix("").write_text("mine")
    elif case == "a folder of other files":
        model.with_suffix("").mkdir()
        (model.with_suffix("") / "thesis.txt").write_text("mine")
    refused(capsys, words(data_folder, model), f"--model {model}")
    assert not (tmp_path / "model").is_file() or (tmp_path / "model").read_text() == "mine"
