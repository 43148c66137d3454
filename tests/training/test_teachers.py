"""Teachers speak of the images that they have not seen; what they say is kept in a file."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from expressions import EMOTIONS, UserError
from expressions.classifier import Classifier
from expressions.training import dataset, synthetic, targets, teachers

FACES, LABELS = synthetic.draw_faces(8, seed=0)


def make_teacher(sure_of, fold, logit=4):
    """A classifier with the same probabilities for every image, of labels and votes."""
    logits = np.zeros(15, np.float32)
    logits[[sure_of, 7 + sure_of]] = logit
    network = SimpleNamespace(
        input_shape=(None, 48, 48, 1), output_shape=(None, 15), predict_on_batch=lambda x: np.tile(logits, (len(x), 1))
    )
    return Classifier(network, {"labels": EMOTIONS, "scaling": "unit", "fold": fold, "temperature": 2.0})


@pytest.fixture
def ask(monkeypatch):
    """A function: what teachers, each given by what it is sure of and its fold, say of FACES."""

    def ask(*each):
        files = {f"{index}.h5": make_teacher(*one) for index, one in enumerate(each)}
        monkeypatch.setattr(teachers.Classifier, "load", lambda path: files[path.name])
        return teachers.soft_labels([teachers.Path(name) for name in files], FACES, EMOTIONS)

    return ask


def test_the_parts_are_by_content_with_copies_together():
    parts = [teachers.fold_mask(FACES, f"{part}/3") for part in (1, 2, 3)]
    assert np.sum(parts, axis=0).tolist() == [1] * len(FACES) and all(part.any() for part in parts)
    order = np.random.default_rng(0).permutation(len(FACES)).repeat(2)
    np.testing.assert_array_equal(teachers.fold_mask(FACES[order], "2/3"), parts[1][order])


def test_a_run_leaves_its_part_out():
    data = dataset.Dataset("drawn", EMOTIONS, {"train": dataset.Split(FACES, LABELS)})
    kept = teachers.leave_out(data, "2/3")
    assert not teachers.fold_mask(kept.splits["train"].images, "2/3").any() and "left out part 2/3" in kept.notes[-1]
    assert len(kept.splits["train"].images) == (~teachers.fold_mask(FACES, "2/3")).sum()
    assert teachers.leave_out(data, None) is data
    few = data._replace(splits={"train": data.splits["train"].subset(LABELS.argsort()[::8])})
    with pytest.raises(UserError, match="--fold 1/2: leaves no training image of"):
        teachers.leave_out(few, "1/2")


def test_each_image_is_told_by_those_alone_that_have_not_seen_it(ask):
    soft = ask((3, "1/3"), (5, "2/3"))
    first, second = teachers.fold_mask(FACES, "1/3"), teachers.fold_mask(FACES, "2/3")
    assert set(soft[first, :7].argmax(axis=1)) == {3} and set(soft[second, :7].argmax(axis=1)) == {5}
    assert np.isnan(soft[~first & ~second]).all()
    np.testing.assert_allclose(soft[first].sum(axis=1), 2, atol=1e-4)
    assert soft[first][0, 3] == pytest.approx(np.exp(2) / (np.exp(2) + 6), abs=1e-4)  # by the temperature
    assert soft[first][0, 10] == pytest.approx(np.exp(4) / (np.exp(4) + 7), abs=1e-4)
    both = ask((3, None), (5, "2/3"))
    assert both[second][:, 3] == pytest.approx(both[second][:, 5]) and set(both[~second].argmax(axis=1)) == {10}


@pytest.mark.faults
def test_a_teacher_that_gives_no_numbers_is_no_teacher(ask):
    with pytest.raises(UserError, match="the model gives no numbers but NaN or infinity"):
        ask((3, None), (5, None, np.inf))


def test_soft_labels_come_back_from_their_file(ask, tmp_path):
    soft, data = ask((3, "1/3")), dataset.Dataset("drawn", EMOTIONS, {"train": dataset.Split(FACES, LABELS)})
    path = tmp_path / "soft.npz"
    teachers.write_soft_labels(path, [teachers.Path("0.h5")], data)
    order = np.random.default_rng(0).permutation(len(FACES))
    np.testing.assert_allclose(teachers.soft_labels([path], FACES[order], EMOTIONS), soft[order], atol=1e-3)
    with pytest.raises(UserError, match="nothing about these images"):
        teachers.soft_labels([path], FACES[:4, :, ::-1].copy(), EMOTIONS)
    with pytest.raises(UserError, match="knows angry, .*, not a, b, c, d, e, f, g"):
        teachers.soft_labels([path], FACES, tuple("abcdefg"))


def test_one_process_of_several_writes_them(ask, tmp_path, monkeypatch):
    ask((3, "1/3"))
    monkeypatch.setattr(teachers.distributed, "is_primary", lambda: False)
    data = dataset.Dataset("drawn", EMOTIONS, {"train": dataset.Split(FACES, LABELS)})
    teachers.write_soft_labels(tmp_path / "soft.npz", [teachers.Path("0.h5")], data)
    assert not any(tmp_path.iterdir())


@pytest.mark.faults
def test_a_file_that_unpacks_to_more_than_soft_labels_take(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "soft.npz", digests=NUMBER, probabilities=np.full((1, 7), 1 / 7))
    assert np.isnan(teachers._read(tmp_path / "soft.npz", FACES, EMOTIONS)).all()
    monkeypatch.setattr(teachers, "MAX_BYTES", 200)
    with pytest.raises(UserError, match="not a whole file of soft labels"):
        teachers.soft_labels([tmp_path / "soft.npz"], FACES, EMOTIONS)


@pytest.mark.faults
def test_a_file_that_knows_many_or_long_labels_is_refused_in_a_short_line(tmp_path):
    for labels in ([*EMOTIONS, *"x" * 10**5], ["x" * 10**5] * 7):
        np.savez(tmp_path / "soft.npz", digests=NUMBER, probabilities=np.full((1, 7), 1 / 7), labels=labels)
        with pytest.raises(UserError, match="knows") as caught:
            teachers.soft_labels([tmp_path / "soft.npz"], FACES, EMOTIONS)
        assert len(str(caught.value)) < 1500


def claims(shape):
    """An .npz whose array of digests claims a shape that no memory holds."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive, archive.open("digests.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": shape})
    return content.getvalue()


NUMBER = np.uint64([1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        claims((2**50,)),
        claims((2**70,)),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"
        + b" " * 59
        + b"\n"
        + bytes(8),
        {"digests": NUMBER},
        {"digests": [1.5], "probabilities": [[0.1] * 15]},
        {"digests": NUMBER, "probabilities": [[0.5] * 4]},
        {"digests": NUMBER, "probabilities": [[np.nan] * 7]},
        {"digests": NUMBER[:0], "probabilities": np.zeros((0, 7))},
        {"digests": NUMBER, "probabilities": np.array([[{}] * 7])},
        {"digests": NUMBER, "probabilities": np.zeros((1, 7, 2))},
        {"digests": np.zeros((1, 7), np.uint64), "probabilities": np.zeros((1, 7, 7))},
        {"digests": NUMBER, "probabilities": np.zeros((1, 7), complex)},
    ],
    ids=range(14),
)
def test_a_file_that_holds_no_soft_labels(tmp_path, content):
    path = tmp_path / "soft.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match="not a whole file of soft labels"):
        teachers.soft_labels([path], FACES, EMOTIONS)
    with pytest.raises(UserError, match="No such file"):
        teachers.soft_labels([tmp_path / "none.npz"], FACES, EMOTIONS)


def test_soft_labels_are_mixed_into_labels_and_votes():
    hard = np.float32([[1, 0, 0.5, 0.3, 0.2], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0]])
    soft = np.float32([[0.2, 0.8, 0.1, 0.1, 0.8], [0.6, 0.4, 0.2, 0.3, 0.5], [np.nan] * 5])
    mixed = targets.mix_soft_labels(hard, soft, 0.5, classes=2)
    np.testing.assert_allclose(mixed[0], [0.6, 0.4, 0.3, 0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(mixed[1], [0.3, 0.7, 0.2, 0.3, 0.5], atol=1e-6)  # nobody voted
    np.testing.assert_array_equal(mixed[2], hard[2])  # no teacher knows it
    np.testing.assert_allclose(
        targets.mix_soft_labels(hard, soft[:, :2], 0.5, 2)[0], [0.6, 0.4, 0.5, 0.3, 0.2], atol=1e-6
    )
    np.testing.assert_allclose(targets.mix_soft_labels(hard[:, :2], soft, 0.5, 2)[1], [0.3, 0.7], atol=1e-6)
