"""A picture is whole or refused, and the words in it are gone without a pixel changed."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from shared.pictures import MAX_PIXELS, BrokenPicture, verified

SECRET = "a customer's own words"


def drawn(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A picture in which neighbouring pixels differ, so damage shows."""
    noise = Image.effect_noise(size, 80)
    return noise.convert(mode) if mode != "RGBA" else Image.merge("RGBA", (noise, noise, noise, noise))


def png(image: Image.Image | None = None, *, words: bool = True) -> bytes:
    info = PngImagePlugin.PngInfo()
    if words:
        info.add_text("prompt", SECRET)
        info.add_text("workflow", SECRET * 50, zip=True)
        info.add_itxt("parameters", SECRET)
    exif = Image.Exif()
    exif[0x010E] = SECRET
    file = io.BytesIO()
    (image or drawn()).save(file, "PNG", pnginfo=info, **({"exif": exif} if words else {}))
    return file.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = SECRET
    file = io.BytesIO()
    (image or drawn()).save(file, "JPEG", exif=exif, comment=SECRET, icc_profile=b"not really a profile", **options)
    return file.getvalue()


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.size, image.tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")
#: First column and row of each pass, and the steps between: PNG specification, section 8.2.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG = png()
JPEG = jpeg()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_stripping_a_png_keeps_every_pixel_and_no_word(mode):
    data = png(drawn(mode))
    picture = verified(data)
    assert pixels(picture.data) == pixels(data)
    assert (picture.media_type, picture.extension) == ("image/png", "png")
    assert (picture.width, picture.height) == (23, 17)
    for name in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", SECRET.encode()):
        assert name in data or name == SECRET.encode()
        assert name not in picture.data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_stripping_a_jpeg_keeps_every_pixel_and_no_word(mode, options):
    data = jpeg(drawn(mode), **options)
    assert data.count(SECRET.encode()) == 2
    picture = verified(data)
    assert SECRET.encode() not in picture.data
    assert pixels(picture.data) == pixels(data)
    assert b"ICC_PROFILE" in picture.data
    assert (picture.media_type, picture.extension) == ("image/jpeg", "jpg")


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_stripping_twice_is_stripping_once(data):
    once = verified(data)
    assert verified(once.data) == once


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_what_follows_the_end_is_dropped(data):
    assert verified(data + SECRET.encode() + data) == verified(data)


@given(cut=st.integers(0, len(PNG) - 1))
def test_a_cut_off_png_is_refused(cut):
    with pytest.raises(BrokenPicture):
        verified(PNG[:cut])


@given(cut=st.integers(0, len(JPEG) - 1))
def test_a_cut_off_jpeg_is_refused(cut):
    with pytest.raises(BrokenPicture):
        verified(JPEG[:cut])


@settings(max_examples=400)
@given(at=st.integers(0, len(PNG) - 1), flip=st.integers(1, 255))
def test_one_changed_byte_in_a_png_is_refused_or_changes_no_pixel(at, flip):
    damaged = bytearray(PNG)
    damaged[at] ^= flip
    try:
        picture = verified(bytes(damaged))
    except BrokenPicture:
        return
    assert pixels(picture.data) == pixels(PNG)


@settings(max_examples=400)
@given(at=st.integers(0, len(JPEG) - 1), flip=st.integers(1, 255))
def test_one_changed_byte_in_a_jpeg_raises_nothing_else(at, flip):
    damaged = bytearray(JPEG)
    damaged[at] ^= flip
    try:
        verified(bytes(damaged))
    except BrokenPicture:
        return


@settings(max_examples=300)
@given(start=st.sampled_from([b"", SIGNATURE, SIGNATURE + header(3, 3), b"\xff\xd8\xff", JPEG[:200]]), rest=st.binary())
def test_arbitrary_bytes_raise_nothing_but_broken_picture(start, rest):
    try:
        verified(start + rest)
    except BrokenPicture:
        return


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"<html>busy</html>", "neither PNG nor JPEG"),
        (b"GIF89a" + bytes(20), "neither PNG nor JPEG"),
        (SIGNATURE + END, "header"),
        (SIGNATURE + header(3, 3) + END, "no pixels"),
        (SIGNATURE + header(0, 3) + chunk(b"IDAT", b"") + END, "no size"),
        (SIGNATURE + header(3, 3) + header(3, 3) + END, "two headers"),
        (SIGNATURE + chunk(b"IHDR", bytes([0, 0, 0, 3, 0, 0, 0, 3, 7, 0, 0, 0, 0])) + END, "does not exist"),
        (SIGNATURE + header(3, 3) + chunk(b"ABCD", b"") + END, "critical"),
        (SIGNATURE + header(3, 3) + chunk(b"IDAT", zlib.compress(bytes(4))) + END, "end early"),
        (SIGNATURE + header(3, 3) + chunk(b"IDAT", b"not zlib") + END, "cannot be decoded"),
        (JPEG[:2] + JPEG[-2:], "no pixels"),
    ],
)
def test_each_kind_of_damage_has_its_sentence(data, sentence):
    with pytest.raises(BrokenPicture, match=sentence):
        verified(data)


def test_pixel_data_that_stops_early_is_refused_although_every_checksum_is_right():
    rows = b"".join(b"\x00" + Image.effect_noise((200, 1), 80).tobytes() for _ in range(200))
    whole = zlib.compress(rows)
    cut_off = [whole[:length] for length in (0, len(whole) // 2, len(whole) - 12)]
    for pixels_in_file in (*cut_off, zlib.compress(rows[:-1]), zlib.compress(rows[:201])):
        with pytest.raises(BrokenPicture, match="end early"):
            verified(SIGNATURE + header(200, 200) + chunk(b"IDAT", pixels_in_file) + END)
    assert verified(SIGNATURE + header(200, 200) + chunk(b"IDAT", whole) + END).width == 200


def test_pixel_data_split_over_many_chunks_is_one_picture():
    rows = zlib.compress(b"".join(b"\x00" + Image.effect_noise((90, 1), 80).tobytes() for _ in range(90)))
    chunks = b"".join(chunk(b"IDAT", rows[at : at + 100]) for at in range(0, len(rows), 100))
    assert verified(SIGNATURE + header(90, 90) + chunks + END).height == 90


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (23, 17)])
def test_an_interlaced_png_is_whole(size):
    width, height = size
    rows = b""
    for x, y, every_x, every_y in ADAM7:
        columns, lines = len(range(x, width, every_x)), len(range(y, height, every_y))
        rows += (b"\x00" + bytes(columns)) * lines if columns else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    assert verified(SIGNATURE + head + chunk(b"IDAT", zlib.compress(rows)) + END).width == width
    with pytest.raises(BrokenPicture):
        verified(SIGNATURE + head + chunk(b"IDAT", zlib.compress(rows[:-1])) + END)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    side = 8192
    assert side * side == MAX_PIXELS
    rows = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    for width, height in ((side + 1, side), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(BrokenPicture, match="refused"):
            verified(SIGNATURE + header(width, height) + rows + END)
