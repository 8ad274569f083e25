"""An input picture, decoded and written anew: nothing of a customer's file but its pixels goes to a server."""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from shared.domain.errors import InputUnavailable
from shared.pixels import ROOM

FORMATS: Final = ("PNG", "JPEG", "WEBP")
#: What Pillow raises for broken files, found by cutting and flipping bytes of samples.
_BROKEN: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """RGB or RGBA as PNG without any metadata. The same pixels give the same bytes, hence the same name."""

    png: bytes = field(repr=False)
    sha256: str
    width: int
    height: int


def re_encode(content: bytes, *, max_pixels: int) -> Picture:
    """The first frame, upright. Raises InputUnavailable for what is no whole PNG, JPEG or WebP picture.

    Waits while other threads fill the memory with theirs.
    """
    with _mistakes_told(max_pixels):
        image = Image.open(io.BytesIO(content), formats=FORMATS)  # reads the header only
    if image.width * image.height > max_pixels:
        raise InputUnavailable(f"{image.width} x {image.height} is more than {max_pixels} pixels")
    with ROOM.taken(image.width * image.height):
        with _mistakes_told(max_pixels):
            image.load()  # raises when the file is cut off
            _turn_upright(image)
            flat = _eight_bits(image)
        target = io.BytesIO()
        flat.save(target, format="PNG", compress_level=1)  # against level 6: a third of the time, 14 to 21 % more bytes
        png = target.getvalue()
        return Picture(png, hashlib.sha256(png).hexdigest(), flat.width, flat.height)


@contextmanager
def _mistakes_told(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputUnavailable(f"more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise InputUnavailable("not a PNG, JPEG or WebP picture") from error
    except _BROKEN as error:
        raise InputUnavailable("the picture is damaged or cut off") from error


def _turn_upright(image: Image.Image) -> None:
    """In place, since a copy of 50 million pixels is 150 MB."""
    with suppress(*_BROKEN):  # the orientation is unreadable, the pixels are not
        ImageOps.exif_transpose(image, in_place=True)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; convert() would cut everything above 255 to white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    mode = "RGBA" if has_alpha else "RGB"
    flat = image if image.mode == mode else image.convert(mode)
    flat.info.clear()  # or the PNG would carry the profile and the comments on
    return flat
