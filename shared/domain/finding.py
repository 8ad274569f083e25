"""What somebody who looked at a part of the installation found. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # it works, or will once something is done that a new installation has yet to do
    FAIL = "fail"
    SKIPPED = "skipped"  # it cannot be seen from here


@dataclass(frozen=True, slots=True)
class Finding:
    """found -- one sentence; advice -- what to do about it, empty when nothing is"""

    about: str
    verdict: Verdict
    found: str
    advice: str = ""
