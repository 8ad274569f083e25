"""Orders for as long as it lasts: of every pool, one in ten published twice, a few that cannot be made."""

import random
import threading
from collections.abc import Sequence
from typing import Final

from shared.domain.messages import Order, order_placed
from shared.domain.task import Priority
from tests.conformance.table_lab import PLACES
from tests.e2e.image_apis import an_api_order
from tests.e2e.mail import Mail
from tests.e2e.system import System, an_order

DUPLICATES: Final = 0.1
_IMPOSSIBLE: Final = 0.02
_HIGH: Final = 0.1


class Load:
    """One publisher, as an upstream system is one: it publishes again until the broker has confirmed."""

    def __init__(self, system: System, pools: Sequence[str], per_second: float, seed: int) -> None:
        self._mail: Mail = system.mail
        self._pools = pools
        self._every = 1 / per_second
        self._random = random.Random(seed)
        self.orders: list[Order] = []
        self.duplicates = 0
        self.failures: list[BaseException] = []

    def run(self, stopping: threading.Event) -> None:
        """One thread's whole life."""
        try:
            while not stopping.wait(self._random.uniform(0, 2 * self._every)):
                self._publish(self._next())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self.failures.append(error)

    def _publish(self, order: Order) -> None:
        self._mail.publish_through_outages(order_placed(order))

    def _next(self) -> Order:
        if self.orders and self._random.random() < DUPLICATES:
            self.duplicates += 1
            return self._random.choice(self.orders[-200:])
        pool = self._random.choice(self._pools)
        priority = Priority.HIGH if self._random.random() < _HIGH else Priority.NORMAL
        if self._random.random() < _IMPOSSIBLE:
            order = an_order(workflow="no-such-workflow", priority=priority)
        elif pool in PLACES:
            order = an_api_order(pool, priority=priority)
        else:
            order = an_order(pool=pool, priority=priority)
        self.orders.append(order)
        return order
