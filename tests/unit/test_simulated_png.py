"""The PNG files of the simulated ComfyUI: those it packs itself are those that Pillow would write."""

import io

import pytest
from PIL import Image

from services.simulator.png import png


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (7, 585), (64, 65)])
def test_a_picture_and_its_texts_are_read_back_as_they_were(size: tuple[int, int]) -> None:
    picture = Image.effect_noise(size, 80).convert("RGB")
    texts = [("prompt", '{"1": {}}'), ("workflow", "[]")]

    with Image.open(io.BytesIO(png(picture, texts, 4))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", size)
        assert read.tobytes() == picture.tobytes()
        assert dict(read.info) == dict(texts)


def test_the_texts_stand_before_the_picture() -> None:
    data = png(Image.new("RGB", (16, 16)), [("prompt", "{}")], 1)
    assert data.index(b"tEXtprompt\0{}") < data.index(b"IDAT") < data.index(b"IEND")
