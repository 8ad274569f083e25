"""Whether bytes are a whole picture, and the picture without the words that travel in it. Pure.

The structure is walked by hand, because a decoder forgives: it shows half a picture, and it keeps what it does not
draw. The pixels themselves are left to Pillow, and nothing is encoded again.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from PIL import Image

from shared.pixels import ROOM

#: More pixels than 8192 x 8192 are refused before anything is decoded: 268 MB at four bytes each.
MAX_PIXELS: Final = 8192 * 8192

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: Chunks that carry words: ComfyUI writes the whole graph with its prompts into tEXt, others use eXIf.
_PNG_WORDS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf"})
#: Later chunks are read over by every decoder, so each critical one must be known here.
_PNG_CRITICAL: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
#: Colour type -> samples per pixel, and the depths it may have.
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: First column and row of each interlace pass, and the steps between.
_ADAM7: Final = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
#: Bytes inflated at a time; nothing inflated is kept.
_INFLATE_STEP: Final = 1024 * 1024

_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_APP1, _APP2, _APP13 = 0xE1, 0xE2, 0xED  # Exif and XMP; ICC profile among others; Photoshop and IPTC
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; DHT, JPG and DAC share the range
_WITHOUT_LENGTH: Final = frozenset({0x01, _SOI, *range(0xD0, 0xD8)})

#: What a decoder raises about a file made to break it.
_DECODER_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class BrokenPicture(ValueError):
    """The bytes are not one whole PNG or JPEG picture that we are willing to decode."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A whole picture without its words."""

    data: bytes = field(repr=False)
    media_type: Literal["image/png", "image/jpeg"]
    width: int
    height: int

    @property
    def extension(self) -> str:
        return "png" if self.media_type == "image/png" else "jpg"


def verified(data: bytes) -> Picture:
    """The picture in `data`, every chunk of it checked, the words and whatever follows its end taken out.

    Raises BrokenPicture. A changed byte inside the compressed data of a JPEG goes unseen: it has no checksum.
    """
    if data.startswith(_PNG_SIGNATURE):
        picture = _png(data)
        format_name = "PNG"
    elif data.startswith(b"\xff\xd8\xff"):
        picture = _jpeg(data)
        format_name = "JPEG"
    elif not data:
        raise BrokenPicture("the file is empty")
    else:
        raise BrokenPicture("the file is neither PNG nor JPEG")
    with ROOM.taken(picture.width * picture.height):
        _must_decode(picture, format_name)
    return picture


def _png(data: bytes) -> Picture:
    kept = [_PNG_SIGNATURE]
    size: tuple[int, int] | None = None
    raw_bytes = 0
    compressed: list[bytes] = []
    for kind, body, whole in _png_chunks(data):
        if size is None:
            if kind != b"IHDR" or len(body) != 13:
                raise BrokenPicture("the PNG does not begin with its header")
            size = struct.unpack(">II", body[:8])
            _must_be_reasonable(*size)
            raw_bytes = _png_raw_bytes(body)
        elif kind == b"IHDR":
            raise BrokenPicture("the PNG has two headers")
        if kind[0:1].isupper() and kind not in _PNG_CRITICAL:
            raise BrokenPicture("the PNG has a critical chunk nobody knows")
        if kind == b"IDAT":
            compressed.append(body)
        if kind not in _PNG_WORDS:
            kept.append(whole)
    if size is None or not compressed:
        raise BrokenPicture("the PNG holds no pixels")
    _must_inflate_to(raw_bytes, compressed)
    return Picture(b"".join(kept), "image/png", *size)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, body, chunk as it stands in the file) up to IEND; what follows IEND is not part of the picture."""
    at = len(_PNG_SIGNATURE)
    while True:
        if len(data) < at + 12:
            raise BrokenPicture("the PNG ends before its end chunk")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not kind.isalpha():
            raise BrokenPicture("the PNG has a chunk without a name")
        if end > len(data):
            raise BrokenPicture("the PNG ends inside a chunk")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != checksum:
            raise BrokenPicture(f"the checksum of the PNG's {kind.decode('ascii', 'replace')} chunk is wrong")
        yield kind, data[at + 8 : end - 4], data[at:end]
        if kind == b"IEND":
            return
        at = end


def _png_raw_bytes(header: bytes) -> int:
    """How many bytes the pixels have before compression: each row is a filter byte and its packed samples."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth not in _PNG_DEPTHS.get(colour, ()) or interlaced > 1:
        raise BrokenPicture("the PNG's header names a kind of picture that does not exist")
    bits = depth * _PNG_SAMPLES[colour]
    total = 0
    for x, y, every_x, every_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // every_x), -(-(height - y) // every_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _must_inflate_to(raw_bytes: int, compressed: list[bytes]) -> None:
    """Pillow shows a picture whose data ends early in good order as whole, the rest black; so the bytes are counted.

    Data beyond the picture is accepted as every viewer does, but not inflated.
    """
    inflate = zlib.decompressobj()
    missing = raw_bytes
    try:
        for body in compressed:
            waiting = body
            while waiting and missing > 0 and not inflate.eof:
                missing -= len(inflate.decompress(waiting, min(missing, _INFLATE_STEP)))
                waiting = inflate.unconsumed_tail
        while missing > 0 and not inflate.eof:
            more = inflate.decompress(inflate.unconsumed_tail, min(missing, _INFLATE_STEP))
            if not more:
                break
            missing -= len(more)
    except zlib.error as error:
        raise BrokenPicture("the PNG's pixels cannot be decoded") from error
    if missing > 0:
        raise BrokenPicture("the PNG's pixels end early")


def _jpeg(data: bytes) -> Picture:
    kept = [data[:2]]
    size: tuple[int, int] | None = None
    has_pixels = False
    at = 2
    while True:
        at, marker = _jpeg_marker(data, at)
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            break
        if marker in _WITHOUT_LENGTH or marker == 0:
            raise BrokenPicture("the JPEG has a marker in the wrong place")
        length = int.from_bytes(data[at : at + 2])
        body = data[at + 2 : at + length]
        if length < 2 or len(body) != length - 2:
            raise BrokenPicture("the JPEG ends inside a segment")
        if marker in _FRAMES:
            if size is not None or length < 8:
                raise BrokenPicture("the JPEG's frame header is broken")
            size = (int.from_bytes(body[3:5]), int.from_bytes(body[1:3]))
            _must_be_reasonable(*size)
        end = at + length
        if marker == _SOS:
            if size is None:
                raise BrokenPicture("the JPEG has pixels before its frame header")
            has_pixels = True
            end = _end_of_scan(data, end)
        if not _is_words(marker, body):
            kept += (b"\xff", bytes([marker]), data[at:end])
        at = end
    if size is None or not has_pixels:
        raise BrokenPicture("the JPEG holds no pixels")
    return Picture(b"".join(kept), "image/jpeg", *size)


def _jpeg_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at `at` and where its segment goes on; any number of 0xFF may stand before it."""
    if at >= len(data):
        raise BrokenPicture("the JPEG ends before its end marker")
    if data[at] != 0xFF:
        raise BrokenPicture("the JPEG has bytes between its segments")
    while at < len(data) and data[at] == 0xFF:
        at += 1
    if at >= len(data):
        raise BrokenPicture("the JPEG ends before its end marker")
    return at + 1, data[at]


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the compressed data ends: at the next marker that is neither a stuffed zero nor a restart."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise BrokenPicture("the JPEG ends inside its pixels")
        following = data[at + 1]
        if following == 0xFF:
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at


def _is_words(marker: int, body: bytes) -> bool:
    """APP2 is also used for further pictures behind this one, which are gone by then."""
    if marker == _APP2:
        return not body.startswith(b"ICC_PROFILE\x00")
    return marker in (_APP1, _APP13, _COM)


def _must_be_reasonable(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BrokenPicture("the picture has no size")
    if width * height > MAX_PIXELS:
        raise BrokenPicture(f"the picture has {width} x {height} pixels, more than {MAX_PIXELS} are refused")


def _must_decode(picture: Picture, format_name: str) -> None:
    """The structure can be whole around compressed data that is not."""
    try:
        with Image.open(io.BytesIO(picture.data), formats=(format_name,)) as image:
            size = image.size
            image.load()
    except _DECODER_ERRORS as error:
        raise BrokenPicture(f"the picture cannot be decoded ({type(error).__name__})") from error
    if size != (picture.width, picture.height):
        raise BrokenPicture("the picture contradicts its own header")
