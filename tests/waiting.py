"""Waiting for a condition with a deadline, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, within: float, what: str = "", every: float = 0.05) -> T:
    """The condition's value as soon as it is true. Raises AssertionError with its last value after `within` seconds.

    An exception inside the condition ends the wait: return False for what may still come true.
    """
    end = time.monotonic() + within
    while True:
        asked = time.monotonic()
        value = condition()
        if value:
            return value
        if asked > end:
            raise AssertionError(
                f"{what or 'the condition'} did not come true within {within:g} s, last value: {value!r}"
            )
        time.sleep(every)
