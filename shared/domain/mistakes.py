"""What is wrong with what somebody sent, field by field, in words for whoever has to mend it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

#: Stands for the field when the mistake is in the order as a whole.
WHOLE: Final = "order"


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with one field; `message` is the end of a sentence that begins with the field."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def mistakes_in(error: ValidationError) -> list[Mistake]:
    """Every mistake that pydantic found, in our words."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return [_mistake(problem) for problem in problems]


def _mistake(problem: Mapping[str, Any]) -> Mistake:
    field = ".".join(str(part)[:64] for part in problem["loc"]) or WHOLE
    match problem["type"]:
        case "missing":
            return Mistake(field, "is missing")
        case "extra_forbidden":
            return Mistake(field, "is unknown")
        case "json_invalid":
            return Mistake(field, str(problem["msg"]).replace("Invalid JSON", "is not JSON"))
    return Mistake(field, str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input "))
