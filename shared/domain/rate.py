"""How often work may be started at a backend. Pure."""

import re
from dataclasses import dataclass
from typing import Final, Self

_FORM: Final = re.compile(r"([1-9][0-9]{0,5})/([sm])")
_SECONDS: Final = {"s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `starts` in any span of so many seconds."""

    starts: int
    seconds: float

    @classmethod
    def read(cls, text: object) -> Self:
        """The rate in `10/s` or `300/m`. Raises ValueError."""
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError("must be a number per second or minute, such as 10/s or 300/m")
        return cls(int(found[1]), _SECONDS[found[2]])
