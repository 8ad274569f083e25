"""The stock nodes, drawn with Pillow. An IMAGE is a list of RGB pictures, a MASK a list of grey ones."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError

from .files import Folders
from .png import png

Images = list[Image.Image]

_RESAMPLING: Final = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: Steps and seconds per step of LabPreview, as in the recording of ws_preview_plain.
_LAB_STEPS, _LAB_SECONDS = 3, 0.1


class Interrupted(Exception):
    """Somebody asked to stop the running prompt."""


class NotInstalled(RuntimeError):
    """A node type that exists for validation only came to run."""


@dataclass
class Run:
    """What nodes may use of the prompt they run in."""

    graph_text: str  # as JSON
    extra_data: Mapping[str, Any]
    folders: Folders
    is_corrupt: bool  # the fault corrupt_output struck this prompt
    temp_suffix: Callable[[str], str]
    on_step: Callable[[str, int, int, bytes], None]  # node id, value, max, JPEG; raises Interrupted when asked to stop
    still_wanted: Callable[[], bool]  # False once the server was restarted under us
    saved: int = 0  # files written to output/


@dataclass(frozen=True)
class Result:
    """What a node yields: one value per output slot, and `ui` when it is an output node."""

    slots: tuple[Any, ...]
    ui: dict[str, Any] = field(default_factory=dict)


def execute(node_id: str, class_name: str, values: Mapping[str, Any], run: Run) -> Result:
    """Run one node. Raises what the node raises; that becomes the prompt's execution_error."""
    if class_name not in _NODES:
        raise NotInstalled(f"{class_name} needs a model, and none is installed on this server")
    return _NODES[class_name](node_id, values, run)


def _empty_image(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    color = values["color"]
    rgb = (color >> 16 & 255, color >> 8 & 255, color & 255)
    picture = Image.new("RGB", (values["width"], values["height"]), rgb)
    return Result(([picture] * values["batch_size"],))


def _load_image(_node_id: str, values: Mapping[str, Any], run: Run) -> Result:
    path = run.folders.locate(values["image"])
    if path is None:
        raise FileNotFoundError(f"[Errno 2] No such file or directory: '{run.folders.of('input') / values['image']}'")
    picture = _decode(path)
    rgb = ImageOps.exif_transpose(picture)
    if rgb.mode == "I":
        rgb = rgb.point(lambda level: level * (1 / 255))
    alpha = rgb.getchannel("A") if "A" in rgb.getbands() else None
    mask = ImageOps.invert(alpha) if alpha is not None else Image.new("L", (64, 64))
    return Result(([rgb.convert("RGB")], [mask]))


def _decode(path: Path) -> Image.Image:
    """Decode as tolerantly as the real server: a file cut off in the middle comes out black below the cut."""
    data = path.read_bytes()
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except UnidentifiedImageError:
        raise
    except (OSError, ValueError, SyntaxError):
        # The switch is global to Pillow. Only this thread decodes pictures that may be cut off.
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            picture = Image.open(io.BytesIO(data))
            picture.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    return picture


def _image_scale(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    images: Images = values["image"]
    width, height = values["width"], values["height"]
    if width == 0 and height == 0:
        return Result((images,))
    across, down = images[0].size
    width = width or max(1, round(across * height / down))
    height = height or max(1, round(down * width / across))
    return Result((_scaled(images, width, height, values["upscale_method"], values["crop"]),))


def _scale_to_total_pixels(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    images: Images = values["image"]
    across, down = images[0].size
    factor = (values["megapixels"] * 1024 * 1024 / (across * down)) ** 0.5
    step = values["resolution_steps"]
    width, height = (max(1, round(side * factor / step) * step) for side in (across, down))
    return Result((_scaled(images, width, height, values["upscale_method"], "disabled"),))


def _scaled(images: Images, width: int, height: int, method: str, crop: str) -> Images:
    return [_scaled_one(picture, width, height, method, crop) for picture in images]


def _scaled_one(picture: Image.Image, width: int, height: int, method: str, crop: str) -> Image.Image:
    if picture.size == (width, height):
        return picture
    if crop == "center":
        across, down = picture.size
        if across / down > width / height:
            margin = round((across - across * (width / height) / (across / down)) / 2)
            picture = picture.crop((margin, 0, across - margin, down))
        else:
            margin = round((down - down * (across / down) / (width / height)) / 2)
            picture = picture.crop((0, margin, across, down - margin))
    return picture.resize((width, height), _RESAMPLING[method])


def _image_invert(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    return Result(([ImageChops.invert(picture) for picture in values["image"]],))


def _image_batch(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    first: Images = values["image1"]
    second = _scaled(values["image2"], *first[0].size, "bilinear", "center")
    return Result(([*first, *second],))


def _repeat_image_batch(_node_id: str, values: Mapping[str, Any], _run: Run) -> Result:
    return Result((values["image"] * values["amount"],))


def _lab_preview(node_id: str, values: Mapping[str, Any], run: Run) -> Result:
    target = io.BytesIO()
    values["image"][0].save(target, "JPEG")
    for step in range(1, _LAB_STEPS + 1):
        time.sleep(_LAB_SECONDS)
        run.on_step(node_id, step, _LAB_STEPS, target.getvalue())
    return Result((values["image"],))


def _save_image(_node_id: str, values: Mapping[str, Any], run: Run) -> Result:
    return _save(values["images"], values["filename_prefix"], "output", 4, run)


def _preview_image(node_id: str, values: Mapping[str, Any], run: Run) -> Result:
    return _save(values["images"], f"ComfyUI_temp_{run.temp_suffix(node_id)}", "temp", 1, run)


def _save(images: Images, prefix: str, kind: str, compression: int, run: Run) -> Result:
    """Write each picture in place under the next free number, with graph and extra_pnginfo as text chunks."""
    folder, stem, subfolder, counter = run.folders.place_to_save(prefix, kind, images[0].size)
    texts = _texts(run)
    entries = []
    for number, picture in enumerate(images):
        if not run.still_wanted():
            raise Interrupted
        name = f"{stem.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
        data = png(picture, texts, compression)
        is_cut = run.is_corrupt and kind == "output"
        with open(f"{folder}/{name}", "wb", buffering=0) as file:
            file.write(data[: len(data) // 2] if is_cut else data)
        entries.append({"filename": name, "subfolder": subfolder, "type": kind})
        run.saved += kind == "output"
    return Result((images,), {"images": entries})


def _texts(run: Run) -> list[tuple[str, str]]:
    more = run.extra_data.get("extra_pnginfo") or {}
    return [("prompt", run.graph_text), *((name, json.dumps(value)) for name, value in more.items())]


def new_temp_suffix() -> str:
    """Five letters, as PreviewImage puts into its names."""
    return "".join(random.choice("abcdefghijklmnopqrstupvxyz") for _ in range(5))  # the alphabet of the original


_NODES: Final[dict[str, Callable[[str, Mapping[str, Any], Run], Result]]] = {
    "EmptyImage": _empty_image,
    "LoadImage": _load_image,
    "ImageScale": _image_scale,
    "ImageScaleToTotalPixels": _scale_to_total_pixels,
    "ImageInvert": _image_invert,
    "ImageBatch": _image_batch,
    "RepeatImageBatch": _repeat_image_batch,
    "LabPreview": _lab_preview,
    "SaveImage": _save_image,
    "PreviewImage": _preview_image,
}
