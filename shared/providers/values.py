"""One input of a workflow: its type, its bounds, and whether a value keeps them. Pure.

A value that reaches a graph is always a scalar: ComfyUI reads a two-item list as a link to another node.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

#: KSampler's own range.
_SEED_MAX: Final = 2**64 - 1
_TEXT_MAX: Final = 2000
_REFERENCE_MAX: Final = 4096
_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")


class InputSpec(BaseModel):
    """Where a value goes and what it may be. No default means that an order must give it (a seed is derived)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    node: str
    field: str
    type: Literal["int", "float", "string", "choice", "image", "seed"]
    min: int | float | None = None
    max: int | float | None = None
    max_length: int | None = None
    choices: list[str] | None = None
    default: int | float | str | None = None

    @property
    def is_required(self) -> bool:
        return self.default is None and self.type != "seed"

    @property
    def low(self) -> float:
        return (0 if self.type == "seed" else -math.inf) if self.min is None else self.min

    @property
    def high(self) -> float:
        return (_SEED_MAX if self.type == "seed" else math.inf) if self.max is None else self.max


#: Which of the bounds make sense for a type.
_BOUNDS: Final = {
    "int": {"min", "max", "default"},
    "float": {"min", "max", "default"},
    "string": {"max_length", "default"},
    "choice": {"choices", "default"},
    "image": set[str](),
    "seed": {"min", "max"},
}


def spec_problems(spec: InputSpec) -> Iterator[str]:
    """What is wrong with a binding, seen without its graph."""
    for name in ("min", "max", "max_length", "choices", "default"):
        if getattr(spec, name) is not None and name not in _BOUNDS[spec.type]:
            yield f"{name} makes no sense for type {spec.type}"
    if spec.type in ("int", "float") and (spec.min is None or spec.max is None):
        yield "min and max are needed"
    for bound in (spec.min, spec.max):
        if spec.type in ("int", "seed") and isinstance(bound, float):
            yield "bounds must be whole numbers"
        if bound is not None and not math.isfinite(bound):
            yield "bounds must be finite"
    if spec.low > spec.high:
        yield "min is above max"
    if spec.type == "seed" and (spec.low < 0 or spec.high > _SEED_MAX):
        yield "a seed lies within 0 and 2^64 - 1"
    if spec.type == "choice" and not spec.choices:
        yield "choices are needed"
    if spec.max_length is not None and spec.max_length < 1:
        yield "max_length is below 1"
    if spec.default is not None and (problem := value_problem(spec, spec.default)):
        yield f"default {problem}"


def value_problem(spec: InputSpec, value: Any) -> str | None:
    """Why `value` cannot be used, as the end of a sentence; None when it can."""
    match spec.type:
        case "int" | "seed":
            if isinstance(value, bool) or not isinstance(value, int):
                return "must be a whole number"
        case "float":
            if isinstance(value, bool) or not isinstance(value, int | float):
                return "must be a number"
            if not is_finite(value):
                return "must be finite"
        case "string":
            if not isinstance(value, str):
                return "must be text"
            longest = _TEXT_MAX if spec.max_length is None else spec.max_length
            return f"must be at most {longest} characters" if len(value) > longest else None
        case "choice":
            if not isinstance(value, str) or value not in (spec.choices or []):
                return f"must be one of {', '.join(spec.choices or [])}"
            return None
        case "image":
            return reference_problem(value)
    if not spec.low <= value <= spec.high:
        return f"must be within {spec.low} and {spec.high}"
    return None


def is_finite(value: float) -> bool:
    """Whether it is a number that a float can hold. Pure."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def reference_problem(value: Any) -> str | None:
    """Why `value` cannot be the address of a picture, as the end of a sentence; None when it can."""
    if not isinstance(value, str) or not value.strip():
        return "must be the address of a picture"
    if len(value) > _REFERENCE_MAX:
        return f"must be at most {_REFERENCE_MAX} characters"
    scheme = _SCHEME.match(value)
    if scheme and scheme[1].lower() not in ("http", "https", "file"):
        return "must be an http, https or file address"
    return None
