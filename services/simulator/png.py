"""PNG files as SaveImage writes them: the picture, and text chunks with the graph before its data."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

#: Pixels up to which rows are packed as they are. A benchmark draws thousands of tiny ones, which takes Pillow three
#: times as long; for larger ones its filters make smaller files.
_TINY: Final = 4096
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT: Final = (8, 2, 0, 0, 0)  # bits, colour type, compression, filter, no interlace


def png(picture: Image.Image, texts: Sequence[tuple[str, str]], compression: int) -> bytes:
    """The file of an RGB picture. texts -- keyword and ASCII text of each chunk"""
    if picture.width * picture.height <= _TINY:
        return _packed(picture, texts, compression)
    chunks = PngInfo()
    for keyword, text in texts:
        chunks.add_text(keyword, text)
    target = io.BytesIO()
    picture.save(target, "PNG", pnginfo=chunks, compress_level=compression)
    return target.getvalue()


def _packed(picture: Image.Image, texts: Sequence[tuple[str, str]], compression: int) -> bytes:
    size = struct.pack(">II5B", *picture.size, *_RGB_8_BIT)
    pixels, row = picture.tobytes(), 3 * picture.width
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    about = [_chunk(b"tEXt", f"{keyword}\0{text}".encode("latin-1")) for keyword, text in texts]
    data = _chunk(b"IDAT", zlib.compress(rows, compression))
    return b"".join((_SIGNATURE, _chunk(b"IHDR", size), *about, data, _chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
