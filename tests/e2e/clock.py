"""Runs one of our services whose clock libfaketime has set wrong: python -m tests.e2e.clock SERVICE

libfaketime shifts what the C library says, so all of the process sees the wrong time. Its version in Debian 12 fails
the call that time.sleep makes (clock_nanosleep to an absolute moment of the monotonic clock, which is left right), so
sleeping is done by a call it does not touch.
"""

import importlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping

from shared.service import run
from tests.programs import programs


def wrong_by(seconds: int) -> Mapping[str, str]:
    """The environment of such a process. Raises StackProblem with one sentence where libfaketime cannot be had."""
    [faketime] = programs("faketime")
    library = subprocess.run(
        [faketime, "-m", "-f", "+0s", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"LD_PRELOAD": library, "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)  # no child of this process needs it
    time.sleep = _sleep
    run(importlib.import_module(f"services.{sys.argv[1]}.__main__").main)
