"""From an image of any size and kind to the network's input."""

import numpy as np
import pytest

from expressions.image_formats import image_format
from expressions.images import preprocess_face


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
