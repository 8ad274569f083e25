"""What a tester wants to know afterwards: every call and every run. Belongs to the tester, so a restart keeps it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

#: Calls kept in the log; a benchmark of 5 000 orders makes about ten calls an order.
LOG_LENGTH: Final = 50_000


@dataclass
class Execution:
    """One accepted prompt and what became of it. Moments are `time.monotonic()`."""

    prompt_id: str
    number: float
    accepted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    outcome: str = "pending"
    images: int = 0

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Records:
    """Counters, executions and the log. Written by the event loop and the worker thread."""

    started_at: float = field(default_factory=time.monotonic)
    starts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    max_queue_remaining: int = 0
    busy_seconds: float = 0.0
    down_seconds: float = 0.0
    _executions: list[Execution] = field(default_factory=list)
    _accepted: Counter[str] = field(default_factory=Counter)
    _log: deque[tuple[float, str, str, int, str | None]] = field(default_factory=lambda: deque(maxlen=LOG_LENGTH))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy_since: float | None = None

    def called(self, method: str, target: str, route: str, status: int, prompt_id: str | None) -> None:
        """Remember one request; status 0 means its connection was dropped."""
        self.calls[f"{method} {route}"] += 1
        self.statuses[str(status)] += 1
        self._log.append((time.monotonic(), method, target, status, prompt_id))

    def accepted(self, prompt_id: str, number: float) -> Execution:
        """A prompt is in the queue now."""
        execution = Execution(prompt_id, number, time.monotonic())
        with self._lock:
            self._executions.append(execution)
            self._accepted[prompt_id] += 1
            self.counts["prompts_accepted"] += 1
        return execution

    def started(self, execution: Execution) -> None:
        with self._lock:
            execution.started_at = self._busy_since = time.monotonic()
            execution.outcome = "running"

    def ended(self, execution: Execution, outcome: str) -> None:
        """The prompt left the server; an execution that has ended stays as it is."""
        counter = {"cached": "prompts_cached", "error": "prompts_failed", "interrupted": "prompts_interrupted"}
        with self._lock:
            if execution.ended_at is not None:
                return
            execution.ended_at = time.monotonic()
            execution.outcome = outcome
            if execution.started_at is not None:
                self._busy_since = None
                self.busy_seconds += execution.ended_at - execution.started_at
            if outcome in ("deleted", "lost"):
                self.counts[f"prompts_{outcome}"] += 1
                return
            self.counts["prompts_executed"] += 1
            if outcome in counter:
                self.counts[counter[outcome]] += 1

    def present(self, queue_remaining: int) -> None:
        """Note how many prompts are running and pending together."""
        self.max_queue_remaining = max(self.max_queue_remaining, queue_remaining)

    def describe(self, with_log: bool, with_executions: bool) -> dict[str, Any]:
        """The counters of GET /_sim/stats; the server adds what only it knows."""
        now = time.monotonic()
        names = ("accepted", "rejected", "executed", "cached", "failed", "interrupted", "deleted", "lost")
        with self._lock:
            busy = self.busy_seconds + (now - self._busy_since if self._busy_since is not None else 0.0)
            described: dict[str, Any] = {
                "now": now,
                "started_at": self.started_at,
                "starts": self.starts,
                "calls": dict(self.calls),
                "statuses": dict(self.statuses),
                **{f"prompts_{name}": self.counts[f"prompts_{name}"] for name in names},
                "images_saved": self.counts["images_saved"],
                "uploads": self.counts["uploads"],
                "uploads_stored": self.counts["uploads_stored"],
                "max_queue_remaining": self.max_queue_remaining,
                "busy_seconds": busy,
                "idle_seconds": max(0.0, now - self.started_at - busy - self.down_seconds),
                "down_seconds": self.down_seconds,
                "duplicates": {prompt_id: times for prompt_id, times in self._accepted.items() if times > 1},
            }
            if with_executions:
                described["executions"] = [execution.as_json() for execution in self._executions]
        if with_log:
            fields = ("t", "method", "path", "status", "prompt_id")
            described["log"] = [dict(zip(fields, entry, strict=True)) for entry in self._log]
        return described
