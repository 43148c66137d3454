"""Data sets as people have them: in every layout, half downloaded, mixed up, or made to do harm."""

import gzip
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc

import cv2
import numpy as np
import pytest
from conftest import ROOT, WITHOUT_PRIVILEGES, gray_png, large_png, slow_but, write_data, write_images
from PIL import Image

import train
from expressions import EMOTIONS, IMAGE_SIZE, UserError
from expressions.training import command_line, dataset, readers


def write_csv(path, rows, header="emotion,pixels,Usage"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def csv_rows(usages=("Training", "PublicTest", "PrivateTest")):
    """One image per code and usage; its first pixel tells the code, so that no two are alike."""
    rows = []
    for number, usage in enumerate(usages):
        for code in range(7):
            pixels = [code * 10 + number, *[100] * 2303]
            rows.append(f"{code},{' '.join(map(str, pixels))},{usage}")
    return rows


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, pixels, Usage", "\ufeffemotion,pixels,Usage"])
def test_csv_codes_are_not_in_alphabetical_order(tmp_path, header):
    write_csv(tmp_path / "fer2013.csv", csv_rows(), header)
    data = dataset.load(tmp_path)
    assert data.counts().loc["all"].to_dict() == {"train": 7, "validation": 7, "test": 7}
    names = {}
    for image, label in zip(data.splits["train"].images, data.splits["train"].labels, strict=True):
        names[image[0, 0] // 10] = data.labels[label]
    assert names == dict(enumerate(["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]))


FERPLUS = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def test_votes_join_folders_by_the_name_of_the_image(tmp_path):
    write_data(tmp_path / "images", {"train": 2, "validation": 1})
    rows = [
        "Training,happy_1.png,1,6,0,0,0,0,1,1,1,0",
        "Training,sad_0.png,0,0,0,9,0,0,0,0,0,0",
        "Training,,0,0,0,0,0,0,0,0,0,9",
    ]
    write_csv(tmp_path / "fer2013new.csv", rows, FERPLUS)
    data = dataset.load(tmp_path)
    train = data.splits["train"]
    happy = train.votes[train.labels == EMOTIONS.index("happy")]
    np.testing.assert_allclose(happy, [[0] * 8, [0, 0, 0.1, 0.6, 0.1, 0, 0, 0.2]], atol=1e-6)
    assert train.votes[train.labels == EMOTIONS.index("sad")][0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert "FER+ votes (Barsoum et al. 2016, MIT licence) for 2 images of train, 1 images of validation" in data.notes
    write_csv(tmp_path / "fer2013new.csv", [row.replace("_", "-") for row in rows], FERPLUS)
    assert dataset.load(tmp_path).splits["train"].votes is None
    other = dataset.load(tmp_path / "images")  # the votes lie above it
    assert other.splits["train"].votes is None and other.fingerprint() != data.fingerprint()


def test_votes_join_a_csv_by_the_number_of_the_row(tmp_path):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    usages = [usage for usage in ("Training", "PublicTest", "PrivateTest") for _ in range(7)]
    rows = [f"{usage},name{row},{row},0,0,0,{21 - row},0,0,0,0,0" for row, usage in enumerate(usages)]
    write_csv(tmp_path / "fer2013new.csv", rows, FERPLUS)
    data = dataset.load(tmp_path / "fer2013.csv")
    first = data.splits["validation"].votes[0]  # row 7
    np.testing.assert_allclose(first, [14 / 21, 0, 0, 0, 7 / 21, 0, 0, 0], atol=1e-6)
    for others in (rows[1:], rows[::-1]):
        write_csv(tmp_path / "fer2013new.csv", others, FERPLUS)
        data = dataset.load(tmp_path)
        assert data.splits["train"].votes is None
        assert "FER+ votes left out: their rows are not those of the data set" in data.notes


@pytest.mark.parametrize("votes", ["0,many,0,0,0,0,0,0,0,0", "0,-1,0,0,0,0,0,0,0,0", "0,inf,0,0,0,0,0,0,0,0"])
def test_votes_that_are_no_counts(tmp_path, votes):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    write_csv(tmp_path / "fer2013new.csv", ["Training,a,1,0,0,0,0,0,0,0,0,0", f"Training,b,{votes}"], FERPLUS)
    with pytest.raises(UserError, match="data row 2: votes are not all numbers"):
        dataset.load(tmp_path)


def test_votes_with_more_fields_than_names(tmp_path):
    write_csv(tmp_path / "fer2013.csv", csv_rows())
    write_csv(tmp_path / "fer2013new.csv", ["Training,a,1,0,0,0,0,0,0,0,0,0,5"], FERPLUS)
    with pytest.raises(UserError, match="more fields than the first line"):
        dataset.load(tmp_path)


def test_images_of_any_size_mode_and_format_and_those_that_are_none(tmp_path):
    write_data(tmp_path, {"train": 2, "validation": 2})
    place = tmp_path / "train" / "happy"
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (60, 1))
    cv2.imwrite(str(place / "large.JPG"), cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(place / "alpha.png"), cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGRA))
    cv2.imwrite(str(place / "sixteen.png"), ramp.astype(np.uint16) * 257)
    cv2.imwrite(str(place / "tiny.bmp"), ramp[:5, :5])
    cv2.imwrite(str(place / "nämé \u8138.webp"), ramp)
    (place / "empty.png").touch()
    (place / "text.jpg").write_text("this is no picture")
    (place / "notes.txt").write_text("nor is this, and it doesn't say so")
    data = dataset.load(tmp_path)
    images = data.splits["train"].images[data.splits["train"].labels == EMOTIONS.index("happy")]
    assert len(images) == 2 + 5
    wide = [image for image in images if image[24, 0] < 12 and image[24, -1] > 243]
    assert len(wide) == 4  # the ramp arrived whole from every mode and depth
    assert any("skipped 2 files" in note and "empty.png" in note and "text.jpg" in note for note in data.notes)


def test_no_data_set_is_no_error_to_find(tmp_path):
    (tmp_path / "README.md").write_text("put a data set here")
    assert readers.find_dataset(tmp_path) is None
    assert readers.find_dataset(tmp_path / "missing") is None


PIXELS = " ".join(["7"] * IMAGE_SIZE**2)
HEADER = "emotion,pixels,Usage"


def pillow(path, mode, **options):
    colour = {"CMYK": (0, 255, 255, 0), "RGBA": (255, 0, 0, 255), "LA": (76, 255), "P": 1, "1": 1, "F": 76.0}[mode]
    image = Image.new(mode, (60, 60), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(path, **options)


def csv_file(path, *rows, header=HEADER, end="\n"):
    path.write_bytes(end.join([header, *rows, ""]).encode())
    return path


GOOD_ROWS = [  # the first pixel of validation images tells the code
    f"{code},{first + code} {PIXELS[2:]},{usage}"
    for first, usage in ((100, "Training"), (0, "PublicTest"))
    for code in range(7)
]


def empty(root):
    return root


def only_hidden(root):
    return write_images(root, ["train/happy/.a.png", "train/sad/._b.png", "train/.git/c.png"])


def nothing_but_text(root):
    (root / "train" / "happy").mkdir(parents=True)
    (root / "train" / "happy" / "a.jpg").write_text("<html>404</html>")
    return root


def several(root):
    return write_images(root, ["one/train/happy/a.png", "two/train/happy/a.png"])


FOLDERS = {
    "empty": (empty, "no data set here"),
    "missing": (lambda root: root / "nowhere", "no data set here"),
    "only hidden files": (only_hidden, "no training image"),
    "no picture that can be read": (nothing_but_text, "no training image"),
    "one class": (
        lambda root: write_images(root, ["train/happy/a.png", "train/happy/b.png"]),
        "only one class (happy)",
    ),
    "a class in validation alone": (
        lambda root: write_images(root, ["train/happy/a.png", "validation/happy/b.png", "validation/sad/c.png"]),
        "no training image of sad",
    ),
    "no training images": (lambda root: write_images(root, ["val/happy/a.png", "val/sad/b.png"]), "no training image"),
    "one image a class": (lambda root: write_images(root, ["happy/a.png", "sad/b.png"]), "one image a class"),
    "several data sets": (several, "several data sets"),
    "two folders for a split": (
        lambda root: write_images(
            root, ["train/happy/a.png", "train/sad/b.png", "val/sad/c.png", "Validation/sad/d.png"]
        ),
        "several folders for validation: Validation, val",
    ),
}
TABLES = {
    "an empty file": ([], "", "no table"),
    "no rows": ([], HEADER, "no training image"),
    "no pixels": (["0,Training"], "emotion,Usage", "no table"),
    "other names": (GOOD_ROWS, "label,pixels,Usage", "no table"),
    "an open quotation in the first line": (GOOD_ROWS, 'emotion,pixels"', "no table"),
    "a first line without end": (GOOD_ROWS, f"{'x' * 985},emotion,pixels of it", "its first line is damaged"),
    "semicolons": ([row.replace(",", ";") for row in GOOD_ROWS], "emotion;pixels;Usage", "no table"),
    "too few pixels": (["0,1 2 3,Training"], HEADER, "data row 1: pixels"),
    "too many pixels": ([*GOOD_ROWS, f"0,{PIXELS} 7,Training"], HEADER, "data row 15: pixels"),
    "a pixel of 256": ([f"0,256 {PIXELS[2:]},Training"], HEADER, "data row 1: pixels"),
    "a pixel below 0": ([f"0,-1 {PIXELS[2:]},Training"], HEADER, "data row 1: pixels"),
    "a pixel of 30 digits": ([f"0,{'9' * 30} {PIXELS[2:]},Training"], HEADER, "data row 1: pixels"),
    "a pixel that is a word": ([f"0,nan {PIXELS[2:]},Training"], HEADER, "data row 1: pixels"),
    "an unknown code": ([f"7,{PIXELS},Training"], HEADER, "emotion is '7', not one of 0, 1"),
    "no code": ([f",{PIXELS},Training"], HEADER, "emotion is ''"),
    "a code for the terminal": ([f"\x1b[2J,{PIXELS},Training"], HEADER, "emotion is '\\x1b[2J'"),
    "an unknown usage": ([f"0,{PIXELS},Test"], HEADER, "Usage is 'Test'"),
    "cut off in the middle of a row": ([*GOOD_ROWS, GOOD_ROWS[0][:3000]], HEADER, "data row 15: pixels"),
    "cut off in a quotation": ([*GOOD_ROWS, f'0,"{PIXELS[:99]}'], HEADER, "data row 15: pixels"),
    "a field too many": ([f"0,{PIXELS},Training,0"], HEADER, "data row 1 has more fields"),
    "a line of a hundred megabytes": (["0," + "7 " * 50_000_000], HEADER, "data row 1: has over 32768 characters"),
    "a quotation of a hundred megabytes": (
        ['0,"' + "7 " * 50_000_000],
        HEADER,
        "data row 1: has over 32768 characters",
    ),
    "a row of more fields than lines": (['"","'] * 3 + ['\n"","'] * 200_000, HEADER, "data row 1: pixels"),
}


def refused(data, capfd, words):
    """Whether training says in one line what is wrong, and leaves nothing behind."""
    model = data.parent / "out" / "model.h5"
    assert train.main(["--data", str(data), "--model", str(model)]) == 2
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and printed.err[:-1].isprintable(), printed.err
    assert not model.parent.exists()


@pytest.mark.faults
@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_can_t_be_trained_on(tmp_path, capfd, case):
    make, words = FOLDERS[case]
    (tmp_path / "data").mkdir()
    refused(make(tmp_path / "data"), capfd, words)


@pytest.mark.faults
@pytest.mark.parametrize("case", slow_but(TABLES, *[name for name in TABLES if "a hundred megabytes" not in name]))
def test_a_table_that_can_t_be_trained_on(tmp_path, capfd, case):
    rows, header, words = TABLES[case]
    refused(csv_file(tmp_path / "fer2013.csv", *rows, header=header), capfd, words)


@pytest.mark.faults
def test_a_table_of_more_rows_than_are_read(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(readers.csv_rows, "MAX_ROWS", 13)
    refused(csv_file(tmp_path / "fer2013.csv", *GOOD_ROWS), capfd, "data row 14: a table may have 13 rows")
    monkeypatch.setattr(readers.csv_rows, "MAX_ROWS", 14)
    assert dataset.load(tmp_path).counts().loc["all"].tolist() == [7, 7]


@pytest.mark.faults
def test_votes_take_a_few_times_the_memory_of_their_file(tmp_path):
    """Where they stayed texts, it was 29 times."""
    table = write_csv(tmp_path / "fer2013new.csv", [f"Training,fer{n:07}.png{',1' * 10}" for n in range(9999)], FERPLUS)
    tracemalloc.start()
    votes = readers.read_votes([tmp_path], readers.Tree(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(votes) == 9999 and peak < 12 * table.stat().st_size


@pytest.mark.faults
def test_names_in_a_table_of_votes_are_no_longer_than_those_of_files(tmp_path):
    write_csv(tmp_path / "fer2013new.csv", [f"{'T' * 9999},{'n' * 9999}{',1' * 10}"], FERPLUS)
    votes = readers.read_votes([tmp_path], readers.Tree(tmp_path))
    assert len(votes.index[0]) == len(votes["Usage"].iloc[0]) == 255


@pytest.mark.faults
@pytest.mark.parametrize("way", ["gzip", "zip", "UTF-16", "noise"])
def test_a_table_in_another_code(tmp_path, capfd, way):
    table = "\n".join([HEADER, *GOOD_ROWS])
    data = {"gzip": gzip.compress(table.encode()), "zip": b"PK\3\4" + bytes(99), "UTF-16": table.encode("utf-16")}
    data["noise"] = np.random.default_rng(0).bytes(10000)
    (tmp_path / "fer2013.csv").write_bytes(data[way])
    refused(tmp_path / "fer2013.csv", capfd, "no table whose first line has emotion and pixels")


GOOD_TABLES = {
    "a byte-order mark": lambda path: csv_file(path, *GOOD_ROWS, header="\ufeff" + HEADER),
    "Windows's line ends": lambda path: csv_file(path, *GOOD_ROWS, end="\r\n"),
    "old Mac's line ends": lambda path: csv_file(path, *GOOD_ROWS, end="\r"),
    "more columns": lambda path: csv_file(path, *[row + ",3" for row in GOOD_ROWS], header=HEADER + ",id"),
    "quotations": lambda path: csv_file(path, *['"' + row.replace(",", '","') + '"' for row in GOOD_ROWS]),
    "empty lines": lambda path: csv_file(path, *GOOD_ROWS[:7], "", *GOOD_ROWS[7:], "", ""),
    "another order": lambda path: csv_file(
        path, *[",".join(row.split(",")[::-1]) for row in GOOD_ROWS], header="Usage,pixels,emotion"
    ),
    "no line end at the end": lambda path: path.write_text("\n".join([HEADER, *GOOD_ROWS])),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", GOOD_TABLES)
def test_a_table_that_other_programs_wrote(tmp_path, case):
    GOOD_TABLES[case](tmp_path / "fer2013.csv")
    data = dataset.load(tmp_path)
    assert data.counts().loc["all"].tolist() == [7, 7] and data.notes == ()
    firsts = {EMOTIONS[label]: image[0, 0] for image, label in zip(*data.splits["validation"][:2], strict=True)}
    assert firsts == dict(
        zip(("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), range(7), strict=True)
    )


@pytest.mark.faults
def test_a_table_of_faces_without_usage_has_some_held_out(tmp_path):
    rows = [f"{code},{value} {PIXELS[2:]}" for code in range(7) for value in range(code * 10, code * 10 + 10)]
    data = dataset.load(csv_file(tmp_path / "fer2013.csv", *rows, header="emotion,pixels"))
    assert data.counts().loc["all"].tolist() == [63, 7]


UNREADABLE = {
    "no bytes": b"",
    "cut off": gray_png()[:60],
    "a page of the web": b"<html>404 Not Found</html>",
    "a head alone": large_png(48, 48)[:33],
    "a bomb": large_png(30000, 30000, 1),
    "a long row": large_png(2**20 + 1, 1),
    "noise": np.random.default_rng(0).bytes(5000),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", UNREADABLE)
def test_an_image_that_can_t_be_read_is_skipped_and_named(tmp_path, capfd, case):
    write_images(tmp_path)
    (tmp_path / "train" / "sad" / "bad.png").write_bytes(UNREADABLE[case])
    data = dataset.load(tmp_path)
    assert data.counts().loc["all"].tolist() == [2, 2]
    assert any("skipped 1 files that can't be read" in note and "bad.png" in note for note in data.notes)
    assert capfd.readouterr() == (f"Reading the images in {tmp_path} ...\n", "")  # not a word of the libraries


@pytest.mark.faults
def test_a_file_larger_than_any_image(tmp_path):
    write_images(tmp_path)
    with open(tmp_path / "train" / "sad" / "bad.png", "wb") as file:
        file.write(gray_png())
        file.truncate(2**40)  # takes no room on the disk
    assert any("skipped 1 files" in note for note in dataset.load(tmp_path).notes)


READABLE = {  # each of them gray 76, or what is red
    "CMYK.jpg": lambda path: pillow(path, "CMYK", quality=100),
    "palette.png": lambda path: pillow(path, "P"),
    "opaque.png": lambda path: pillow(path, "RGBA"),
    "gray with alpha.png": lambda path: pillow(path, "LA"),
    "16 bit.png": lambda path: cv2.imwrite(str(path), np.full((60, 60), 76 * 257, np.uint16)),
    "animated.webp": lambda path: Image.new("RGB", (60, 60), "red").save(
        path, save_all=True, append_images=[Image.new("RGB", (60, 60), "blue")], lossless=True
    ),
    "progressive.jpg": lambda path: Image.new("L", (60, 60), 76).save(path, progressive=True),
    "one pixel.png": lambda path: path.write_bytes(gray_png(76, (1, 1))),
    "long.png": lambda path: path.write_bytes(gray_png(76, (3, 20000))),
    "large.png": lambda path: path.write_bytes(gray_png(76, (8000, 8000))),
    "jpeg by content.png": lambda path: path.write_bytes(cv2.imencode(".jpg", np.full((60, 60), 76, np.uint8))[1]),
    "CAPITALS.JPG": lambda path: path.write_bytes(gray_png(76)),
    "ein Bild, 图 и كلمة.png": lambda path: path.write_bytes(gray_png(76)),
    "two\nlines and \x1b[31mred.png": lambda path: path.write_bytes(gray_png(76)),
    "no \udcff UTF-8.png": lambda path: path.write_bytes(gray_png(76)),
    "n" * 251 + ".png": lambda path: path.write_bytes(gray_png(76)),
    "--help.png": lambda path: path.write_bytes(gray_png(76)),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", READABLE, ids=lambda name: ascii(name)[1:20])
def test_an_image_of_any_kind_and_name_is_read(tmp_path, name):
    write_images(tmp_path)
    READABLE[name](tmp_path / "validation" / "sad" / name)
    data = dataset.load(tmp_path)
    images = data.splits["validation"].images
    assert len(images) == 3 and not any("skipped" in note for note in data.notes)
    assert (abs(images.astype(int) - 76).max(axis=(1, 2)) <= 3).sum() == 1


@pytest.mark.faults
def test_an_image_of_numbers_with_a_point_is_read_or_named(tmp_path):
    write_images(tmp_path)
    pillow(tmp_path / "train" / "sad" / "float.tiff", "F")
    data = dataset.load(tmp_path)
    assert data.counts().loc["all", "train"] == 3 or any("float.tiff" in note for note in data.notes)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["a.gif", "Thumbs.db", "desktop.ini", "b.svg", "nested/"])
def test_what_is_no_image_by_its_name_is_counted_and_named(tmp_path, name):
    path = write_images(tmp_path) / "train" / "sad" / name
    path.mkdir() if name.endswith("/") else path.write_bytes(b"GIF89a")
    data = dataset.load(tmp_path)
    assert any("skipped 1 files and folders" in note and name.strip("/") in note for note in data.notes)
    assert data.labels == ("happy", "sad")


@pytest.mark.faults
def test_an_image_in_no_class_s_folder_is_counted_and_named(tmp_path):
    shutil.copy(write_images(tmp_path) / "train" / "sad" / "b.png", tmp_path / "train" / "loose.png")
    data = dataset.load(tmp_path)
    assert any("skipped 1 files that lie in no class" in note and "loose.png" in note for note in data.notes)
    assert data.counts().loc["all", "train"] == 2


@pytest.mark.faults
def test_a_folder_that_is_no_split_is_counted_and_named(tmp_path):
    write_images(tmp_path / "extra", ["happy/e.png"])
    data = dataset.load(write_images(tmp_path))
    assert data.notes == (
        f"skipped 1 folders whose names are not those of train, validation or test: {tmp_path}/extra",
    )


@pytest.mark.faults
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (600, 600), (48, 61)])
def test_whole_photographs_are_counted_and_named(tmp_path, size):
    write_images(tmp_path)
    place = tmp_path / "train" / "sad"
    (place / "photograph.png").write_bytes(gray_png(100, size))
    for name, face in (("face.png", (512, 512)), ("long face.png", (125, 100))):
        (place / name).write_bytes(gray_png(101 + len(name), face))
    [note] = dataset.load(tmp_path).notes
    assert note.startswith("squeezed 1 images, over 512 pixels or not square") and note.endswith("photograph.png")


@pytest.mark.faults
def test_what_macos_packs_beside_a_data_set_is_none(tmp_path):
    write_images(tmp_path / "fer2013")
    write_images(tmp_path / "__MACOSX", ["train/happy/._a.png", "train/sad/._b.png"])
    assert dataset.load(tmp_path).counts().loc["all"].tolist() == [2, 2]


@pytest.mark.faults
def test_a_name_that_a_terminal_would_obey_is_printed_as_its_code(tmp_path, capfd):
    write_images(tmp_path / "data")
    (tmp_path / "data" / "train" / "sad" / "\x1b[2J\nTop-1: 100 %\udcff.png").write_bytes(b"")
    train.load_data(command_line.parse(["--data", str(tmp_path / "data")], ""))
    printed = capfd.readouterr().out
    assert "\\x1b[2J\\nTop-1: 100 %\\udcff.png" in printed and "\x1b" not in printed


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["a file", "a class", "a split"])
def test_a_link_out_of_the_data_set_is_not_followed(tmp_path, kind):
    """As in an archive from the web, that would have images of this machine drawn into a report."""
    private = write_images(tmp_path / "private", ["train/angry/mine.png"]) / "train"
    data = write_images(tmp_path / "data")
    if kind == "a file":
        (data / "train" / "sad" / "z.png").symlink_to(private / "angry" / "mine.png")
    elif kind == "a class":
        (data / "train" / "angry").symlink_to(private / "angry")
    else:
        (data / "test").symlink_to(private)
    loaded = dataset.load(data)
    assert loaded.labels == ("happy", "sad") and list(loaded.splits) == ["train", "validation"]
    assert loaded.counts().loc["all"].tolist() == [2, 2]
    assert any("skipped 1 files that are links out of the data set" in note for note in loaded.notes)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["a folder", "a table", "a folder of classes"])
def test_a_link_that_is_all_there_is_of_a_data_set(tmp_path, capfd, monkeypatch, kind):
    """It is named, and neither read nor replaced by drawn faces."""
    private, web = write_images(tmp_path / "private"), tmp_path / "web"
    csv_file(private / "fer2013.csv", *GOOD_ROWS)
    web.mkdir()
    target = {"a folder": private, "a table": private / "fer2013.csv", "a folder of classes": private / "train"}[kind]
    link = web / {"a table": "fer2013.csv"}.get(kind, "fer2013")
    link.symlink_to(target)
    words = "web: no data set here; skipped 1 files that are links out of the data set; put the files there, or give "
    words += f"--data their place: {link}\n"
    refused(web, capfd, words)
    monkeypatch.setattr(train, "DATA", web)
    assert train.main([]) == 2 and words in capfd.readouterr().err
    if kind != "a folder":  # which has two data sets
        assert dataset.load(link, training=False).splits  # for who names a link means what it leads to


@pytest.mark.faults
def test_a_link_beside_a_data_set_is_not_followed(tmp_path):
    data = write_images(tmp_path / "data")
    write_csv(tmp_path / "votes.csv", ["Training,a.png,1,0,0,0,0,0,0,0,0,0"], FERPLUS)
    csv_file(tmp_path / "private.csv", *GOOD_ROWS)
    for name in ("votes.csv", "private.csv"):
        (data / name).symlink_to(tmp_path / name)
    loaded = dataset.load(data)
    assert loaded.counts().loc["all"].tolist() == [2, 2] and loaded.splits["train"].votes is None
    [note] = loaded.notes
    assert note.startswith("skipped 2 files that are links out") and "private.csv" in note and "votes.csv" in note


@pytest.mark.faults
def test_links_within_the_data_set_and_to_the_whole_of_it_are_followed(tmp_path):
    data = write_images(tmp_path / "disk")
    (data / "train" / "sad" / "z.png").symlink_to(data / "train" / "happy" / "a.png")
    (tmp_path / "data").symlink_to(data)
    assert dataset.load(tmp_path / "data").counts().loc["all", "train"] == 3


@pytest.mark.faults
@pytest.mark.parametrize("target", ["nowhere", "z.png", "../../train"], ids=["nowhere", "itself", "a circle"])
def test_a_link_that_leads_nowhere_or_round(tmp_path, target):
    data = write_images(tmp_path / "data")
    (data / "train" / "sad" / "z.png").symlink_to(target)
    (data / "train" / "loop").symlink_to("../train")
    loaded = dataset.load(data)
    assert loaded.labels == ("happy", "sad") and loaded.counts().loc["all"].tolist() == [2, 2]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["train/sad/pipe.png", "pipe.csv"])
def test_nobody_waits_for_a_pipe(tmp_path, name):
    os.mkfifo(write_images(tmp_path) / name)
    loading = threading.Thread(target=dataset.load, args=[tmp_path], daemon=True)
    loading.start()
    loading.join(20)
    assert not loading.is_alive()


@pytest.mark.faults
def test_a_file_that_vanishes_while_the_data_set_is_read(tmp_path, monkeypatch):
    last = write_images(tmp_path) / "validation" / "sad" / "d.png"
    read = readers.read_image
    monkeypatch.setattr(readers, "read_image", lambda path: (last.unlink(missing_ok=True), read(path))[1])
    data = dataset.load(tmp_path)
    assert data.counts().loc["all"].tolist() == [2, 1] and any("d.png" in note for note in data.notes)


@pytest.mark.faults
@pytest.mark.skipif(not WITHOUT_PRIVILEGES, reason="needs setpriv")
@pytest.mark.parametrize("what", ["train/sad", "train/sad/b.png", "."])
def test_without_permission(tmp_path, what):
    data = write_images(tmp_path / "data", ["train/happy/a.png", "train/sad/b.png", "train/sad/c.png", "val/sad/d.png"])
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "from expressions import UserError; from expressions.training import dataset\n"
    code += "try: print(dataset.load(sys.argv[2]).notes)\nexcept UserError as error: print(error)"
    words = [*WITHOUT_PRIVILEGES, sys.executable, "-c", code, str(ROOT), str(data)]
    (data / what).chmod(0)
    result = subprocess.run(words, capture_output=True, text=True)
    (data / what).chmod(0o700)
    assert result.stdout.count("\n") == 2 and not result.stderr, result.stderr
    assert ("skipped 1 files" if what.endswith("png") else "can't be read") in result.stdout, result.stdout
