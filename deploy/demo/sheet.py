"""The contact sheet: what was ordered on the left, what came back on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Final
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageDraw, ImageOps

from shared.domain.messages import Order

_CELL: Final = 132
_GAP: Final = 10
_LINE: Final = 16
_COLUMNS: Final = 4
_PAPER: Final = (247, 246, 243)
_INK: Final = (60, 60, 60)


@dataclass(frozen=True, slots=True)
class Pair:
    """One order and the files of its pictures."""

    order: Order
    pictures: Sequence[Path]


def contact_sheet(pairs: Sequence[Pair], to: Path) -> None:
    """Write the sheet as PNG: before and after of every order, four orders a row."""
    rows = -(-len(pairs) // _COLUMNS)
    width = _COLUMNS * (2 * _CELL + _GAP) + (_COLUMNS + 1) * _GAP
    sheet = Image.new("RGB", (width, rows * (_CELL + _LINE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, pair in enumerate(pairs):
        left = _GAP + place % _COLUMNS * (2 * _CELL + 2 * _GAP)
        top = _GAP + place // _COLUMNS * (_CELL + _LINE + _GAP)
        sheet.paste(_thumbnail(_before(pair.order)), (left, top))
        with Image.open(pair.pictures[0]) as after:
            sheet.paste(_thumbnail(after), (left + _CELL + 2, top))
        more = f" x{len(pair.pictures)}" if len(pair.pictures) > 1 else ""
        label = f"{pair.order.idempotency_key[-2:]}  {pair.order.workflow or pair.order.pool}{more}"
        draw.text((left, top + _CELL + 2), label, fill=_INK)
    sheet.save(to)


def _before(order: Order) -> Image.Image:
    photo = order.inputs.get("photo")
    if photo is None and "color" not in order.inputs:
        return _words(order)
    if photo is None:
        colour = int(order.inputs["color"])
        return Image.new("RGB", (_CELL, _CELL), (colour >> 16, colour >> 8 & 255, colour & 255))
    with Image.open(unquote(urlsplit(photo).path)) as image:
        return image.convert("RGB")


def _words(order: Order) -> Image.Image:
    """What an image API was asked for."""
    inputs = order.inputs
    prompt = str({**inputs, **inputs.get("arguments", {}), **inputs.get("input", {})}.get("prompt", ""))
    image = Image.new("RGB", (_CELL, _CELL), (255, 255, 255))
    ImageDraw.Draw(image).multiline_text((8, 30), "\n".join(wrap(prompt, 18)), fill=_INK, spacing=5)
    return image


def _thumbnail(image: Image.Image) -> Image.Image:
    return ImageOps.fit(image.convert("RGB"), (_CELL, _CELL))
