"""The installed node types as data: what /object_info says and what validation checks against.

Input lists are those of ComfyUI's nodes.py; the texts of tooltips are left out, as in the recorded samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Type (a name, or a list of choices) and its configuration, as in INPUT_TYPES.
InputSpec = tuple[str | list[str], dict[str, Any]]

_TIP: Final = {"tooltip": "<text left out>"}
_UPSCALE: Final = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_SAMPLERS: Final = [
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "ddpm",
    "lcm",
    "ddim",
    "uni_pc",
]
_SCHEDULERS: Final = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]


@dataclass(frozen=True)
class NodeType:
    """One node class. `choices` replaces the choices of the input called so by what is installed at that moment."""

    name: str
    display_name: str
    category: str
    required: Mapping[str, InputSpec]
    returns: tuple[str, ...]
    hidden: Mapping[str, str] | None = None
    return_names: tuple[str, ...] | None = None
    is_output: bool = False
    description: str = ""
    aliases: tuple[str, ...] = ()
    essentials: str | None = None
    checks_itself: tuple[str, ...] = ()  # inputs of its VALIDATE_INPUTS, exempt from range and choice checks

    def inputs(self, choices: Callable[[str], list[str]]) -> dict[str, InputSpec]:
        """The required inputs with the choices of this moment filled in. None of these nodes has optional ones."""
        if self.name not in _OPEN_CHOICES:
            return dict(self.required)
        open_input = _OPEN_CHOICES[self.name]
        return {
            name: (choices(self.name), config) if name == open_input else (kind, config)
            for name, (kind, config) in self.required.items()
        }

    def describe(self, choices: Callable[[str], list[str]], is_modern: bool) -> dict[str, Any]:
        """The entry of this node in /object_info."""
        inputs: dict[str, Any] = {"required": {name: _listed(spec) for name, spec in self.inputs(choices).items()}}
        order = {"required": list(self.required)}
        if self.hidden is not None:
            inputs["hidden"] = dict(self.hidden)
            order["hidden"] = list(self.hidden)
        described: dict[str, Any] = {
            "input": inputs,
            "input_order": order,
            "is_input_list": False,
            "output": list(self.returns),
            "output_is_list": [False] * len(self.returns),
            "output_name": list(self.return_names or self.returns),
            "name": self.name,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": "nodes",
            "category": self.category,
            "output_node": self.is_output,
        }
        if is_modern:
            described["has_intermediate_output"] = False
            described["search_aliases"] = list(self.aliases)
            if self.essentials is not None:
                described["essentials_category"] = self.essentials
        return described


#: Nodes with one input whose choices depend on the files of the server.
_OPEN_CHOICES: Final = {"LoadImage": "image", "CheckpointLoaderSimple": "ckpt_name"}


def _listed(spec: InputSpec) -> list[Any]:
    kind, config = spec
    return [kind, config] if config else [kind]


def _int(default: int, low: int, high: int, **more: Any) -> InputSpec:
    return "INT", {"default": default, "min": low, "max": high, **more}


def _float(default: float, low: float, high: float, **more: Any) -> InputSpec:
    return "FLOAT", {"default": default, "min": low, "max": high, **more}


_IMAGE: Final[InputSpec] = ("IMAGE", {})
_PROMPT_AND_INFO: Final = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}

_TYPES: Final = (
    NodeType(
        "EmptyImage",
        "Empty Image",
        "image",
        {
            "width": _int(512, 1, 16384, step=1),
            "height": _int(512, 1, 16384, step=1),
            "batch_size": _int(1, 1, 4096),
            "color": _int(0, 0, 0xFFFFFF, step=1, display="color"),
        },
        ("IMAGE",),
    ),
    NodeType(
        "LoadImage",
        "Load Image",
        "image",
        {"image": ([], {"image_upload": True})},
        ("IMAGE", "MASK"),
        aliases=(
            "load image",
            "open image",
            "import image",
            "image input",
            "upload image",
            "read image",
            "image loader",
        ),
        essentials="Basics",
        checks_itself=("image",),
    ),
    NodeType(
        "ImageScale",
        "Upscale Image",
        "image/upscaling",
        {
            "image": _IMAGE,
            "upscale_method": (_UPSCALE, {}),
            "width": _int(512, 0, 16384, step=1),
            "height": _int(512, 0, 16384, step=1),
            "crop": (["disabled", "center"], {}),
        },
        ("IMAGE",),
    ),
    NodeType(
        "ImageScaleToTotalPixels",
        "Scale Image to Total Pixels",
        "image/upscaling",
        {
            "image": _IMAGE,
            "upscale_method": (_UPSCALE, {}),
            "megapixels": _float(1.0, 0.01, 16.0, step=0.01),
            "resolution_steps": _int(1, 1, 256),
        },
        ("IMAGE",),
    ),
    NodeType("ImageInvert", "Invert Image", "image", {"image": _IMAGE}, ("IMAGE",)),
    NodeType("ImageBatch", "Batch Images", "image", {"image1": _IMAGE, "image2": _IMAGE}, ("IMAGE",)),
    NodeType(
        "RepeatImageBatch",
        "Repeat Image Batch",
        "image/batch",
        {"image": _IMAGE, "amount": _int(1, 1, 4096)},
        ("IMAGE",),
    ),
    NodeType(
        "SaveImage",
        "Save Image",
        "image",
        {"images": ("IMAGE", _TIP), "filename_prefix": ("STRING", {"default": "ComfyUI", **_TIP})},
        ("IMAGE",),
        hidden=_PROMPT_AND_INFO,
        return_names=("images",),
        is_output=True,
        description="<text left out>",
        aliases=("save", "save image", "export image", "output image", "write image", "download"),
        essentials="Basics",
    ),
    NodeType(
        "PreviewImage",
        "Preview Image",
        "image",
        {"images": _IMAGE},
        ("IMAGE",),
        hidden=_PROMPT_AND_INFO,
        return_names=("images",),
        is_output=True,
        description="<text left out>",
    ),
    NodeType("LabPreview", "Lab Preview", "testing", {"image": _IMAGE}, ("IMAGE",)),
    NodeType(
        "CheckpointLoaderSimple",
        "Load Checkpoint",
        "loaders",
        {"ckpt_name": ([], _TIP)},
        ("MODEL", "CLIP", "VAE"),
    ),
    NodeType(
        "CLIPTextEncode",
        "CLIP Text Encode (Prompt)",
        "conditioning",
        {"text": ("STRING", {"multiline": True, "dynamicPrompts": True, **_TIP}), "clip": ("CLIP", _TIP)},
        ("CONDITIONING",),
    ),
    NodeType(
        "EmptyLatentImage",
        "Empty Latent Image",
        "latent",
        {
            "width": _int(512, 16, 16384, step=8, **_TIP),
            "height": _int(512, 16, 16384, step=8, **_TIP),
            "batch_size": _int(1, 1, 4096, **_TIP),
        },
        ("LATENT",),
    ),
    NodeType(
        "KSampler",
        "KSampler",
        "sampling",
        {
            "model": ("MODEL", _TIP),
            "seed": _int(0, 0, 0xFFFFFFFFFFFFFFFF, control_after_generate=True, **_TIP),
            "steps": _int(20, 1, 10000, **_TIP),
            "cfg": _float(8.0, 0.0, 100.0, step=0.1, round=0.01, **_TIP),
            "sampler_name": (_SAMPLERS, _TIP),
            "scheduler": (_SCHEDULERS, _TIP),
            "positive": ("CONDITIONING", _TIP),
            "negative": ("CONDITIONING", _TIP),
            "latent_image": ("LATENT", _TIP),
            "denoise": _float(1.0, 0.0, 1.0, step=0.01, **_TIP),
        },
        ("LATENT",),
    ),
    NodeType("VAEDecode", "VAE Decode", "latent", {"samples": ("LATENT", _TIP), "vae": ("VAE", _TIP)}, ("IMAGE",)),
    NodeType("VAEEncode", "VAE Encode", "latent", {"pixels": _IMAGE, "vae": ("VAE", {})}, ("LATENT",)),
)

NODE_TYPES: Final[Mapping[str, NodeType]] = {each.name: each for each in _TYPES}
