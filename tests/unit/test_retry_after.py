"""Retry-After comes as seconds or as a date; what is neither says nothing."""

from datetime import UTC, datetime

import pytest

from shared.providers.retry_after import retry_after_seconds

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        (None, None, None),
        ("7", None, 7.0),
        ("0", None, 0.0),
        ("1.5", None, 1.5),
        ("86400", None, 3600.0),
        ("-1", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("soon", None, None),
        ("", None, None),
        ("Thu, 01 Jan 2026 12:00:30 GMT", None, 30.0),
        ("Thu, 01 Jan 2026 11:59:00 GMT", None, 0.0),
        ("Fri, 02 Jan 2026 12:00:00 GMT", None, 3600.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", "Thu, 01 Jan 2026 12:00:20 GMT", 10.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", "no date", 30.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", None, 30.0),
    ],
)
def test_the_seconds_to_stay_away(header: str | None, date: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, date, NOW) == seconds
