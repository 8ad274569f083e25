"""A process whose loop hangs ends by itself with the status that says so, and says where it hung."""

import json
import subprocess
import sys
import threading

import pytest

from shared.broker.connection import IOThread
from shared.observe import logs
from shared.observe.health import EXIT_HUNG, Health, Watchdog

#: A process for the test below: `python -m tests.integration.test_watchdog freezes|turns`.
_LIMIT_SECONDS = 0.3


def _process(how: str) -> None:
    logs.configure("poller", "test")
    health, io = Health(), IOThread("amqp")

    def tick() -> None:
        health.beat("consume", _LIMIT_SECONDS)
        io.later(0.05, tick)

    io.start()
    io.run(tick)
    Watchdog(health, interval_seconds=0.05).start()
    if how == "freezes":
        io.later(0.2, a_callback_that_never_returns)
    threading.Event().wait(3.0)
    sys.stderr.write(json.dumps({"event": "lived"}) + "\n")
    sys.exit(0)


def a_callback_that_never_returns() -> None:
    threading.Event().wait()


@pytest.mark.parametrize(
    ("how", "status", "said"), [("freezes", EXIT_HUNG, "loop hangs, leaving"), ("turns", 0, "lived")]
)
def test_a_process_whose_io_loop_freezes_ends_with_70_and_one_whose_loop_turns_does_not(
    how: str, status: int, said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", __name__, how], capture_output=True, text=True, timeout=60, check=False
    )
    last = json.loads(ended.stderr.splitlines()[-1])
    assert (ended.returncode, last["event"]) == (status, said)
    if how == "freezes":
        assert last["loop"] == "consume"
        assert "a_callback_that_never_returns" in json.dumps(last["stacks"])


if __name__ == "__main__":
    _process(sys.argv[1])
