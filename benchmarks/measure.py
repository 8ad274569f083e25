"""What a process used, and how numbers spread. Reads /proc, so Linux only."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Watched:
    """One process whose CPU time counts. with_children -- a server that forks a process per connection."""

    pid: int
    with_children: bool = False


class Meter:
    """CPU seconds by name since it was made, and those of the whole machine beside them."""

    def __init__(self, processes: Mapping[str, Watched]) -> None:
        self._processes = dict(processes)
        self._before = self._now()
        self._busy = machine_busy()
        self._idle = _machine_idle()
        self._began = time.monotonic()

    def used(self) -> dict[str, float]:
        """CPU seconds of each so far."""
        return {name: seconds - self._before[name] for name, seconds in self._now().items()}

    def others(self) -> float:
        """Cores that were busy on average with something that is not watched: the noise of this measurement."""
        elapsed = time.monotonic() - self._began
        return max(0.0, machine_busy() - self._busy - sum(self.used().values())) / max(elapsed, 0.01)

    def idle(self) -> float:
        """Cores that had nothing to do on average."""
        return (_machine_idle() - self._idle) / max(time.monotonic() - self._began, 0.01)

    def _now(self) -> dict[str, float]:
        return {name: cpu_seconds(one.pid, one.with_children) for name, one in self._processes.items()}


def cpu_seconds(pid: int, with_children: bool = False) -> float:
    """User and system time of one process; with children also theirs, those that have ended included."""
    total = _cpu_of(pid, with_ended_children=with_children)
    if with_children:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total += sum(_cpu_of(int(child), with_ended_children=True) for child in children)
    return total


def _cpu_of(pid: int, *, with_ended_children: bool) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # ended meanwhile; its parent has counted it
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return sum(map(int, fields[11 : 15 if with_ended_children else 13])) / _TICKS_A_SECOND


def machine_busy() -> float:
    """CPU seconds this machine has worked since it started, for whomever."""
    fields = _machine_ticks()
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_A_SECOND  # without idle and iowait


def _machine_idle() -> float:
    fields = _machine_ticks()
    return (fields[3] + fields[4]) / _TICKS_A_SECOND


def _machine_ticks() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]


def memory_megabytes(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; NaN without values. Pure."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
