"""Runs one of our services in which marked work kills the process, as a crash in a C library does.

python -m tests.e2e.deadly SERVICE
"""

import importlib
import os
import signal
import sys
from typing import Any, Final

from services.submitter.intake import Intake
from shared.providers.base import Job
from shared.providers.comfyui import ComfyUI
from shared.service import run

#: In the body of an order: whoever reads it dies.
DEADLY_ORDER: Final = "deadly-to-read"
#: Colours of pictures: whoever prepares, or fetches, one of them dies.
DEADLY_TO_START: Final = 0xDEAD01
DEADLY_TO_FETCH: Final = 0xDEAD02


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kills_when(owner: type, method: str, is_deadly: Any) -> None:
    healthy = getattr(owner, method)

    def deadly(self: Any, *args: Any, **named: Any) -> Any:
        if is_deadly(*args):
            die()
        return healthy(self, *args, **named)

    setattr(owner, method, deadly)


def of_colour(colour: int) -> Any:
    def is_deadly(job: Job, *_: Any) -> bool:
        return job.inputs.get("color") == colour

    return is_deadly


if __name__ == "__main__":
    kills_when(Intake, "_read", lambda delivery, *_: DEADLY_ORDER.encode() in delivery.body)
    kills_when(ComfyUI, "prepare", of_colour(DEADLY_TO_START))
    kills_when(ComfyUI, "fetch", of_colour(DEADLY_TO_FETCH))
    run(importlib.import_module(f"services.{sys.argv[1]}.__main__").main)
