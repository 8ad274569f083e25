"""Runs one of our services where OUTSIDE counts as the public internet: python -m tests.e2e.internet SERVICE

Tests have loopback only, and our services refuse to fetch from there unless a setting allows all of it. Here one
address of it is public; the service is not changed otherwise, so every other address and every redirect is checked.
"""

import importlib
import sys
from typing import Final

from shared.providers import addresses, inputs
from shared.service import run

OUTSIDE: Final = "127.0.0.2"


def _is_public(address: str) -> bool:
    return address == OUTSIDE or addresses.is_public(address)


if __name__ == "__main__":
    inputs.is_public = _is_public
    run(importlib.import_module(f"services.{sys.argv[1]}.__main__").main)
