"""What a metric is: its name, its labels with all their values, and the question it answers."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

PREFIX: Final = "darkroom_"

#: Seconds. For SQL, the broker and HTTP calls.
FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Seconds. For whole orders and waits; a quantile read from it was 3 % off, from the client's own ladder 92 %.
# fmt: off
ORDER: Final = (
    0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0,
    240.0, 300.0, 420.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
)
# fmt: on
#: Seconds. For parts of an order's way, kept by several labels: half the series of ORDER.
STAY: Final = (0.1, 0.4, 1.0, 2.5, 6.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
#: Bytes, by powers of two from 64 KiB to 128 MiB. For pictures.
BYTES: Final = tuple(float(2**power) for power in range(16, 28))
#: Attempts of one order.
ATTEMPTS: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0)

#: Stands for a pool or backend that this process was not configured with: an order may name any pool.
OTHER: Final = "other"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Configured(StrEnum):
    """A set of label values that the configuration closes when the instruments are built."""

    POOL = "pool"
    BACKEND = "backend"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Anything:
    """A label whose one value is fixed at start and cannot be listed here, such as a version."""


Values = tuple[str, ...] | Configured | Anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row. `name` has neither the prefix nor anything left to guess: `messages_total`.

    labels    -- label -> its closed set of values
    only      -- the combinations of values that can occur, in the order of `labels`; every combination when None
    services  -- who writes it; the others do not export it
    """

    name: str
    kind: Kind
    help: str
    question: str
    services: tuple[str, ...]
    labels: Mapping[str, Values] = field(default_factory=dict)
    only: frozenset[tuple[str, ...]] | None = None
    buckets: tuple[float, ...] | None = None

    def combinations(self, configured: Mapping[Configured, tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Every combination of label values that may be written; none when a label cannot be listed."""
        if self.only is not None:
            return sorted(self.only)
        sets: list[Iterable[str]] = []
        for values in self.labels.values():
            if isinstance(values, Anything):
                return []
            sets.append(configured[values] if isinstance(values, Configured) else values)
        return list(itertools.product(*sets))


SERVICES: Final = ("producer", "submitter", "poller", "ops")
