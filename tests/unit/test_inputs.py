"""Input pictures from folders, what Pillow makes of them, and which addresses are refused."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.domain.errors import InputLater, InputUnavailable
from shared.providers.addresses import is_public
from shared.providers.inputs import Pictures
from shared.providers.picture import re_encode

PIXELS = 1_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def a_gradient(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_format_becomes_a_png_with_a_stable_name(kind: str) -> None:
    content = encoded(a_gradient(), kind)
    picture = re_encode(content, max_pixels=PIXELS)
    assert (picture.width, picture.height) == (40, 20)
    assert opened(picture.png).mode == "RGB"
    assert picture == re_encode(content, max_pixels=PIXELS)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", "RGB"), ("LA", "RGBA"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "RGB"), ("I;16", "RGB")],
)
def test_each_mode_becomes_rgb_or_rgba(mode: str, expected: str) -> None:
    assert opened(re_encode(encoded(a_gradient(mode)), max_pixels=PIXELS).png).mode == expected


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    content = encoded(Image.new("I;16", (4, 4), 0x8000))
    assert opened(re_encode(content, max_pixels=PIXELS).png).getpixel((0, 0)) == (128, 128, 128)


def test_a_cmyk_photo_is_taken() -> None:
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = opened(re_encode(content, max_pixels=PIXELS).png).getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


def test_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010E] = "Mrs Miller, 4 Elm Street"
    content = encoded(a_gradient(), "JPEG", exif=exif, comment=b"secret comment", icc_profile=b"profile-bytes")
    picture = re_encode(content, max_pixels=PIXELS)
    assert (picture.width, picture.height) == (20, 40)
    for trace in (b"Miller", b"secret comment", b"profile-bytes", b"eXIf", b"tEXt", b"iCCP"):
        assert trace not in picture.png


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        content = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({} if kind == "PNG" else {"lossless": True})
        )
        assert opened(re_encode(content, max_pixels=PIXELS).png).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(InputUnavailable, match="40 x 20 is more than 799 pixels"):
        re_encode(encoded(a_gradient()), max_pixels=799)


@pytest.mark.parametrize("size", [(12_000, 8_000), (20_000, 20_000)])
def test_a_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    content = encoded(Image.new("1", size))
    with pytest.raises(InputUnavailable, match="pixels"):
        re_encode(content, max_pixels=64_000_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_picture_that_is_cut_off_is_refused(kind: str, share: float) -> None:
    content = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), kind)
    with pytest.raises(InputUnavailable):
        re_encode(content[: int(len(content) * share)], max_pixels=PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_flipped_bytes_never_end_in_a_foreign_exception(kind: str) -> None:
    content = encoded(Image.effect_noise((60, 60), 80).convert("RGB"), kind)
    for position in range(0, len(content), max(1, len(content) // 150)):
        broken = bytearray(content)
        broken[position] ^= 0xFF
        try:
            re_encode(bytes(broken), max_pixels=PIXELS)
        except InputUnavailable:
            continue


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html></html>", encoded(a_gradient(), "GIF"), encoded(a_gradient(), "TIFF")]
)
def test_what_is_no_png_jpeg_or_webp_is_refused(content: bytes) -> None:
    with pytest.raises(InputUnavailable, match="not a PNG, JPEG or WebP"):
        re_encode(content, max_pixels=PIXELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a b.png").write_bytes(encoded(a_gradient()))
    (tmp_path / "outside.png").write_bytes(encoded(a_gradient()))
    return inside


def test_files_are_named_by_path_or_file_address(folder: Path) -> None:
    pictures = Pictures(folders=[folder.parent / "other", folder])
    for reference in ("a b.png", str(folder / "a b.png"), (folder / "a b.png").as_uri(), f"file:{folder}/a%20b.png"):
        assert pictures.get(reference).width == 40


def test_nothing_outside_the_allowed_folders_is_read(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "up").symlink_to(folder.parent)
    pictures = Pictures(folders=[folder])
    for reference in (
        "../outside.png",
        "link.png",
        "up/outside.png",
        str(folder.parent / "outside.png"),
        f"file://{folder}/%2e%2e/outside.png",
        f"{folder}-other/../outside.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://otherhost/etc/passwd",
        "a\x00.png",
        "file:%00",
    ):
        with pytest.raises(InputUnavailable):
            pictures.get(reference)
    with pytest.raises(InputUnavailable, match="allowed folders only"):
        Pictures().get(str(folder / "a b.png"))


def test_folders_pipes_and_missing_files_are_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    pictures = Pictures(folders=[folder])
    for reference in ("pipe", ".", "missing.png", "a b.png/x"):
        with pytest.raises(InputUnavailable):
            pictures.get(reference)


def test_a_file_above_the_cap_is_refused(folder: Path) -> None:
    size = (folder / "a b.png").stat().st_size
    assert Pictures(folders=[folder], max_bytes=size).get("a b.png")
    with pytest.raises(InputUnavailable, match=f"larger than {size - 1} bytes"):
        Pictures(folders=[folder], max_bytes=size - 1).get("a b.png")


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("192.0.0.8", "198.18.0.1", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::"),
        *("2002:a00:1::", "no address"),
    ],
)
def test_an_address_of_our_own_network_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/a.png", "http://[::1]/a.png", "http://localhost/a.png", "http://2130706433/a.png"),
        *("http://0x7f.1/a.png", "http://127.1/a.png", "http://[::ffff:10.0.0.1]/a.png", "HTTP://169.254.169.254/meta"),
    ],
)
def test_no_spelling_of_our_own_network_is_called(url: str) -> None:
    with pytest.raises(InputUnavailable, match="not on the public internet"):
        Pictures().get(url)


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    pictures = Pictures(resolve=lambda host, port: ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(InputUnavailable, match="not on the public internet"):
        pictures.get("http://pictures.example/a.png")


def test_a_name_that_does_not_resolve_may_do_so_later() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(InputLater):
        Pictures(resolve=fails).get("http://pictures.example/a.png")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://a b/", "http://x:99999/", "ftp://host/a.png", "gopher://x"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputUnavailable):
        Pictures().get(url)


def test_messages_show_neither_query_nor_password() -> None:
    with pytest.raises(InputUnavailable) as caught:
        Pictures().get("http://user:hush@127.0.0.1/photo.png?X-Signature=hush#hush")
    assert str(caught.value).startswith("http://127.0.0.1/photo.png: ")
    assert "hush" not in str(caught.value)
