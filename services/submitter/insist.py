"""A write that must be made: tried again alone while the database is away."""

import logging
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from shared.domain.errors import DatabaseAway

log = logging.getLogger(__name__)

T = TypeVar("T")


class Insist:
    """stopping -- set on SIGTERM: no further waiting for a database that is away"""

    def __init__(self, stopping: Event) -> None:
        self.stopping = stopping

    def __call__(self, write: Callable[[], T]) -> T:
        """Retry the write alone until the database is back or we are told to stop. Nothing else is done twice."""
        wait = 0.1
        while True:
            try:
                return write()
            except DatabaseAway as error:
                log.warning("database away, write held", extra={"why": str(error)})
                if self.stopping.wait(wait):
                    raise  # the lease ends, the next owner asks the provider
                wait = min(2.0, wait * 2)
