"""The model file: what it tells of itself, and the limits of the process that opens it."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zlib

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, slow_but
from model_files import METADATA, STOPPED, load, refused, save_model, small_network, write_votes_layer

from expressions import EMOTIONS, UserError, model_file
from expressions.classifier import Classifier
from expressions.model_file import dump_model, read_metadata, read_weights
from expressions.training import synthetic


@pytest.fixture
def model(tmp_path):
    """A file that no other test has, so that nothing of it is in the cache."""
    return save_model(small_network(), tmp_path / "model.h5")


def test_the_file_tells_everything_about_itself(trained):
    metadata = read_metadata(trained)
    assert metadata["labels"] == list(EMOTIONS)
    assert metadata["scaling"] == "unit" and 0.1 <= metadata["temperature"] <= 10
    assert metadata["network"] == "compact" and metadata["parameters"] == 1439
    assert {"single view", "with mirrored view"} <= set(metadata["metrics"])
    assert metadata["metrics"]["single view"]["n"] == 21
    assert len(metadata["fingerprint"]) == 16 and keras.__version__ in metadata["versions"]


def test_the_weights_of_a_file_are_those_that_keras_reads(trained):
    weights, votes = read_weights(trained)
    expected = keras.models.load_model(trained, compile=False).get_weights()
    assert votes is None and all((one == other).all() for one, other in zip(weights, expected, strict=True))


@pytest.mark.slow
def test_a_file_half_as_large_says_the_same(tmp_path):
    network, votes = small_network(keras.layers.Conv2D(16, 3)), (np.full((33856, 8), 1 / 3, np.float32), np.zeros(8))
    path = save_model(network, tmp_path / "model.h5")
    write_votes_layer(path, *votes)
    faces, _ = synthetic.draw_faces(2, seed=9)
    before, size = load(path).predict_proba(faces), path.stat().st_size
    path.write_bytes(dump_model(network, METADATA, votes))
    after = load(path)
    assert path.stat().st_size < 0.52 * size
    assert after.metadata == METADATA and after.has_votes
    weights, votes = read_weights(path)
    assert {str(each.dtype) for each in (*weights, *votes)} == {"float32"}
    # 11 significant bits: rounded to the nearest, not cut off
    assert (weights[0] == weights[0].astype(np.float16)).all() and votes[0][0, 0] == np.float16(1 / 3)
    np.testing.assert_allclose(after.predict_proba(faces), before, atol=2e-3)
    with h5py.File(path) as file:
        assert file["votes/kernel"][0, 0] == np.float16(1 / 3)


@pytest.mark.faults
def test_names_by_which_keras_takes_another_format(model):
    for name in ("model.keras", "model.weights.h5", "model.H5", "model"):
        refused(shutil.copy(model, model.with_name(name)), "has to end in .h5")


@pytest.mark.faults
def test_a_file_too_large(model):
    with open(model, "r+b") as file:
        file.truncate(2**40)  # of holes
    refused(model, "larger than")


# found by benchmarks/fuzz.py: HDF5's library never ends when it reads an attribute of this file
ENDLESS = (
    "c-rk+UuzRV5Z}Ed<_IlKp-?M==M^;%eGv+Z_)xK}Clo8z2cbyZB%9>$vN>~i+ER-8R=<UhKKe0y^dt0})cu>@U6T}SutMh-"
    "!racx&h5_4%pSM<&0F7`t=y;}0oz7JR7Gi=XxO!E+sNN(iZwmb^oM2mMJc<k`BiP-DX8{O&42xBV?$`4<S-"
    "nFqlk?FR}tRElb3?N(QOk?zpSiYuiv6U{S);&-"
    "8f3c<=S7~cV5S9KCWkwr{jATE%2yR_igrB+wTbe62`J;bvOn)lP9bAG?=lpx2CVJNqcS5l;c0o&ev2@Sdw2-"
    "GHh(C#KjiQ<WCu)k?jKatk9fy=8&Z`wo*csIV~^o9zt$e%Al>EL;;&e66QR(cd2oM`HV)@pD*{a_3FI(bG!`o2kOsh{V}VgSI+9SD2r$+KfMdbFV"
    "4iTsYl*z)$T4|%>J{d+gms_p-"
    "g?^IB=T*iK03qJ?cJk+#UKMp)B@E;I25Xs&|}!;2MRfM*=Ae$UYrJoVA;`@tlQ8yd}hAZ1_S!$QmSWcI#1>go3}zk|0=dRv)VW{kMmQD^A|{W<cV"
    "YvN4w1T<VVMwl1FAh)xYIYZ+O>{8-"
    "HB0l((;+5bplzt7~X`|Y?#_PA+2C{v4v^;!BcAPpKwf4GEo2K&Nb%a1xqB&XV@M7o2|HIy<&lX#%q9FdkJ$sio~d?=8P001D3ofq5dVyQ4MD96QY"
    "LAOha*2>_kNjUFCuyzMt1Ob-@2s;1(002w{kN@!x000000KlaKJ{wI3@Yx733FFQ$9Od@!-"
    "qQi20YVL*MCm+Sn^Jy%FK6?6TKkAsqfT1Gec$lzWPRiB-"
    "v#hp8fVX^s7%0EG0ZY^_B_fhq?RTJE!t@DvzCuPj}qz>yO|ro(SPL+v!9<|XJ=4X`)39%@Hxrdbh%qC%K}=$X!N-t?MJi!Y-"
    "lkRltt;c)3ylFKZSl7^Z"
)


@pytest.fixture
def endless(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(zlib.decompress(base64.b85decode(ENDLESS)))
    return path


@pytest.mark.faults
def test_a_file_that_hdf5_never_ends_to_read(endless):
    refused(endless, STOPPED, seconds=1)


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that can't be read, as on a bad disk")
def test_a_file_that_can_t_be_read_is_named():
    with pytest.raises(UserError, match="^/proc/self/mem: can't be read .Input/output error."):
        Classifier.load("/proc/self/mem")


# the process itself
@pytest.mark.faults
@pytest.mark.slow
def test_a_process_that_takes_too_long_is_stopped(endless, monkeypatch):
    monkeypatch.setattr(model_file, "MAX_SECONDS", 2)
    for read in (Classifier.load, read_metadata, read_weights):
        began = time.monotonic()
        with pytest.raises(UserError, match="more time or memory") as caught:
            read(endless)
        assert time.monotonic() - began < 30 and "\n" not in str(caught.value) and str(endless) in str(caught.value)


@pytest.mark.faults
@pytest.mark.parametrize(
    "work",
    slow_but(
        [
            "while True: pass",
            "bytearray(2**33)",
            "open(os.environ['TMPDIR'] + '/big', 'wb').truncate(2**40)",
            "os.write(1, b'x'); os.abort()",
            "os._exit(0)",
            "",
        ],
        "bytearray(2**33)",
        "",
    ),
)
def test_the_process_has_limits(model, monkeypatch, work):
    """As where HDF5 or TensorFlow believe a damaged file that tells them to take any time, memory or disk."""
    pytest.importorskip("resource")  # not on Windows
    run = subprocess.run

    def changed(command, **options):
        python, c, code, *rest = command
        first = f"import os; m.CHECK_SECONDS = 1; work = lambda: exec({work!r}, {{'os': os}}); "
        first += "m.validate_model_file = lambda *_: (work(), ({}, {}))[1]; "
        return run([python, c, code.replace("m.check_main()", first + "m.check_main()"), *rest], **options)

    monkeypatch.setattr(model_file.subprocess, "run", changed)
    if not work:  # the change itself does no harm
        assert read_metadata(model) == {}
        return
    with pytest.raises(UserError, match="more time or memory") as caught:
        read_metadata(model)
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)


@pytest.mark.faults
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_limits_that_the_user_has_set_lower(model):
    """Nobody may raise them again."""
    program = f"from expressions.model_file import read_metadata; print(*read_metadata({str(model)!r})['labels'])"
    command = ["sh", "-c", 'ulimit -t 100 -f 500000; exec "$@"', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, text=True, capture_output=True, cwd=ROOT).stdout.split() == list(EMOTIONS)


@pytest.mark.faults
@pytest.mark.parametrize("depth", slow_but(range(940, 1000, 10), 970))
def test_metadata_that_is_nested_deep(model, depth):
    """To the limit of this process or of the other."""
    with h5py.File(model, "r+") as file:
        file.attrs["facts"] = json.dumps(METADATA)[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}"
        del file.attrs["digest"]
    with contextlib.suppress(UserError):
        assert read_metadata(model)["labels"] == METADATA["labels"]


@pytest.mark.faults
@pytest.mark.slow
def test_code_in_the_working_directory_never_runs(model, tmp_path, monkeypatch):
    """A stranger's model may come in a folder with files that are called like libraries."""
    for name in ("h5py", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('witness', 'w')")
    monkeypatch.chdir(tmp_path)
    assert Classifier.load(model).labels == EMOTIONS and not (tmp_path / "witness").exists()
