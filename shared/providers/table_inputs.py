"""One input of a provider's table: its type, its bounds, and whether a value keeps them. Pure."""

import re
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from shared.providers.values import is_finite, reference_problem

_TEXT_MAX: Final = 32_000
_MOST_PICTURES: Final = 16
#: owner/model, an endpoint's name: it becomes part of an address.
_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Input(BaseModel):
    """A value that an order may give; required unless it has a default or is optional.

    send -- pictures: as a data URL, as a file of a multipart body, or as the address itself for the provider to fetch
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    type: Literal["string", "int", "float", "bool", "object", "path", "images"]
    optional: bool = False
    default: Any = None
    min: int | float | None = None
    max: int | float | None = None
    max_length: int | None = None
    choices: list[str] | None = None
    send: Literal["data_url", "file", "url"] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.min is not None or self.max is not None) and self.type not in ("int", "float"):
            raise ValueError("min and max are for numbers")
        if (self.max_length is not None or self.choices is not None) and self.type not in ("string", "path"):
            raise ValueError("max_length and choices are for text")
        if (self.send is not None) != (self.type == "images"):
            raise ValueError("send goes with images")
        if self.default is not None and (problem := self.problem(self.default)):
            raise ValueError(f"default {problem}")
        return self

    @property
    def is_required(self) -> bool:
        return not self.optional and self.default is None

    def is_sure(self, with_images: bool) -> bool:
        """Whether it always has a value; pictures have one wherever an order with pictures is sent."""
        return not self.optional or (with_images and self.type == "images")

    def problem(self, value: Any) -> str | None:
        """Why `value` cannot be used, as the end of a sentence; None when it can."""
        match self.type:
            case "string" | "path":
                return self._text_problem(value)
            case "int":
                if isinstance(value, bool) or not isinstance(value, int):
                    return "must be a whole number"
                return self._range_problem(value)
            case "float":
                if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
                    return "must be a number"
                return self._range_problem(value)
            case "bool":
                return None if isinstance(value, bool) else "must be true or false"
            case "object":
                return None if isinstance(value, dict) else "must be an object"
            case "images":
                return _pictures_problem(value)

    def _text_problem(self, value: Any) -> str | None:
        if not isinstance(value, str) or not value:
            return "must be text"
        longest = _TEXT_MAX if self.max_length is None else self.max_length
        if len(value) > longest:
            return f"must be at most {longest} characters"
        if self.choices is not None and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.type == "path" and not _PATH.fullmatch(value):
            return "must be a name such as owner/model"
        return None

    def _range_problem(self, value: float) -> str | None:
        if (self.min is not None and value < self.min) or (self.max is not None and value > self.max):
            low, high = ("any" if bound is None else bound for bound in (self.min, self.max))
            return f"must be within {low} and {high}"
        return None


def _pictures_problem(value: Any) -> str | None:
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_PICTURES:
        return f"must be a list of 1 to {_MOST_PICTURES} addresses"
    return next((problem for item in value if (problem := reference_problem(item))), None)
