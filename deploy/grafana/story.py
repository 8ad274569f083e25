"""An afternoon that never was: 140 minutes of orders in virtual time, written through the real instruments.

The same every time. A GPU server is lost at minute 70 and back at 110; at minute 130 a workflow breaks and orders die.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from shared.broker.topology import check_queue, submit_queue, topology
from shared.domain.task import Reason, Stage
from shared.observe.catalog import BACKEND_STATES, BOUNDS, INVARIANTS, LOOPS, QUESTIONS, SERVICES
from shared.observe.metrics import Metrics, build

BEGIN: Final = 1_767_225_600
STEP_SECONDS: Final = 30
MINUTES: Final = 140
END: Final = BEGIN + MINUTES * 60

_LOST: Final = range(70, 110)
_BROKEN: Final = range(130, 135)
#: Backend -> pool, jobs at once, mean seconds of one job.
_BACKENDS: Final = {
    "gpu-1": ("comfyui", 2, 24.0),
    "gpu-2": ("comfyui", 2, 24.0),
    "openai_images": ("openai_images", 6, 14.0),
}
_PER_MINUTE: Final = {"comfyui": 7.0, "openai_images": 9.0}
_PERSISTED: Final = {"consume": ("submitter", "poller", "ops"), "schedule": ("poller",), "watch": ("poller",)}
#: What the real process would say of itself, which another machine says differently.
_FROM_PROCESS: Final = ("process_", "python_", "darkroom_build_info")


class Story:
    """Everything that happens, step by step; `text` is what Prometheus would have scraped."""

    def __init__(self) -> None:
        self._random = random.Random(12)
        queues = [queue.name for queue in topology(list(_PER_MINUTE)).queues]
        self._queues = queues
        self._metrics: dict[str, Metrics] = {
            service: build(service, pools=_PER_MINUTE, backends=_BACKENDS, queues=queues, strict=True)
            for service in SERVICES
        }
        self._waiting: dict[str, list[float]] = {pool: [] for pool in _PER_MINUTE}
        self._running: dict[str, list[tuple[float, float]]] = {name: [] for name in _BACKENDS}
        self._open: Counter[Reason] = Counter()

    def text(self) -> str:
        """In OpenMetrics' format, each sample with its moment."""
        lines = list(itertools.chain.from_iterable(self._step(at) for at in range(BEGIN, END + 1, STEP_SECONDS)))
        return "\n".join([*lines, "# EOF", ""])

    def _step(self, at: int) -> Iterator[str]:
        minute = (at - BEGIN) // 60
        for pool in _PER_MINUTE:
            self._arrive(pool, at)
        for backend in _BACKENDS:
            self._work(backend, at, is_up=backend != "gpu-2" or minute not in _LOST, is_broken=minute in _BROKEN)
        self._rows(at, minute)
        return self._scrape(at)

    def _arrive(self, pool: str, at: int) -> None:
        submitter, mean = self._metrics["submitter"], _PER_MINUTE[pool] * STEP_SECONDS / 60
        count = sum(self._random.random() < mean / 12 for _ in range(12))
        for _ in range(count):
            self._waiting[pool].append(at - self._random.uniform(0, STEP_SECONDS))
            submitter.count("orders_received_total", source="amqp", result="accepted")
            submitter.count("claims_total", pool=pool, result="won")
            submitter.count("messages_total", queue="orders", result="acked")
            submitter.count("publishes_total", result="confirmed")
            submitter.observe("publish_confirm_seconds", self._random.lognormvariate(-4.5, 0.6))
            submitter.observe("message_handle_seconds", self._random.lognormvariate(-3.5, 0.5), queue="orders")
            if self._random.random() < 0.06:
                submitter.count("duplicates_suppressed_total", point="claim")
        self._waiting[pool].sort()

    def _work(self, backend: str, at: int, *, is_up: bool, is_broken: bool) -> None:
        pool, capacity, mean = _BACKENDS[backend]
        if not is_up:
            self._waiting[pool][:0] = [born for born, _ in self._running[backend]]
            self._running[backend] = []
            for _ in range(3):
                self._metrics["poller"].count(
                    "backend_requests_total", backend=backend, operation="health", result="connect"
                )
            return
        moment = float(at - STEP_SECONDS)
        while moment < at:
            for born, ends in [job for job in self._running[backend] if job[1] <= moment]:
                self._running[backend].remove((born, ends))
                self._end(backend, born, ends, is_broken=is_broken and self._random.random() < 0.5)
            while len(self._running[backend]) < capacity and self._waiting[pool]:
                born = self._waiting[pool].pop(0)
                self._running[backend].append((born, max(moment, born) + self._random.gauss(mean, mean / 6)))
                self._call("submitter", backend, "submit", 0.06)
                self._metrics["submitter"].count("messages_total", queue=submit_queue(pool), result="acked")
            moment += 1.0
        for _ in range(STEP_SECONDS // 2):
            self._call("poller", backend, "poll", 0.02)
            self._metrics["poller"].observe("poll_lag_seconds", self._random.uniform(0, 0.6), pool=pool)
            self._metrics["poller"].count("messages_total", queue=check_queue(pool), result="acked")
            seconds = self._random.lognormvariate(-2.5, 0.6)
            self._metrics["poller"].observe("message_handle_seconds", seconds, queue=check_queue(pool))

    def _end(self, backend: str, born: float, ended: float, *, is_broken: bool) -> None:
        pool, poller = _BACKENDS[backend][0], self._metrics["poller"]
        outcome = "failed" if is_broken else "completed"
        poller.count("orders_finished_total", pool=pool, outcome=outcome)
        poller.observe("order_duration_seconds", ended - born, pool=pool, outcome=outcome)
        poller.count("publishes_total", result="confirmed")
        if is_broken:
            self._open[Reason.EXECUTION_FAILED] += 1
            poller.count("messages_total", queue=check_queue(pool), result="dead_lettered")
            self._metrics["ops"].count("dead_letters_total", stage=Stage.CHECK, reason=Reason.EXECUTION_FAILED)
            return
        lag, via = self._random.expovariate(1 / 0.7), "push" if self._random.random() < 0.8 else "poll"
        poller.observe("completion_detection_seconds", lag, backend=backend, via=via)
        self._call("poller", backend, "download", 0.15)
        if self._random.random() < 0.01:
            poller.count("transitions_total", from_status="processing", to_status="completed", result="stale")

    def _call(self, service: str, backend: str, operation: str, mean: float) -> None:
        is_good = self._random.random() > 0.004
        result = "ok" if is_good else "timeout"
        seconds = self._random.lognormvariate(math.log(mean), 0.5) if is_good else 10.0
        metrics = self._metrics[service]
        metrics.count("backend_requests_total", backend=backend, operation=operation, result=result)
        metrics.observe("backend_request_seconds", seconds, backend=backend, operation=operation)

    def _rows(self, at: int, minute: int) -> None:
        ops = self._metrics["ops"]
        for pool in _PER_MINUTE:
            names = [name for name, (its, *_) in _BACKENDS.items() if its == pool]
            running = sum(len(self._running[name]) for name in names)
            waiting = self._waiting[pool]
            for status, count, oldest in (
                ("pending", len(waiting), at - waiting[0] if waiting else 0.0),
                ("submitting", 0, 0.0),
                ("processing", running, min(30.0, 6.0 * running)),
            ):
                ops.set("tasks", count, pool=pool, status=status)
                ops.set("task_oldest_age_seconds", max(0.0, oldest), pool=pool, status=status)
            away = sum(name == "gpu-2" and minute in _LOST for name in names)
            for state, count in zip(BACKEND_STATES, (len(names) - away, 0, away), strict=True):
                ops.set("pool_backends", count, pool=pool, state=state)
        for name, (_, capacity, _) in _BACKENDS.items():
            ops.set("backend_inflight_tasks", len(self._running[name]), backend=name)
            ops.set("backend_capacity_tasks", capacity, backend=name)
            ops.set("backend_limit_tasks", capacity, backend=name)
            ops.set("backend_up", not (name == "gpu-2" and minute in _LOST), backend=name)
            ops.set("backend_account_refused", 0, backend=name)
            ops.set("results_at_risk", 0, backend=name)
        for stage, reason in itertools.product(Stage, Reason):
            ops.set("dead_letters_open", self._open[reason] if stage is Stage.CHECK else 0, stage=stage, reason=reason)
        for bound in BOUNDS:
            ops.set("tasks_overdue", 0, bound=bound)
        for check in INVARIANTS:
            ops.set("invariant_violations", 0, check=check)
        ops.set("database_connections", 31 + self._random.randrange(3), kind="open")
        ops.set("database_connections", 100, kind="limit")
        for question in QUESTIONS:
            ops.set("state_last_success_timestamp_seconds", at - self._random.uniform(0, 9), question=question)
            ops.set("state_query_seconds", 0.02, question=question)
        for service, metrics in self._metrics.items():
            metrics.set("amqp_connected", 1)
            metrics.set("amqp_blocked", 0)
            for loop in LOOPS:
                if service in _PERSISTED.get(loop, ("ops",)):
                    age = self._random.uniform(0, 2)
                    metrics.set("loop_last_success_timestamp_seconds", at - age, loop=loop)

    def _scrape(self, at: int) -> Iterator[str]:
        for number, (service, metrics) in enumerate(self._metrics.items()):
            target = f'job="{service}",instance="{service}:9100"'
            for family in metrics.registry.collect():
                if family.name.startswith(_FROM_PROCESS):
                    continue
                observed = {
                    frozenset(sample.labels.items())
                    for sample in family.samples
                    if sample.name == f"{family.name}_count" and sample.value
                }
                for sample in family.samples:
                    whose = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
                    if family.type == "histogram" and whose not in observed:
                        continue
                    labels = "".join(f',{name}="{value}"' for name, value in sample.labels.items())
                    yield f"{sample.name}{{{target}{labels}}} {float(sample.value)} {at}"
            yield f'darkroom_build_info{{{target},version="0.1.0",revision="a1b2c3d",python="3.11"}} 1 {at}'
            memory = 92e6 + 9e6 * number + 1.5e6 * math.sin(at / 900 + number)
            cpu = (at - BEGIN) * (0.02 + 0.03 * number)
            yield f"process_resident_memory_bytes{{{target}}} {memory} {at}"
            yield f"process_cpu_seconds_total{{{target}}} {cpu} {at}"
            yield f"process_open_fds{{{target}}} {24 + 3 * number} {at}"
            yield f"process_start_time_seconds{{{target}}} {BEGIN - 3600 * (number + 1)} {at}"
        broker = 'job="rabbitmq-detailed",instance="rabbitmq:15692"'
        for queue in self._queues:
            ready = self._random.randrange(3) if queue.startswith("check.") and not queue.endswith(".dead") else 0
            yield f'rabbitmq_detailed_queue_messages_ready{{{broker},queue="{queue}"}} {ready} {at}'
            yield f'rabbitmq_detailed_queue_consumers{{{broker},queue="{queue}"}} 1 {at}'
        for alarm in ("memory_used", "free_disk_space"):
            yield f'rabbitmq_alarms_{alarm}_watermark{{job="rabbitmq",instance="rabbitmq:15692"}} 0 {at}'


def at_this_moment(query: str) -> str:
    """The query as the browser sends it for everything, at the story's pace of scrapes."""
    return re.sub(r"\$(job|instance|backend)\b", ".*", query.replace("$__rate_interval", f"{4 * STEP_SECONDS}s"))
