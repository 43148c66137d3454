"""A network taken elsewhere: it gives what the classifier gives, and what lies beside it says how to use it."""

import json
from argparse import Namespace

import cv2
import h5py
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from conftest import needs
from model_files import METADATA, run_limited, write_metadata, write_votes_layer

import train
from expressions import UserError, model_compiler
from expressions.classifier import Classifier, CompiledNetwork
from expressions.training import exporter, synthetic


@pytest.fixture
def export(monkeypatch, capsys):
    """Export by a process forked from one that has TensorFlow; this one opens no model. Returns status and texts."""

    def export(path, model, *more):
        with monkeypatch.context() as patch:
            patch.setattr(exporter, "run_sandboxed", run_limited)
            patch.setattr(h5py, "File", None)
            patch.setattr(train.keras.models, "load_model", None)
            status = train.main(["--export", str(path), "--model", str(model), *more])
        return status, *capsys.readouterr()

    return export


def outputs(path, inputs):
    """What a LiteRT or ONNX file gives, by nothing of this project."""
    if path.suffix == ".onnx":
        import onnx.reference

        network = onnx.reference.ReferenceEvaluator(str(path))
        return network.run(None, {network.input_names[0]: inputs})[0]
    network = Interpreter(str(path))
    network.resize_tensor_input(network.get_input_details()[0]["index"], inputs.shape)
    network.allocate_tensors()
    network.set_tensor(network.get_input_details()[0]["index"], inputs)
    network.invoke()
    return network.get_tensor(network.get_output_details()[0]["index"])


def by_description(path, faces):
    """The probabilities of faces, gray uint8 images, by the file at `path` and what is said beside it."""
    said = json.loads(path.with_name(f"{path.name}.json").read_text())
    (_, height, width, _), values = said["input"]["shape"], []
    for face in faces:
        pixel = cv2.resize(face, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        values.append(eval(said["input"]["value"], {"pixel": pixel})[..., None])
    names = {
        "output": outputs(path, np.float32(values)),
        "temperature": said["output"]["temperature"],
        "softmax": softmax,
    }
    return said["labels"], *(eval(said["output"][name], names) for name in ("probabilities", "votes"))


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("suffix", [".tflite", pytest.param(".onnx", marks=[needs("tf2onnx"), pytest.mark.slow])])
def test_the_file_and_what_is_said_beside_it_give_the_classifiers_probabilities(model, tmp_path, export, suffix):
    random = np.random.default_rng(0)
    write_votes_layer(model, random.normal(size=(72, 8)).astype("f4"), random.normal(size=8).astype("f4"))
    write_metadata(model, METADATA | {"scaling": "symmetric", "temperature": 0.5})
    path = tmp_path / f"face{suffix}"
    path.write_text("of before")
    status, printed, _ = export(path, model)
    assert status == 0 and f"{path}, 0.0 MB" in printed and f"{path}.json" in printed
    faces = [synthetic.draw_face("happy", random, 96), synthetic.draw_face("sad", random, 200)]
    classifier = Classifier(CompiledNetwork(run_limited("compile", model)[1]), METADATA)
    classifier.metadata = classifier.metadata | {"scaling": "symmetric", "temperature": 0.5}
    labels, probabilities, votes = by_description(path, faces)
    assert tuple(labels) == classifier.labels and probabilities.std() > 0.01
    np.testing.assert_allclose(probabilities, classifier.predict_proba(faces), atol=1e-4)
    np.testing.assert_allclose(votes, classifier.predict_proba(faces, votes=1), atol=1e-4)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.h5", path.name, f"{path.name}.json"}


@pytest.mark.faults
def test_a_model_that_can_t_be_converted_leaves_what_is_there(model, tmp_path, export):
    path, beside = tmp_path / "face.tflite", tmp_path / "face.tflite.json"
    path.write_text("of before")
    beside.write_text("mine")
    write_metadata(model, {})
    status, _, error = export(path, model)
    assert status == 2 and error.count("\n") == 1 and "doesn't tell its labels and scaling" in error
    assert (path.read_text(), beside.read_text()) == ("of before", "mine")
    assert export(path, model, "--labels", "a,b,c,d,e,f,g", "--scaling", "unit")[0] == 0
    assert json.loads(beside.read_text())["labels"] == list("abcdefg")


def test_the_limited_process_runs_once_and_tells_the_shapes(tmp_path, monkeypatch):
    def run_sandboxed(action, model, **given):
        actions.append(action)
        return METADATA | {"input_shape": [None, 64, 64, 3], "output_shape": [None, 15]}, b"a network"

    actions, path = [], tmp_path / "caf\udce9.onnx"  # a name in Latin-1
    monkeypatch.setattr(exporter, "run_sandboxed", run_sandboxed)
    exporter.export(Namespace(export=path, model=None, labels=None, scaling=None), tmp_path / "model.h5")
    said = json.loads(path.with_name("caf\udce9.onnx.json").read_text())
    assert said["file"] == path.name and actions == ["onnx"] and path.read_bytes() == b"a network"
    assert said["input"]["shape"] == ["faces", 64, 64, 3] and said["output"]["shape"] == ["faces", 15]
    assert "votes" in said["output"] and said["labels"] == METADATA["labels"]


@pytest.mark.faults
def test_a_conversion_that_fails_is_said_to(model, monkeypatch):
    """Which Keras has nothing to do with."""

    def convert(network):
        raise ValueError("no such operation")

    described = model_compiler.validate_model_file(model)
    for kind, action in (("ONNX", "onnx"), ("LiteRT", "tflite")):
        monkeypatch.setitem(model_compiler.CONVERTERS, action, convert)
        with pytest.raises(UserError, match=rf"^its network can't be converted to {kind} \(no such operation\)"):
            model_compiler.compile_network(model, *described, action)


@pytest.mark.faults
def test_a_conversion_that_gives_other_results_is_refused(model, monkeypatch):
    """Whatever it is converted to."""

    def convert(network):
        content, compiled = model_compiler.to_litert(network)
        predict = compiled.predict_on_batch
        compiled.predict_on_batch = lambda faces: predict(faces) + np.arange(7, dtype=np.float32)
        return content, compiled

    monkeypatch.setitem(model_compiler.CONVERTERS, "onnx", convert)
    with pytest.raises(UserError, match="differs from Keras's"):
        model_compiler.compile_network(model, *model_compiler.validate_model_file(model), "onnx")
