"""From an image file, of any size and kind, to the network's input; what is built to eat memory or time is refused."""

import io
import resource
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT, large_png, needs_root
from PIL import Image

from expressions import MAX_IMAGE_BYTES, UserError, image_decoder
from expressions.image_decoder import _decode_here
from expressions.image_formats import MAX_PARTS, ImageInfo, image_format, inspect_image
from expressions.images import decode_image, preprocess_face, read_image, to_gray

COLOUR = (200, 100, 50)  # BGR


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 1), (48, 48, 3), (48, 48, 4), (7, 200), (300, 310, 3), (1, 1)])
def test_preprocess_face_takes_any_image(shape):
    pixels = preprocess_face(np.full(shape, 77, np.uint8))
    assert pixels.shape == (48, 48) and pixels.dtype == np.uint8
    assert (pixels == 77).all()


def test_preprocess_face_averages_when_it_shrinks():
    checkers = (np.indices((480, 480)).sum(axis=0) % 2 * 200).astype(np.uint8)
    assert (preprocess_face(checkers) == 100).all()


HEADS = {
    b"\xff\xd8\xff\xe0": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF\x24\0\0\0WEBPVP8 ": "WebP",
    b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0": "BMP",
    b"P5\n48 48\n255\n": "Netpbm",
    b"II*\0\x08\0\0\0": "TIFF",
    b"MM\0*\0\0\0\x08": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf": "AVIF",
    b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf": "AVIF",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC",
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": "HEIC",
    b"\0\0\0\x18ftypavis\0\0\0\0avifavis": None,  # an animation, which is a video
    b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2": None,
    b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom": None,  # a raw file of a camera
    b"II*\0\x10\0\0\0CR\x02\0": None,
    b"GIF89a": None,  # a video
    b"RIFF\x24\0\0\0AVI LIST": None,
    b"BMW is a car, and no image": None,
    b"#?RADIANCE\n": None,  # OpenCV would read this and those below
    b"v/1\x01\x02\0\0\0": None,
    b"\x59\xa6\x6a\x95\0\0\0\x01": None,
    b"Pf\n4 4\n-1.0\n": None,
    b"P7\nWIDTH 4\n": None,
    b"": None,
}


@pytest.mark.parametrize("head", HEADS, ids=ascii)
def test_the_first_bytes_tell_the_format(head):
    assert image_format(head) == image_format(head + bytes(100)) == HEADS[head]


def encode(suffix, alpha=None, size=(80, 60), options=()):
    """An image of COLOUR as a file of this kind; `alpha` is its opacity, 0 to 255."""
    image = np.zeros((size[1], size[0], 3), np.uint8) + np.uint8(COLOUR)
    if alpha is not None:
        image = np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)])
    return cv2.imencode(suffix, image, options)[1].tobytes()


def pillow(kind, count=1, **options):
    """Images of 10, 20, ... in one file."""
    images = [Image.fromarray(np.full((60, 80, 3), 10 + 10 * number, np.uint8)) for number in range(count)]
    file = io.BytesIO()
    images[0].save(file, kind, **({"save_all": True, "append_images": images[1:]} if count > 1 else {}), **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks):
    data = encode(".png")
    return data[:33] + chunks + data[33:]  # after the header


def tiff(tags, data=b""):
    """A TIFF of these tags, {number: values}; `data` begins at byte 8."""
    body, entries = b"", b""
    for tag, values in tags.items():
        packed = np.uint32(values).tobytes()
        at = packed if len(packed) == 4 else struct.pack("<I", 8 + len(data) + len(body))
        body += b"" if len(packed) == 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(packed) // 4) + at
    start = 8 + len(data) + len(body)
    return b"II*\0" + struct.pack("<I", start) + data + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def endless_tiff(strips=10**6):
    """Every row is said to be the same megabyte, so that a small file takes minutes."""
    many = [8] * strips
    tags = {256: 100, 257: strips, 258: 8, 259: 32773, 262: 1, 273: many, 277: 1, 278: 1, 279: [2**20] * strips}
    return tiff(tags, bytes(2**20))


@pytest.mark.parametrize("suffix", [".avif", ".bmp", ".jp2", ".jpg", ".png", ".ppm", ".tiff", ".webp"])
def test_each_format_is_read(tmp_path, suffix):
    (tmp_path / "me").write_bytes(encode(suffix))  # told by its content
    image = read_image(tmp_path / "me")
    assert image.shape == (60, 80, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert (abs(image.astype(int) - COLOUR) <= 3).all()


@pytest.mark.parametrize("suffix", [".avif", ".bmp", ".jp2", ".png", ".tiff", ".webp"])
def test_what_is_transparent_is_white(suffix):
    expected = np.array(COLOUR) * 0.2 + 255 * 0.8
    assert (abs(decode_image(encode(suffix, alpha=51), "me") - expected) <= 3).all()


def test_ten_bits_are_scaled_and_blended():
    image = np.full((60, 80, 4), 800, np.uint16)
    image[:, :, 3] = 205
    data = cv2.imencode(".avif", image, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    assert (abs(decode_image(data, "me") - (800 / 1023 * 255 * 0.2 + 255 * 0.8)) <= 3).all()


@pytest.mark.faults
def test_heic_is_read_or_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match="pip install pillow-heif"):
        _decode_here(ImageInfo("HEIC", b"", alpha=True))
    monkeypatch.undo()
    pillow_heif = pytest.importorskip("pillow_heif")
    for alpha, expected in ((None, COLOUR), (51, np.array(COLOUR) * 0.2 + 255 * 0.8)):
        mode, pixels = ("RGB", np.uint8(COLOUR)[::-1]) if alpha is None else ("RGBA", np.uint8([*COLOUR[::-1], alpha]))
        file = io.BytesIO()
        pillow_heif.from_bytes(mode, (80, 60), np.tile(pixels, (60, 80, 1)).tobytes()).save(file, quality=100)
        assert (abs(decode_image(file.getvalue(), "me") - expected) <= 4).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_of_several_images_the_first_is_read_and_a_line_says_so(kind, capsys):
    assert (abs(decode_image(pillow(kind, 3), "me.x").astype(int) - 10) <= 3).all()
    assert capsys.readouterr().err == "me.x: holds several images; only the first is read\n"
    decode_image(pillow(kind), "me.x")
    assert capsys.readouterr().err == ""


@pytest.mark.faults
def test_the_texts_of_a_png_are_not_unpacked():
    """300 of 8 MB each took 2 GB."""
    bombs = b""
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        bombs += chunk(kind, head + zlib.compress(bytes(7_900_000), 9))
    before, image = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, decode_image(png_with(bombs * 100), "me")
    assert (image == COLOUR).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 50_000
    assert inspect_image(png_with(bombs)).data == encode(".png")
    assert inspect_image(png_with(chunk(b"CgBI", b"1234"))).data != encode(".png")  # such a one must not be dropped


def test_what_a_png_needs_is_kept():
    exif = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
    assert decode_image(png_with(chunk(b"eXIf", exif)), "me").shape == (80, 60, 3)  # turned upright
    clear = struct.pack(">3H", *COLOUR[::-1])
    assert (decode_image(png_with(chunk(b"tRNS", clear)), "me") == 255).all()


def progressive(scans, size=64):
    """A JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


SLOW = {  # and a word of the reason
    "thousands of scans": (lambda: progressive(3000), "too many scans"),
    "many scans of a large image": (
        lambda: progressive(10).replace(b"\0\x40\0\x40", b"\x2a\xf8\x2a\xf8"),
        "too many scans",
    ),
    "scans after much else": (lambda: progressive(3000).replace(b"\xff\xc4", b"\xff\xff\x01\xff\xc4", 1), "too many"),
    "arithmetic coding": (lambda: encode(".jpg").replace(b"\xff\xc0", b"\xff\xc9"), "arithmetic"),
    "segments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * (MAX_PARTS + 1) + encode(".jpg")[2:], "segments"),
    "chunks": (lambda: png_with(chunk(b"tEXt", b"") * MAX_PARTS), "chunks"),
    "a chunk that claims 2 GB": (lambda: png_with(b"\x7f\xff\xff\xf0zTXtk\0\0"), "cut off"),
    "an end that claims 1 GB": (lambda: png_with(b"IENDIEND"), "cut off"),
    "a file of 512 MB": (lambda: bytes(MAX_IMAGE_BYTES + 1), "more than 128 MB"),
    "a zip bomb": (lambda: large_png(16000, 16000, 1), "too large"),
}


@pytest.mark.faults
@pytest.mark.parametrize("what", SLOW)
def test_what_is_built_to_be_slow_is_refused(what):
    make, reason = SLOW[what]
    data, start = make(), time.process_time()
    with pytest.raises(UserError, match=f"^me: not an image.*{reason}"):
        decode_image(data, "me")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("trailer", [b"", b"\xff\xda" * 200, np.random.default_rng(0).bytes(10**6)])
def test_a_progressive_jpeg_is_read_whatever_follows_it(trailer):
    """Phones append videos and further images."""
    thumbnail = b"\xff\xe1\x02\x02" + b"\xff\xda" * 256  # within a segment
    data = progressive(20)
    assert decode_image(data[:2] + thumbnail + data[2:] + trailer, "me").shape == (64, 64, 3)


@pytest.mark.faults
@pytest.mark.parametrize("data", [b"GIF89a" + bytes(99), b"#?RADIANCE\n\n-Y 1 +X 1\n", b"Pf\n1 1\n-1\n\0\0\0\0", b""])
def test_other_formats_are_refused_by_their_content(data):
    with pytest.raises(UserError, match="^me.jpg: not an image of a known format"):
        decode_image(data, "me.jpg")


@pytest.mark.faults
def test_the_preview_of_a_raw_file_is_not_taken_for_the_image():
    image = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    assert decode_image(tiff(image, bytes(64)), "me").shape == (8, 8, 3)
    for raw in ({254: 1} | image, image | {50706: 1}):
        with pytest.raises(UserError, match="raw file"):
            decode_image(tiff(raw, bytes(64)), "me")


@pytest.mark.faults
def test_what_takes_too_long_is_stopped_and_the_next_image_is_read(monkeypatch):
    decode_image(encode(".tiff"), "me")  # the process is there
    monkeypatch.setattr(image_decoder, "MAX_WAIT_SECONDS", 0.5)
    with pytest.raises(UserError, match="me: not an image.* too much time or memory"):
        decode_image(endless_tiff(10**5), "me")
    monkeypatch.undo()
    assert decode_image(encode(".tiff"), "me").shape == (60, 80, 3)
    if sys.platform == "linux":
        limits = open(f"/proc/{image_decoder._process.pid}/limits").read()
        [memory] = (line.split()[3] for line in limits.splitlines() if line.startswith("Max data size"))
        assert int(memory) == image_decoder.MAX_DECODE_BYTES


@pytest.mark.faults
@needs_root
def test_a_system_that_allows_less_memory_than_an_image_may_take():
    code = """import resource as r; from expressions import image_decoder
r.setrlimit(r.RLIMIT_DATA, (2**31,) * 2); image_decoder.limit_resources(CPU=30, DATA=2**32)
print(r.getrlimit(r.RLIMIT_DATA)[0], r.getrlimit(r.RLIMIT_CPU)[0])"""
    words = ["setpriv", "--bounding-set=-sys_resource", sys.executable, "-c", code]
    assert subprocess.check_output(words, cwd=ROOT, text=True).split() == [str(2**31), "30"]


@pytest.mark.faults
def test_the_processor_time_of_an_image_is_limited(monkeypatch):
    monkeypatch.setattr(image_decoder, "MAX_DECODE_SECONDS", 2)
    start = time.monotonic()
    with pytest.raises(UserError, match="too much time or memory"):
        decode_image(endless_tiff(), "me")
    assert time.monotonic() - start < image_decoder.MAX_WAIT_SECONDS - 5


@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 1), (60, 80, 3), (60, 80, 4)])
def test_gray_and_colour_become_gray(shape):
    assert (to_gray(np.full(shape, 77, np.uint8)) == np.full((60, 80), 77)).all()


@pytest.mark.faults
@pytest.mark.parametrize(
    "image, found",
    [
        (None, "None, as cv2.imread returns"),
        ("me.jpg", "a str"),
        ([np.zeros((9, 9), np.uint8), np.zeros((8, 9), np.uint8)], "a list"),
        (np.zeros((9, 9, 3), np.float32), r"float32 \(9, 9, 3\)"),
        (np.zeros((9, 9, 2), np.uint8), r"uint8 \(9, 9, 2\)"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"uint8 \(2, 9, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), r"uint8 \(0, 9, 3\)"),
        (np.uint8(7), "a uint8"),
    ],
)
def test_what_is_no_image_is_named(image, found):
    with pytest.raises(UserError, match=f"gray .height, width. or BGR .height, width, 3., and this is {found}"):
        to_gray(image)
