"""What the first bytes of an image file tell: its format."""

import re

IMAGE_SUFFIXES = set(
    ".avif .bmp .heic .heif .jfif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()
)  # of the formats that are read; what else OpenCV would decode is refused by its content
HEAD_BYTES = 64  # of a file, which tell its format
FORMATS = {  # and the bytes with which their files begin
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",  # the size of its second header
    "Netpbm": rb"P[2356]\s",
    "TIFF": rb"(II[*+]\0|MM\0[*+])(?!.{4}CR)",  # CR: Canon's raw files
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n",
    # the first brand tells videos (and animations, which are videos too: avis, msf1, hevc) from images
    "AVIF": rb".{4}ftyp(avif|(mif1|miaf).{4}.*avif)",
    "HEIC": rb".{4}ftyp(hei[cxms]|mif1|miaf)",
}
PATTERNS = {name: re.compile(start, re.DOTALL) for name, start in FORMATS.items()}


def image_format(head: bytes) -> str | None:
    """Return the format of an image file, a key of FORMATS, by its first HEAD_BYTES; None for a video and all else.

    A GIF is a video, and so is an animation in AVIF or HEIC. Of an animated PNG or WebP `images` reads the first image.
    """
    return next((name for name, pattern in PATTERNS.items() if pattern.match(head[:HEAD_BYTES])), None)
