"""The metrics of one process: instruments made from the catalogue, in a registry of their own."""

import logging
import platform
import threading
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from shared.domain.canary_order import CANARY_POOL
from shared.observe.catalog import CATALOGUE, OTHER, PREFIX, SERVICES, Anything, Configured, Kind, Metric, Values

log = logging.getLogger(__name__)

#: Builds every instrument of the catalogue, for tests and tools.
EVERYTHING: Final = "everything"

#: More backends than this and one process exports more series than a Prometheus should take from it.
MAX_BACKENDS: Final = 20

#: Ways to ask that are remembered; names no configuration knows could be any number.
_MOST_ASKED: Final = 5000

Instrument = Counter | Gauge | Histogram

#: Takes what nobody is to see.
_NOWHERE: Final = Gauge("nowhere", "in no registry", registry=None)


class UnknownSeries(ValueError):
    """A metric, label or label value that the catalogue does not have."""


class Metrics:
    """Counts, observes and sets by name. Thread-safe.

    A value outside a label's closed set becomes "other" where the set has it (pools and backends do). Anything else
    the catalogue does not have is a mistake of ours: `strict` raises UnknownSeries, as tests want; otherwise the
    sample is dropped and the mistake logged once, because a wrong label must not stop an order.
    """

    def __init__(self, service: str, configured: Mapping[Configured, tuple[str, ...]], *, strict: bool) -> None:
        self.service = service
        self.registry = CollectorRegistry(auto_describe=True)
        self._strict = strict
        self._configured = configured
        self._metrics: dict[str, Metric] = {}
        self._instruments: dict[str, Instrument] = {}
        self._allowed: dict[str, frozenset[tuple[str, ...]]] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Instrument] = {}
        #: The same by how they are asked for, so that asking again costs one look.
        self._asked: dict[tuple[str, Kind, tuple[tuple[str, str], ...]], Instrument] = {}
        self._complained: set[str] = set()
        self._lock = threading.RLock()  # around every change of the dictionaries; looking needs none
        for metric in CATALOGUE:
            if service == EVERYTHING or service in metric.services:
                self._add(metric)

    def count(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Add to a counter. Count what happened after it is committed or confirmed, never before."""
        child = self._child(name, Kind.COUNTER, labels)
        if isinstance(child, Counter):
            child.inc(amount)

    def observe(self, name: str, value: float, /, *, trace_id: str | None = None, **labels: str) -> None:
        """Add one value to a histogram; a duration below zero (two clocks) counts as zero.

        trace_id -- the bucket's exemplar, for whoever asks for OpenMetrics
        """
        child = self._child(name, Kind.HISTOGRAM, labels)
        if isinstance(child, Histogram):
            child.observe(max(0.0, value), None if trace_id is None else {"trace_id": trace_id})

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge. A gauge with labels has no series before its first value."""
        child = self._child(name, Kind.GAUGE, labels)
        if isinstance(child, Gauge):
            child.set(value)

    def forget(self, name: str, /) -> None:
        """Drop all series of a gauge with labels: better none than numbers that are no longer true."""
        with self._lock:
            self._instruments[name].clear()
            for key in [key for key in self._children if key[0] == name]:
                del self._children[key]
            for asked in [asked for asked in self._asked if asked[0] == name]:
                del self._asked[asked]

    def value(self, name: str, /, **labels: str) -> float:
        """What stands there now; the number of observations of a histogram. 0 when there is no such series."""
        metric = self._metrics[name]
        sample = PREFIX + name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        return self.registry.get_sample_value(sample, labels) or 0.0

    def _add(self, metric: Metric) -> None:
        name, labels = PREFIX + metric.name, tuple(metric.labels)
        instrument: Instrument
        match metric.kind:
            case Kind.COUNTER:
                instrument = Counter(name, metric.help, labels, registry=self.registry)
            case Kind.GAUGE:
                instrument = Gauge(name, metric.help, labels, registry=self.registry)
            case Kind.HISTOGRAM:
                buckets = metric.buckets or Histogram.DEFAULT_BUCKETS
                instrument = Histogram(name, metric.help, labels, buckets=buckets, registry=self.registry)
        self._metrics[metric.name] = metric
        self._instruments[metric.name] = instrument
        combinations = metric.combinations(self._configured)
        self._allowed[metric.name] = frozenset(combinations)
        if metric.kind is not Kind.GAUGE:  # a counter born at 1 shows no increase, so all are born at 0
            for values in combinations:
                self._children[metric.name, values] = instrument.labels(*values) if values else instrument

    def _child(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Instrument | None:
        asked = (name, kind, tuple(labels.items()))
        child = self._asked.get(asked)
        if child is None:
            with (
                self._lock
            ):  # a series forgotten between finding and remembering it would be counted in for ever, unseen
                child = self._find(name, kind, labels)
                if child is not None and len(self._asked) < _MOST_ASKED:
                    self._asked[asked] = child
        return child

    def _find(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Instrument | None:
        """With the lock in hand."""
        if CANARY_POOL in (labels.get("pool"), labels.get("backend")):
            return _NOWHERE  # nobody's order; the probe_* gauges speak of it
        metric = self._metrics.get(name)
        if metric is None or metric.kind is not kind:
            return self._complaint(f"{self.service} has no {kind} {name}")
        if labels.keys() != metric.labels.keys():
            return self._complaint(f"{name} has the labels {sorted(metric.labels)}, not {sorted(labels)}")
        values = tuple(self._closed(str(labels[label]), known) for label, known in metric.labels.items())
        child = self._children.get((name, values))
        if child is not None:
            return child
        if values not in self._allowed[name] and not any(isinstance(k, Anything) for k in metric.labels.values()):
            return self._complaint(f"{name} has no series {dict(zip(metric.labels, values, strict=True))}")
        instrument = self._instruments[name]
        child = self._children[name, values] = instrument.labels(*values) if values else instrument
        return child

    def _closed(self, value: str, known: Values) -> str:
        if isinstance(known, Anything):
            return value
        values = self._configured[known] if isinstance(known, Configured) else known
        return OTHER if value not in values and OTHER in values else value

    def _complaint(self, problem: str) -> Instrument | None:
        """No instrument, after saying so the way `strict` asks for."""
        if self._strict:
            raise UnknownSeries(problem)
        with self._lock:
            is_new = problem not in self._complained and len(self._complained) < 100
            self._complained.add(problem)
        if is_new:
            log.error("metric not in the catalogue", extra={"problem": problem})
        return None


def build(
    service: str,
    *,
    pools: Iterable[str] = (),
    backends: Iterable[str] = (),
    queues: Iterable[str] = (),
    revision: str = "unknown",
    strict: bool = False,
) -> Metrics:
    """The metrics of `service`, with every series of a counter or histogram at 0, and those of the Python process.

    pools, backends, queues -- names from the configuration; "other" is added to pools and backends
    service                 -- one of SERVICES, or EVERYTHING

    Raises ValueError for an unknown service or more than MAX_BACKENDS backends.
    """
    if service != EVERYTHING and service not in SERVICES:
        raise ValueError(f"no service is called {service}")
    names = {
        Configured.POOL: (*_known(pools), OTHER),
        Configured.BACKEND: (*_known(backends), OTHER),
        Configured.QUEUE: tuple(dict.fromkeys(queues)),
    }
    if len(names[Configured.BACKEND]) - 1 > MAX_BACKENDS:
        raise ValueError(
            f"{len(names[Configured.BACKEND]) - 1} backends are configured, at most {MAX_BACKENDS} are allowed"
        )
    disable_created_metrics()  # type: ignore[no-untyped-call]  # _created samples would double the number of series
    metrics = Metrics(service, names, strict=strict)
    ProcessCollector(registry=metrics.registry)
    PlatformCollector(registry=metrics.registry)
    GCCollector(registry=metrics.registry)
    metrics.set("build_info", 1, version=our_version(), revision=revision, python=platform.python_version())
    return metrics


def _known(names: Iterable[str]) -> list[str]:
    """Each once; the canary's is none that a label has."""
    return [name for name in dict.fromkeys(names) if name != CANARY_POOL]


def our_version() -> str:
    """The installed version of darkroom, "unknown" when it runs from a bare checkout."""
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "unknown"
