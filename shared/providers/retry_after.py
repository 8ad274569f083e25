"""What a Retry-After header asks for. Pure."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

#: Longer than this nobody is believed, seconds.
MOST_SECONDS: Final = 3600.0


def retry_after_seconds(header: str | None, date: str | None, now: datetime) -> float | None:
    """Seconds to stay away, at most MOST_SECONDS; None when the header is absent or says nothing we understand.

    date -- the answer's own Date header: an HTTP-date is measured against the clock that made it, or against `now`
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        until = _moment(header)
        if until is None:
            return None
        seconds = max(0.0, (until - (_moment(date) or now)).total_seconds())
    return min(seconds, MOST_SECONDS) if seconds >= 0 and math.isfinite(seconds) else None


def _moment(http_date: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(http_date or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
