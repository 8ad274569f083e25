"""Runs a service and writes down what it counts and times: `python -m benchmarks.counted FOLDER services.submitter`."""

import atexit
import json
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from shared.observe.metrics import Metrics

VERBS: Final = ("count", "observe", "set")


def _noting(verb: str, calls: list[Any]) -> Callable[..., None]:
    call = getattr(Metrics, verb)

    def noted(self: Metrics, name: str, value: float = 1.0, /, **labels: str) -> None:
        calls.append((verb, name, value, labels))  # appending is atomic, and hardly anything beside the call itself
        call(self, name, value, **labels)

    return noted


def _write(file: Path, calls: list[Any]) -> None:
    file.write_text(json.dumps(calls))


if __name__ == "__main__":
    folder, module = sys.argv[1:3]
    noted_calls: list[Any] = []
    for each in VERBS:
        setattr(Metrics, each, _noting(each, noted_calls))
    atexit.register(partial(_write, Path(folder) / f"{module}.json", noted_calls))
    runpy.run_module(module, run_name="__main__")
