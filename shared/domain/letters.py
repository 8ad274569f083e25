"""What a dead letter is: its states, and what makes two of them one failure. Pure."""

import hashlib
import re
from enum import StrEnum
from typing import Final


class LetterState(StrEnum):
    """What is to become of a letter. The same words stand in a check of the table."""

    OPEN = "open"  # nobody has decided, or a plan has not come to it yet
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    ARCHIVED = "archived"  # put aside; may be restored


#: Nothing more is to become of these, so they may be purged.
CLOSED: Final = frozenset({LetterState.REPLAYED, LetterState.DISCARDED, LetterState.ARCHIVED})


def failure_fingerprint(reason: str, pool: str | None, detail: str) -> str:
    """The same for failures that differ only in ids, numbers, addresses. Pure."""
    return hashlib.sha256(f"{reason}\n{pool or ''}\n{masked(detail)}".encode()).hexdigest()[:16]


_LAST_LINES: Final = 5
#: In this order: what comes first may hold what comes later. Repetitions are bounded by the length of a detail.
_MASKS: Final = (
    (re.compile(r"data:[a-z]+/[^\s\"'<>]*", re.IGNORECASE), "<data>"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]*", re.IGNORECASE), "<url>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b(0x)?(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\d+(\.\d+)?"), "<n>"),
    (re.compile(r"\s+"), " "),
)
_RAISED: Final = re.compile(r"([A-Za-z_][\w.]{0,199})(?::.*)?", re.ASCII)


def masked(detail: str) -> str:
    """The message with everything replaced that differs from one order to the next. Pure.

    Of a traceback, which is cut at its beginning, only the last lines count.
    """
    lines = [line for line in detail.splitlines() if line.strip()]
    text = "\n".join(lines[-_LAST_LINES:])
    for pattern, mark in _MASKS:
        text = pattern.sub(mark, text)
    return text.strip()[:500]


def gist(detail: str, at_most: int) -> str:
    """The end of a traceback, the beginning of everything else, on one line of so many characters. Pure."""
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    line = lines[-1] if "Traceback" in detail and lines else " ".join(lines)
    return line if len(line) <= at_most else line[: at_most - 1] + "…"


def exception_of(detail: str) -> str | None:
    """The type of the exception whose traceback this is, as Python writes it; None when it is none. Pure.

    The message may have several lines, so it is the first one behind the frames that begins at the margin.
    """
    lines = detail.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return None
    found = next((line for line in lines[frames[-1] + 1 :] if line and not line.startswith(" ")), "")
    match = _RAISED.fullmatch(found)
    return match[1] if match else None
