"""The words of the command line: files, folders, patterns, lists, cameras and addresses."""

import os
import time
from pathlib import Path

import pytest
from samples import write_image

from expressions import UserError
from expressions.inference.names import expand_sources, output_path, parse_size, resolve_source
from expressions.inference.sources import Source


def test_a_folder_and_a_pattern_become_their_images_and_videos_in_natural_order(tmp_path):
    for name in (
        "video10.MP4",
        "video2.mp4",
        "video².mp4",
        "a.png",
        "notes.txt",
        ".hidden.jpg",
        "B.webm",
        "inner/c.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [str(tmp_path / name) for name in ("a.png", "B.webm", "video2.mp4", "video10.MP4", "video².mp4")]
    assert expand_sources(str(tmp_path)) == names
    assert expand_sources(f"{tmp_path}/video*") == names[2:]
    assert expand_sources(f"{tmp_path}/*/*") == [str(tmp_path / "inner" / "c.jpg")]
    for nothing in (tmp_path / "folder.png", tmp_path / "*.txt", tmp_path / "none*"):
        with pytest.raises(UserError, match="no image or video there"):
            expand_sources(str(nothing))


def test_a_single_source_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("video[1].mp4", "7"):
        Path(name).touch()
    Path("0").mkdir()
    write_image(Path("0/me.png"))
    for word in (
        "0",
        "/dev/video0",
        "video.mp4",
        "video[1].mp4",
        "7",
        "",
        "http://host/stream?x=*",
        "rtsp://[::1]/[1]",
    ):
        assert expand_sources(word) == [word]
    assert expand_sources("./0") == ["0/me.png"]
    with pytest.raises(UserError, match="^7: not a video"):  # the file, not the camera
        Source("7")
    with pytest.raises(UserError, match="camera 0: can't be opened"):
        Source("0")


def test_a_size_is_width_and_height():
    assert parse_size("1280x720") == parse_size("1280X720") == (1280, 720)
    for text in ("1280", "x720", "0x10", "1280x", "-1x5", "axb", "10x10x10"):
        with pytest.raises(UserError, match="--size"):
            parse_size(text)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_names_as_people_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    touch(tmp_path, "[2023] party/me.jpg", "[2023] party/may/b.JPG", "GOPR1.JPG", "my me.jpg", "2/x.jpg", "names.txt")
    assert expand_sources("[2023] party/*.jpg") == ["[2023] party/me.jpg"]
    assert expand_sources("[2023] party/**/*.jpg") == ["[2023] party/may/b.JPG", "[2023] party/me.jpg"]
    assert expand_sources("GOPR*.jpg") == expand_sources("G*.jPg") == ["GOPR1.JPG"]
    assert expand_sources("[0-9]/*.JPG") == ["2/x.jpg"]
    assert resolve_source("~/me.jpg") == os.path.join(tmp_path, "me.jpg")
    assert resolve_source(f"file://{tmp_path}/my%20me.jpg") == resolve_source(f"FILE://localhost{tmp_path}/my%20me.jpg")
    assert resolve_source(f"file://{tmp_path}/my%20me.jpg") == f"{tmp_path}/my me.jpg"
    Path("names.txt").write_text("~/GOPR1.JPG\n")
    assert expand_sources("names.txt") == [f"{tmp_path}/GOPR1.JPG"]
    for same in ("0", "me.jpg", "http://host/~me/a.jpg", "rtsp://[::1]/x", ""):
        assert resolve_source(same) == same
    assert resolve_source("file:///caf\udce9.jpg") == "/caf\udce9.jpg"  # as Latin-1, in a list of names
    for other in ("file://server/share/me.jpg", "file://["):
        with pytest.raises(UserError, match="another computer"):
            resolve_source(other)
    touch(tmp_path, "~/me.jpg")
    assert resolve_source("~/me.jpg") == "~/me.jpg"  # a folder that is called so


@pytest.mark.faults
def test_a_pattern_on_a_drive_that_is_not_there(monkeypatch):
    """As on Windows, where Z:\\ may be no folder."""
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(UserError, match="^/none/.*: no image or video there"):
        expand_sources("/none/*.jpg")


@pytest.mark.faults
def test_links_in_a_circle_give_each_file_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "videos/a.jpg", "videos/sub/b.jpg", "videos/sub/.hidden/c.jpg", "elsewhere/d.jpg")
    links = {"self": ".", "up": "..", "sub/again": "..", "loop": "loop", "0.jpg": "a.jpg", "elsewhere": "../elsewhere"}
    for link, target in links.items():
        Path("videos", link).symlink_to(target)
    start = time.process_time()
    own = ["videos/a.jpg", "videos/sub/b.jpg"]
    for pattern in ("videos/**/*.jpg", "videos/**", "./videos/**/**/*.jpg", "v*/**/*.jpg"):
        found = expand_sources(pattern)
        assert set(found) > set(own) and len(found) == 3 and len(set(map(os.path.realpath, found))) == 3, pattern
    assert time.process_time() - start < 1
    assert expand_sources("videos") == ["videos/a.jpg"]
    assert expand_sources("videos/**/sub/*.jpg") == ["videos/sub/b.jpg"]
    monkeypatch.chdir("videos")
    assert expand_sources("**/sub/*.jpg") == ["sub/b.jpg"]


@pytest.mark.faults
def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    touch(
        tmp_path, "a.jpg", "b.gif", "c.heic", "d.jfif", "e.avif", "f.jp2", "notes.md", "x.psd", "sub/g.jpg", ".hidden"
    )
    assert len(expand_sources(str(tmp_path))) == 6
    words = "left out 3 files and folders whose names don't end as those of images and videos do: notes.md, sub, x.psd"
    assert capsys.readouterr().err == f"{tmp_path}: {words}\n"
    assert len(expand_sources(f"{tmp_path}/*")) == 6
    assert "left out 2 files" in capsys.readouterr().err
    assert len(expand_sources(f"{tmp_path}/*.jpg")) == 1 and capsys.readouterr().err == ""
    with pytest.raises(
        UserError, match=r"year: no image or video there, but in its subfolders; give .*year/\*\*/\*\"$"
    ):
        touch(tmp_path, "year/may/me.jpg")
        expand_sources(str(tmp_path / "year"))


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"a" * 2**20, b"a.jpg\n\0b\n", b"", b"\n \n"])
def test_a_list_that_is_none(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(
        UserError, match="names.txt: (is no UTF-8 text with|empty; give) the name of a file in each line"
    ):
        expand_sources(str(tmp_path / "names.txt"))


@pytest.mark.faults
def test_no_two_files_share_a_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["x", "../x", "dir../x", "dir__/x", "__/x", "___/x", "../__/x", "__/../../x.", "a/../../../x"]
    results = [output_path(name, "*") for name in names]
    assert len(set(results)) == len(names) and not any(".." in Path(result).parts for result in results)
    assert results[:3] == ["x", "__/x", "dir../x"]
