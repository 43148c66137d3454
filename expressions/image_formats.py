"""What the content of an image file tells before it is decoded: its format, and whether decoding it is cheap."""

import re
import struct
from typing import NamedTuple

import numpy as np

from expressions import UserError

# of the formats that are read; what else OpenCV would decode is refused by its content
IMAGE_SUFFIXES = set(".avif .bmp .heic .heif .jfif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
WRITTEN_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # of those that OpenCV can also write
HEAD_BYTES = 64  # of a file, which tell its format
FORMATS = {  # and the bytes with which their files begin, as regular expressions
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",  # the size of its second header
    "Netpbm": rb"P[2356]\s",
    "TIFF": rb"(II[*+]\0|MM\0[*+])(?!.{4}CR)",  # CR: Canon's raw files
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n",
    # the first brand tells images from videos, and from animations, which are videos too (avis, msf1, hevc)
    "AVIF": rb".{4}ftyp(avif|(mif1|miaf).{4}.*avif)",
    "HEIC": rb".{4}ftyp(hei[cxms]|mif1|miaf)",
}
LIMITED = ("TIFF", "JPEG 2000", "AVIF", "HEIC")  # their headers don't tell what decoding costs

MAX_PARTS = 2**17  # chunks of a PNG, segments of a JPEG
MAX_SCANS = 100  # of a progressive JPEG, which usually has ten: each takes as long as a whole image
MAX_SCANNED_PIXELS = 2**31  # a JPEG's scans times its pixels: a few seconds
KEPT_CHUNKS = (b"tRNS", b"eXIf")  # of a PNG, besides those that every PNG has: transparent colour, orientation
MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # a JPEG's segment; not those that have no length
EOI, SOS = 0xD9, 0xDA  # end of image, start of scan
BASELINE, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # kinds of JPEG, by the marker of the frame's header
RARE_JPEG = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF


class ImageInfo(NamedTuple):
    """What `inspect_image` found.

    Attributes:
        format: A key of FORMATS.
        data: The file's content without what decoding doesn't need.
        alpha: Whether parts may be transparent.
        several: Whether there are more images than the first, as in an animation.
    """

    format: str
    data: bytes
    alpha: bool = False
    several: bool = False


def image_format(head: bytes) -> str | None:
    """Return the format of an image file, a key of FORMATS, by its first HEAD_BYTES; None for a video and all else.

    A GIF is a video, and so is an animation in AVIF or HEIC. Of an animated PNG or WebP `images` reads the first image.
    """
    return next((name for name, start in FORMATS.items() if re.match(start, head[:HEAD_BYTES], re.DOTALL)), None)


def inspect_image(data: bytes) -> ImageInfo:
    """Inspect the content of an image file. Raises UserError if it is none, is cut off, or is built to be slow."""
    found = image_format(data)
    if found is None:
        raise UserError(f"not an image of a known format ({', '.join(FORMATS)})")
    try:
        if found == "PNG":
            return _inspect_png(data)
        if found == "JPEG":
            return _inspect_jpeg(data)
        if found == "WebP":
            flags = data[20] if data[12:16] == b"VP8X" else data[24] & 16 if data[12:16] == b"VP8L" else 0
            return ImageInfo(found, data, bool(flags & 16), data[12:16] == b"VP8X" and bool(flags & 2))
        if found == "TIFF":
            return _inspect_tiff(data)
        return ImageInfo(found, data, found in LIMITED or found == "BMP" and data[28] == 32)
    except (struct.error, IndexError, ValueError):
        raise UserError("not an image: it is cut off") from None


def _inspect_png(data):
    """Keep only the chunks that decoding takes: libpng unpacks compressed texts, up to 8 GB of them."""
    view, parts, start, alpha, several = memoryview(data), [data[:8]], 8, False, False
    for _ in range(MAX_PARTS):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + size + 12
        if end > len(data):  # libpng would take the memory first
            raise IndexError
        alpha |= kind == b"tRNS" or (kind == b"IHDR" and data[start + 17] in (4, 6))  # the colour type
        several |= kind == b"acTL"
        if kind in KEPT_CHUNKS or not kind[0] & 32:  # a capital: no decoder may pass it over
            parts.append(view[start:end])
        if kind == b"IEND":
            return ImageInfo("PNG", b"".join(parts), alpha, several)
        start = end
    raise UserError(f"not an image: it has more than {MAX_PARTS} chunks")


def _inspect_jpeg(data):
    """Walk from segment to segment as libjpeg does, and count the scans where it would go through all of them."""
    start, pixels, components, scans, frame = 2, 0, 0, 0, None
    for _ in range(MAX_PARTS):
        match = MARKER.search(data, start)
        marker = data[match.end() - 1] if match else EOI
        if marker == EOI:
            return ImageInfo("JPEG", data)
        start = match.end()
        if marker in RARE_JPEG:
            raise UserError("not an image: a JPEG with lossless or arithmetic coding; convert it to an ordinary one")
        if marker in (*BASELINE, PROGRESSIVE):
            frame, height, width, components = marker, *struct.unpack_from(">HHB", data, start + 3)
            pixels = height * width
        if marker == SOS:
            scans += 1
            if frame in BASELINE and data[start + 2] >= components:  # one scan has it all
                return ImageInfo("JPEG", data)
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
                raise UserError("not an image, or too large a one: it has too many scans")
        start += struct.unpack_from(">H", data, start)[0]
    raise UserError(f"not an image: it has more than {MAX_PARTS} segments")


def _inspect_tiff(data):
    """Tell whether there are several pages; refuse a camera's raw file, whose first page is only a preview."""
    if data[2:4] not in (b"*\0", b"\0*"):  # BigTIFF
        return ImageInfo("TIFF", data, alpha=True)
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entry = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("count", order + "u4"), ("value", order + "u4")])
    tags = np.frombuffer(data, entry, count, start + 2)
    if DNG_VERSION in tags["tag"] or (tags["value"][tags["tag"] == SUBFILE_TYPE] & 1).any():
        raise UserError("not an image but a camera's raw file; convert it to JPEG")
    (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    return ImageInfo("TIFF", data, alpha=True, several=following != 0)
