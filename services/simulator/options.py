"""What a simulated server is told at its start, and the places where the two measured generations differ in data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Generation = Literal["modern", "legacy"]


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    directory: Path
    generation: Generation = "modern"
    host: str = "127.0.0.1"
    port: int = 0
    seconds_per_image: float = 0.2
    startup_seconds: float = 0.0
    max_upload_megabytes: float = 100
    seed: int | None = None

    @property
    def is_modern(self) -> bool:
        return self.generation == "modern"

    @property
    def max_body(self) -> int | float:
        """Bytes. A float when the option was given, as the real server's own arithmetic has it, see its /features."""
        size = self.max_upload_megabytes * 1024 * 1024
        return int(size) if self.max_upload_megabytes == 100 else float(size)
