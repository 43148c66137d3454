"""What a model file may hold: each that is damaged or hostile ends in one clear line, soon, and runs no code."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import slow_but
from model_files import KERNEL, METADATA, configured, layer, load, refused, run_limited, save, unsealed, write_metadata

from expressions import EMOTIONS, UserError


def taken(path):
    """Assert that the model at `path` is compiled."""
    metadata, content = run_limited("compile", path)
    assert content
    return metadata


@pytest.mark.faults
def test_weights_without_a_network(tmp_path, trained):
    keras.models.load_model(trained, compile=False).save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(UserError, match="weights but no network"):
        load(tmp_path / "only.weights.h5")


@pytest.mark.faults
def test_no_facts_or_damaged_ones(trained_copy):
    for facts, words in (
        (None, "doesn't tell"),
        ('{"labels": []}', "doesn't tell"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ):
        with h5py.File(trained_copy, "r+") as file:
            del file.attrs["facts"], file.attrs["digest"]
            if facts:
                file.attrs["facts"] = facts
        with pytest.raises(UserError, match=words):
            load(trained_copy)
        write_metadata(trained_copy, METADATA)


# files that would run code
@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """The configuration of a Lambda whose code leaves a file behind, and that file."""
    witness = tmp_path_factory.mktemp("trap") / "witness"
    code = f"lambda x: __import__('pathlib').Path({str(witness)!r}).touch() or x"
    path = save(witness.with_name("trap.h5"), keras.layers.Lambda(eval(code), name="trap"))
    witness.unlink()
    keras.models.load_model(path, compile=False, safe_mode=False)
    assert witness.exists()  # the code works
    witness.unlink()
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])["config"]["layers"][1], witness


def into_submodel(config, trap):
    config["config"]["layers"].insert(1, layer("Sequential", name="inner", layers=[trap]))


def into(field):
    def change(config, trap):
        config["config"]["layers"][1]["config"][field] = trap

    return change


def renamed(**keys):
    def change(config, trap):
        config["config"]["layers"][1] |= keys

    return change


def activated(function):
    def change(config, trap):
        config["config"]["layers"][1]["config"]["activation"] = function

    return change


CODE = {
    "in a row": lambda config, trap: config["config"]["layers"].insert(1, trap),
    "as the network": lambda config, trap: trap,
    "in a submodel": into_submodel,
    "in a wrapper": lambda config, trap: config["config"]["layers"].insert(1, layer("TimeDistributed", layer=trap)),
    "as an activation": into("activation"),
    "as a function": activated({"class_name": "function", "module": "os", "config": "system", "registered_name": "x"}),
    "as bare code": lambda config, trap: activated(trap["config"]["function"])(config, trap),
    "as custom objects": into("custom_objects"),
    "module": renamed(module="os"),
    "a module like ours": renamed(module="kerasx.layers"),
    "registered name": renamed(registered_name="Custom>Lambda"),
    "class name of a list": renamed(class_name=["Lambda"]),
    "a wrong name": renamed(class_name="Lambda"),
    "empty name": renamed(class_name=""),
    "activation deserialize": activated("deserialize"),
    "activation os.system": activated("os.system"),
    "activation of another class": activated(layer("Sequential", layers=[])),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", slow_but(CODE, "in a row", "activation os.system"))
def test_code_never_runs(model, trap, fault):
    layer, witness = json.loads(json.dumps(trap[0])), trap[1]
    configured(model, lambda config: CODE[fault](config, layer))
    refused(model, "doesn't know|description is damaged|can't load")
    assert not witness.exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    "key",
    slow_but(
        ["kernel_initializer", "kernel_constraint", "build_config", "compile_config", "training"], "kernel_initializer"
    ),
)
def test_what_only_training_needs_is_never_built(model, trap, key):
    """Keras would build it or not, as it likes; here it doesn't get to see it, and the rest is a sound model."""
    hidden, witness = trap

    def change(config):
        part = config["config"]["layers"][1]
        (part if key.endswith("_config") else part["config"])[key] = hidden

    if key == "training":
        with unsealed(model) as file:
            optimizer = {"optimizer_config": hidden, "loss": hidden, "loss_weights": None}
            file.attrs["training_config"] = json.dumps(optimizer)
    else:
        configured(model, change)
    assert taken(model)["labels"] == list(EMOTIONS) and not witness.exists()


# HDF5 that leads elsewhere, in circles, or to far more than it holds
def link(make):
    def damage(path):
        other = path.with_name("other.h5")
        with h5py.File(other, "w") as file:
            file["secret"] = np.zeros((50, 7), np.float32)
        np.zeros((50, 7), np.float32).tofile(path.with_name("raw"))
        with unsealed(path) as file:
            make(file, other)

    return damage


def external_data(file, other):
    del file[KERNEL]
    file.create_dataset(KERNEL, (50, 7), "f4", external=[(str(other.with_name("raw")), 0, 1400)])


def virtual_data(file, other):
    layout = h5py.VirtualLayout((50, 7), "f4")
    layout[:] = h5py.VirtualSource(other, "secret", (50, 7))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def put(name, make):
    def damage(file, other):
        file[name] = make(file, other)

    return damage


def array(**how):
    """In the place of the kernel, one made so."""

    def damage(file, other):
        del file[KERNEL]
        file.create_dataset(KERNEL, **how)

    return damage


def shared(file, other):
    """Groups of two links to the next one: 2 to the 40th ways."""
    group = file.create_group("start")
    for _ in range(40):
        following = group.create_group("a")
        group["b"] = following
        group = following


def deep(file, other):
    group = file.create_group("start")
    for _ in range(3000):
        group = group.create_group("a")


def wide(file, other):
    group = file.create_group("start")
    for number in range(40_000):
        group[f"{number}"] = h5py.SoftLink("/")


def attribute(place, name, value, dtype=None):
    def damage(file, other):
        file[place].attrs.create(name, value(file) if callable(value) else value, dtype=dtype)

    return damage


def many_attributes(file, other):
    for number in range(40):
        group = file.create_group(f"{number}")
        for name in range(1000):
            group.attrs[f"{name}"] = 0


def same_bytes(file, other):
    """Zeros in the shape of 8 GB, of which nothing is written."""
    del file[KERNEL]
    file.create_dataset(KERNEL, (2**31,), "f4")


def long_text(file, other):
    file.attrs["notes"] = "x" * 20_000_000


def corrupt_chunk(file, other):
    array(shape=(50, 7), data=np.random.default_rng(0).random((50, 7)), chunks=(10, 7), compression="gzip")(file, other)
    file[KERNEL].id.write_direct_chunk((0, 0), b"no gzip at all")


ELSE, MISSING = "something else", "missing or compressed"
OBJECTS = {
    "external link": (put("out", lambda file, other: h5py.ExternalLink(str(other), "secret")), "links to another"),
    "soft link": (put("soft", lambda file, other: h5py.SoftLink("/model_weights")), "links to another"),
    "external data": (external_data, "in another file"),
    "virtual data": (virtual_data, "in another file"),
    "a link to the root": (put("model_weights/loop", lambda file, other: file["/"]), "in two places"),
    "a link to weights": (put("again", lambda file, other: file[KERNEL]), "in two places"),
    "shared groups": (shared, "in two places"),
    "deep groups": (deep, "more parts"),
    "too many links": (wide, "more parts"),
    "too many attributes": (many_attributes, "more parts"),
    "huge and empty": (same_bytes, MISSING),
    "huge in chunks": (array(shape=(2**20, 2**20), dtype="f4", chunks=(64, 64)), MISSING),
    "compressed zeros": (array(data=np.zeros((5000, 5000), "f4"), compression="gzip"), MISSING),
    "a corrupt chunk": (corrupt_chunk, MISSING),
    "never written": (array(shape=(50, 7), dtype="f4"), MISSING),
    "in chunks": (array(data=np.ones((50, 7), "f4"), chunks=(50, 7), shuffle=True), MISSING),
    "without extent": (array(data=h5py.Empty("f4")), "not a whole|missing"),
    "references": (array(shape=(3,), dtype=h5py.ref_dtype), ELSE),
    "texts for numbers": (array(data=["a", "b"]), ELSE),
    "a type of its own": (put("kind", lambda file, other: np.dtype("f8")), ELSE),
    "compound numbers": (array(shape=(3,), dtype=[("a", "f4"), ("b", "f4")]), ELSE),
    "an attribute of references": (attribute("/", "notes", lambda file: file.ref, h5py.ref_dtype), ELSE),
    "an attribute of compounds": (attribute("/", "notes", np.zeros(3, [("a", "f4")])), ELSE),
    "a long text": (long_text, "more text"),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", slow_but(OBJECTS, "external link", "shared groups", "huge and empty", "a long text"))
def test_objects(model, fault):
    damage, words = OBJECTS[fault]
    link(damage)(model)
    refused(model, words)


@pytest.mark.faults
def test_arrays_that_share_their_bytes(model):
    """Each is in the file; all together are far more than it holds."""
    with unsealed(model) as file:
        first = file.create_dataset("first", data=np.zeros(100_000, np.float32))
        file.flush()
        place = first.id.get_offset()
        for number in range(50):
            file.create_dataset(f"another_{number}", (100_000,), np.float32)
    nowhere, size = b"\xff" * 8, (400_000).to_bytes(8, "little")
    content = model.read_bytes()
    assert content.count(nowhere + size) == 50
    model.write_bytes(content.replace(nowhere + size, place.to_bytes(8, "little") + size))
    with h5py.File(model) as file:
        assert file["another_7"].id.get_storage_size() == 400_000 and file["another_7"].id.get_offset() == place
    refused(model, MISSING)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["model_config", "facts"])
@pytest.mark.parametrize(
    "value",
    slow_but([7, [1.5, 2], ["{}", "{}"], h5py.Empty("S1"), b"\xff\xfe{}", "", "NaN", "[]", '"text"'], 7, "[]"),
)
def test_descriptions_of_odd_types(model, name, value):
    with unsealed(model) as file:
        del file.attrs[name]
        file.attrs[name] = value
    refused(model, "not a whole .h5 file|description is damaged|doesn't tell")


@pytest.mark.faults
@pytest.mark.parametrize(
    "metadata",
    slow_but(
        [
            *({"temperature": value} for value in ("1", [1], {}, None, 0, -1, 1e9, float("nan"), 10**400)),
            {"labels": [str(number) for number in range(10**6)]},
            {"labels": ["", *EMOTIONS[1:]]},
            {"notes": [{}] * 500_000},
            {"labels": ["x" * 10**6] * 7},
            *(
                {"labels": value}
                for value in (
                    "happy",
                    7,
                    ["x" * 10**6] * 7,
                    {"a": 1},
                    [1] * 7,
                    [None] * 7,
                    ["a\x1b[2J"] * 7,
                    ["\ud800"] * 7,
                )
            ),
            *({"scaling": value} for value in ("other", 1, ["unit"], {"unit": 1})),
            *({"fold": value} for value in ("1", "1/0", "-1/2", "1/2/3", "a/b", 1, [0], "1/9999")),
        ],
        {"temperature": "1"},
        {"labels": 7},
        {"labels": ["", *EMOTIONS[1:]]},
        {"labels": ["x" * 10**6] * 7},
        {"scaling": "other"},
        {"fold": "1/0"},
    ),
    ids=lambda metadata: str(metadata)[:40],
)
def test_metadata_of_odd_types(model, metadata):
    write_metadata(model, METADATA | metadata)
    refused(model, "description is damaged")


# .keras files: zips of the network's description and an HDF5 file
@pytest.fixture(scope="module")
def keras_parts(sound, tmp_path_factory):
    """What is in a sound .keras file: bytes by name."""
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    keras.models.load_model(sound, compile=False).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


PACKED = {  # what is changed in the zip, and how it is packed
    "compressed": ({}, zipfile.ZIP_DEFLATED, "compressed parts"),
    "a long text": ({"config.json": b" " * 20_000_000}, zipfile.ZIP_STORED, "too much text"),
    "no weights": ({"model.weights.h5": None}, zipfile.ZIP_STORED, "without weights"),
    "no network": ({"config.json": None}, zipfile.ZIP_STORED, "not a whole .keras"),
    "other weights": ({"model.weights.h5": b"noise"}, zipfile.ZIP_STORED, "not a whole .keras"),
    "no JSON": ({"config.json": b"\xff"}, zipfile.ZIP_STORED, "not a whole .keras"),
    "no text": ({"config.json": b""}, zipfile.ZIP_STORED, "damaged|no network"),
    "code": ({"config.json": json.dumps(layer("Lambda", layers=[])).encode()}, zipfile.ZIP_STORED, "doesn't know"),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", PACKED)
def test_keras_files_that_are_refused(tmp_path, keras_parts, fault):
    changed, compression, words = PACKED[fault]
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (keras_parts | changed).items():
            if content is not None:
                archive.writestr(name, content)
    refused(path, words)


@pytest.mark.faults
@pytest.mark.parametrize("cut", [0.3, 0.999])
def test_a_keras_file_that_was_cut(tmp_path, keras_parts, cut):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in keras_parts.items():
            archive.writestr(name, part)
    path = tmp_path / "model.keras"
    path.write_bytes(content.getvalue()[: int(cut * content.tell())])
    refused(path, "not a whole .keras file")
