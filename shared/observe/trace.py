"""The W3C traceparent: how one trace id follows an order through headers, rows and logs. Pure but for randomness."""

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

from shared.domain.messages import traceparent_of

__all__ = ["HEADER", "new_trace_id", "read_trace_id", "trace_id_from", "traceparent_of"]

HEADER: Final = "traceparent"

#: Version 00 of https://www.w3.org/TR/trace-context/: lower-case hex only, and an id of zeros is no id.
_VERSION_00: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def new_trace_id() -> str:
    """A trace id nobody else has: 32 hex digits."""
    return uuid.uuid4().hex


def read_trace_id(traceparent: object) -> str | None:
    """The trace id in a traceparent, None when it is not one of version 00."""
    if isinstance(traceparent, bytes):
        traceparent = traceparent.decode("ascii", "replace")
    match = _VERSION_00.fullmatch(traceparent.strip()) if isinstance(traceparent, str) else None
    return match[1] if match else None


def trace_id_from(headers: Mapping[str, Any] | None) -> str:
    """The trace id these headers carry, or a new one. Header names of HTTP come in any case."""
    for name, value in (headers or {}).items():
        if name.lower() == HEADER and (trace_id := read_trace_id(value)):
            return trace_id
    return new_trace_id()
