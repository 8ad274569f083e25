"""An upstream system that orders at a steady pace, all through the incident."""

import threading
import time
import uuid
from typing import Final

from deploy.local.stack import Stack
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.domain.messages import Order, order_placed
from shared.observe import metrics

EVERY_SECONDS: Final = 0.5


class Shop:
    """A thread that places one order after the other. placed -- those whose message the broker has confirmed"""

    def __init__(self, stack: Stack) -> None:
        self._broker = Broker([stack.amqp_url], topology(["comfyui"]), name="shop", metrics=metrics.build("producer"))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shop")
        self.placed: list[Order] = []

    def open(self) -> None:
        self._broker.start()
        self._thread.start()

    def close(self) -> None:
        """No order more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
            self._broker.stop()

    def _run(self) -> None:
        run = f"incident-{uuid.uuid4().hex[:8]}"
        began = time.monotonic()
        while not self._stopping.is_set():
            number = len(self.placed) + 1
            inputs = {"color": number, "width": 64, "height": 64}
            order = Order(idempotency_key=f"{run}-{number:04}", pool="comfyui", workflow="solid-invert", inputs=inputs)
            self._broker.publish([order_placed(order)]).result(30)
            self.placed.append(order)
            self._stopping.wait(max(0.0, began + number * EVERY_SECONDS - time.monotonic()))
