"""The words of the command line: files, folders, patterns, lists, cameras and addresses."""

from pathlib import Path

import pytest
from samples import write_image

from expressions import UserError
from expressions.inference.names import expand_sources, parse_size
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
