"""What is held is decided again soon after some of it had its turn, and less often the longer nothing has."""

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from shared.broker.deliveries import Active, Hand, InHand, Subscription
from shared.broker.handling import Handling
from shared.domain.messages import Delivery, permit
from shared.domain.outcome import Done, Hold, Outcome
from tests.factories import delivered


class Pauses(threading.Event):
    """Notes how long it is waited for, waits for nothing, and is set once its script is over."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


def _nothing(*_: object) -> None:
    pass


def pauses_of(script: Sequence[Sequence[Outcome]], deliveries: int) -> list[float]:
    """The pauses between the turns of one thread whose handler answers as `script` says; then it is told to stop."""
    turns = iter(script)
    stopping = Pauses()

    def handler(batch: Sequence[Delivery]) -> Sequence[Outcome]:
        answers = next(turns, None)
        if answers is None:
            stopping.set()
            return [Hold()] * len(batch)
        assert len(answers) == len(batch)
        return answers

    active = Active(Subscription(queue="submit.comfyui", handler=handler, prefetch=10, batch=10))
    channel: Any = SimpleNamespace(is_open=True)
    for tag in range(deliveries):
        arrived = delivered(permit("comfyui"), queue="submit.comfyui")
        active.inbox.put(InHand(arrived, tag, channel, active.tags, time.monotonic(), active))
    Handling(
        active, Hand(), stopping, settle=_nothing, give_back=_nothing, outlast=_nothing, long_outage_seconds=60
    ).work()
    return stopping.seconds[:-1]  # the last one is that of the turn that stopped it


def test_it_is_asked_less_and_less_often_while_nothing_comes_free() -> None:
    assert pauses_of([[Hold()]] * 7, 1) == [0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2]


def test_it_is_asked_soon_again_once_some_of_it_had_its_turn() -> None:
    all_held, one_goes = [Hold()] * 2, [Done(), Hold()]
    assert pauses_of([all_held, all_held, one_goes, [Hold()], [Hold()]], 2) == [0.02, 0.04, 0.02, 0.04, 0.08]
