"""What one API has taken in: jobs that wait, run and end by the clock, and the limits it holds its callers to."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

#: Share of a job's time that it waits before it runs.
_WAITING: Final = 0.2


@dataclass
class Job:
    """One order of a caller. Moments are time.monotonic(); `at` is the wall clock, for lists.

    outcome -- success, failed, moderated, no_picture, unknown_state (a state in no documentation) or lost
    text    -- what the caller wrote, for faults that choose by it
    """

    id: str
    model: str
    body: Any
    seed: int
    begun: float
    seconds: float
    outcome: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    cancelled_at: float | None = None

    def state(self, now: float) -> str:
        """waiting, running, ended or cancelled."""
        if self.cancelled_at is not None:
            return "cancelled"
        if now >= self.ends:
            return "ended"
        return "waiting" if now < self.begun + self.seconds * _WAITING else "running"

    @property
    def ends(self) -> float:
        return self.begun + self.seconds


class Jobs:
    """The jobs of one API.

    max_in_flight     -- more at once are answered with 429
    starts_per_second -- more within any second are answered with 429
    """

    def __init__(self, max_in_flight: int | None, starts_per_second: int | None) -> None:
        self._max_in_flight = max_in_flight
        self._starts_per_second = starts_per_second
        self._jobs: dict[str, Job] = {}
        self._starts: deque[float] = deque()
        self.counts: Counter[str] = Counter()
        self.most_in_flight = 0
        self.most_starts_in_a_second = 0

    def is_full(self) -> bool:
        """Whether a limit is reached. The refusal is counted, and is no start."""
        now = time.monotonic()
        flying = self.in_flight(now) >= self._max_in_flight if self._max_in_flight is not None else False
        fast = self._recent(now) >= self._starts_per_second if self._starts_per_second is not None else False
        if flying or fast:
            self.counts["over_in_flight" if flying else "over_rate"] += 1
        return flying or fast

    def start(self, id_: str, model: str, body: Any, *, seed: int, seconds: float, outcome: str) -> Job:
        """A job that exists from here on."""
        now = time.monotonic()
        job = Job(id_, model, body, seed, now, seconds, outcome)
        self._jobs[job.id] = job
        self._starts.append(now)
        self.counts["jobs"] += 1
        self.most_starts_in_a_second = max(self.most_starts_in_a_second, self._recent(now))
        self.most_in_flight = max(self.most_in_flight, self.in_flight(now))
        return job

    def find(self, id_: str) -> Job | None:
        return self._jobs.get(id_)

    def cancel(self, job: Job) -> bool:
        """False when it had ended."""
        now = time.monotonic()
        if job.state(now) not in ("waiting", "running"):
            return False
        job.cancelled_at = now
        self.counts["cancelled"] += 1
        return True

    def between(self, after: datetime, before: datetime) -> list[Job]:
        """Newest first."""
        return [job for job in reversed(self._jobs.values()) if after <= job.at <= before]

    def in_flight(self, now: float) -> int:
        return sum(job.state(now) in ("waiting", "running") for job in self._jobs.values())

    def describe(self) -> dict[str, Any]:
        seeds = Counter(job.seed for job in self._jobs.values())
        words = Counter(f"{job.model} {_without_seeds(job.body)}" for job in self._jobs.values())
        return {
            **{name: self.counts[name] for name in ("jobs", "cancelled", "over_in_flight", "over_rate", "downloads")},
            "in_flight": self.in_flight(time.monotonic()),
            "most_in_flight": self.most_in_flight,
            "most_starts_in_a_second": self.most_starts_in_a_second,
            "same_seed_twice": sum(count > 1 for count in seeds.values()),
            "same_words_twice": sum(count > 1 for count in words.values()),
        }

    def _recent(self, now: float) -> int:
        while self._starts and self._starts[0] <= now - 1.0:
            self._starts.popleft()
        return len(self._starts)


def _without_seeds(body: Any) -> Any:
    """What one caller wants, however often it asks for it with another seed."""
    match body:
        case dict():
            return {name: _without_seeds(value) for name, value in body.items() if name != "seed"}
        case list():
            return [_without_seeds(value) for value in body]
    return body
