"""Calls to the database, made in a few threads and given up after a while: the event loop never waits for one."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from shared.domain.errors import DatabaseAway
from shared.domain.fit import CONNECTIONS
from shared.observe.logs import ContextPool

T = TypeVar("T")

#: Threads that wait for the database.
DATABASE_THREADS: Final = CONNECTIONS["producer"]
#: How long one call may take before the database counts as away.
CALL_SECONDS: Final = 5.0


class DatabaseCalls:
    """A bounded pool of threads. Its event loop is the one that awaits `run`."""

    def __init__(self) -> None:
        self._threads = ContextPool(DATABASE_THREADS, thread_name_prefix="database")

    async def run(self, work: Callable[[], T], at_most_seconds: float = CALL_SECONDS) -> T:
        """What `work` returns. Raises DatabaseAway, also when it takes too long or all threads are taken.

        A write that was given up may happen all the same: make only such as may be made twice.
        """
        future = self._threads.submit(work)
        try:
            async with asyncio.timeout(at_most_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            future.cancel()
            raise DatabaseAway(f"no answer within {at_most_seconds:g} s") from None

    def close(self) -> None:
        """No further calls; those under way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
