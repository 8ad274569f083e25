"""Hours that never were: orders in virtual time, written through the real instruments; the same every time.

Two ComfyUI servers and an image API serve two pools. What goes wrong and when is a list of faults.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.broker.topology import check_queue, submit_queue, topology
from shared.domain.task import Reason, Stage
from shared.observe.catalog import BACKEND_STATES, BOUNDS, INVARIANTS, LOOPS, QUESTIONS, REPLAYS, SERVICES
from shared.observe.metrics import Metrics, build

BEGIN: Final = 1_767_225_600

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
#: Finished orders whose events a blocked publisher still has in hand.
_IN_HAND: Final = 3


class Trouble(StrEnum):
    LOST = "backend lost"
    BROKEN = "dead-letter burst"
    STUCK = "stuck poller"
    ALARM = "broker alarm"


@dataclass(frozen=True, slots=True)
class Fault:
    """From minute `begin` to minute `end`. at -- the backend that is lost, the pool whose orders die; "": all"""

    trouble: Trouble
    begin: int
    end: int
    at: str = ""


#: What the pictures of the dashboards show.
AFTERNOON: Final = (Fault(Trouble.LOST, 70, 110, "gpu-2"), Fault(Trouble.BROKEN, 130, 135))
AFTERNOON_MINUTES: Final = 140
AFTERNOON_STEP_SECONDS: Final = 30


class World:
    """Everything that happens, step by step; `text` is what Prometheus would have scraped.

    step_seconds -- between scrapes
    decided      -- minutes at which somebody closes all dead letters that are open
    """

    def __init__(
        self, faults: Sequence[Fault], minutes: int, step_seconds: int, *, decided: Sequence[int] = ()
    ) -> None:
        self._faults = faults
        self._step_seconds = step_seconds
        self._end = BEGIN + minutes * 60
        self._decided = decided
        self._random = random.Random(12)
        self._aside = random.Random(21)  # for what nothing else depends on
        self._probed_at = BEGIN
        queues = [queue.name for queue in topology(list(_PER_MINUTE)).queues]
        self._queues = queues
        self._metrics: dict[str, Metrics] = {
            service: build(service, pools=_PER_MINUTE, backends=_BACKENDS, queues=queues, strict=True)
            for service in SERVICES
        }
        self._waiting: dict[str, list[float]] = {pool: [] for pool in _PER_MINUTE}
        self._running: dict[str, list[tuple[float, float]]] = {name: [] for name in _BACKENDS}
        self._held_back: Counter[str] = Counter()
        self._open: Counter[Reason] = Counter()
        self._turned_at = BEGIN

    def text(self) -> str:
        """In OpenMetrics' format, each sample with its moment."""
        lines = itertools.chain.from_iterable(self._step(at) for at in range(BEGIN, self._end + 1, self._step_seconds))
        return "\n".join([*lines, "# EOF", ""])

    def _has(self, trouble: Trouble, at: int, where: str = "") -> bool:
        minute = (at - BEGIN) // 60
        return any(
            fault.trouble is trouble and fault.begin <= minute < fault.end and fault.at in ("", where)
            for fault in self._faults
        )

    def _step(self, at: int) -> Iterator[str]:
        is_blocked = self._has(Trouble.ALARM, at)
        for pool in _PER_MINUTE:
            self._arrive(pool, at, is_blocked=is_blocked)
        if not self._has(Trouble.STUCK, at):
            self._turned_at = at
        for backend in _BACKENDS:
            if self._has(Trouble.LOST, at, backend):
                self._lose(backend)
            else:
                self._work(backend, at, is_blocked=is_blocked)
        if (at - BEGIN) / 60 in self._decided:
            self._open.clear()
        self._rows(at, is_blocked=is_blocked)
        return self._scrape(at, is_blocked=is_blocked)

    def _arrive(self, pool: str, at: int, *, is_blocked: bool) -> None:
        """By HTTP; while the broker blocks publishers, the upstream systems keep their orders; then they all come."""
        producer, submitter = self._metrics["producer"], self._metrics["submitter"]
        mean = _PER_MINUTE[pool] * self._step_seconds / 60
        count = sum(self._random.random() < mean / 12 for _ in range(12))
        if is_blocked:
            self._held_back[pool] += count
            producer.count("publishes_total", count, result="timeout")
            return
        for _ in range(count + self._held_back.pop(pool, 0)):
            producer.count("publishes_total", result="confirmed")
            self._waiting[pool].append(at - self._random.uniform(0, self._step_seconds))
            submitter.count("orders_received_total", source="amqp", result="accepted")
            submitter.count("claims_total", pool=pool, result="won")
            submitter.count("messages_total", queue="orders", result="acked")
            submitter.count("publishes_total", result="confirmed")
            submitter.observe("publish_confirm_seconds", self._random.lognormvariate(-4.5, 0.6))
            submitter.observe("message_handle_seconds", self._random.lognormvariate(-3.5, 0.5), queue="orders")
            if self._random.random() < 0.06:
                submitter.count("duplicates_suppressed_total", point="claim")
        self._waiting[pool].sort()

    def _lose(self, backend: str) -> None:
        pool = _BACKENDS[backend][0]
        self._waiting[pool][:0] = [born for born, _ in self._running[backend]]
        self._running[backend] = []
        for _ in range(3):
            self._metrics["poller"].count(
                "backend_requests_total", backend=backend, operation="health", result="connect"
            )

    def _work(self, backend: str, at: int, *, is_blocked: bool) -> None:
        """Nothing starts without permits, and nothing is noticed without checks: both are messages of the poller."""
        if is_blocked or self._turned_at < at:
            return
        pool, capacity, mean = _BACKENDS[backend]
        is_broken = self._has(Trouble.BROKEN, at, pool)
        moment = float(at - self._step_seconds)
        while moment < at:
            for born, ends in [job for job in self._running[backend] if job[1] <= moment]:
                self._running[backend].remove((born, ends))
                self._end_of(backend, born, ends, noticed=moment, is_broken=is_broken and self._random.random() < 0.5)
            while len(self._running[backend]) < capacity and self._waiting[pool]:
                born = self._waiting[pool].pop(0)
                self._running[backend].append((born, max(moment, born) + self._random.gauss(mean, mean / 6)))
                self._start(pool, max(0.0, moment - born), is_short=capacity < 4)
                self._call("submitter", backend, "submit", 0.06)
                self._metrics["submitter"].count("messages_total", queue=submit_queue(pool), result="acked")
            moment += 1.0
        for _ in range(self._step_seconds // 2):
            self._call("poller", backend, "poll", 0.02)
            self._metrics["poller"].observe("poll_lag_seconds", self._random.uniform(0, 0.6), pool=pool)
            self._metrics["poller"].count("messages_total", queue=check_queue(pool), result="acked")
            jobs = len(self._running[backend])
            self._metrics["poller"].count("polls_total", jobs, backend=backend, result="running")
            seconds = self._random.lognormvariate(-2.5, 0.6)
            self._metrics["poller"].observe("message_handle_seconds", seconds, queue=check_queue(pool))

    def _start(self, pool: str, waited: float, *, is_short: bool) -> None:
        submitter = self._metrics["submitter"]
        reason = "slot" if is_short and waited > 2 else "permit"
        submitter.observe("backend_wait_seconds", waited, pool=pool, reason=reason)
        submitter.observe("order_stage_seconds", waited, pool=pool, stage="queue")
        submitter.observe("order_stage_seconds", self._aside.lognormvariate(-2.2, 0.5), pool=pool, stage="submit")
        for operation, mean in (("claim", 0.006), ("take", 0.008), ("may_post", 0.003), ("move", 0.005)):
            submitter.observe("database_seconds", self._aside.lognormvariate(math.log(mean), 0.5), operation=operation)

    def _end_of(self, backend: str, born: float, ended: float, *, noticed: float, is_broken: bool) -> None:
        pool, poller = _BACKENDS[backend][0], self._metrics["poller"]
        outcome = "failed" if is_broken else "completed"
        late = max(0.0, noticed - ended - self._step_seconds)  # within a step nobody was late
        poller.count("orders_finished_total", pool=pool, outcome=outcome)
        poller.observe("order_duration_seconds", ended + late - born, pool=pool, outcome=outcome)
        poller.observe("task_attempts", 2 if is_broken else 1, pool=pool)
        poller.count("polls_total", backend=backend, result="failed" if is_broken else "done")
        poller.observe("order_stage_seconds", self._aside.gauss(_BACKENDS[backend][2], 1.5), pool=pool, stage="execute")
        poller.observe("order_stage_seconds", self._aside.lognormvariate(-4, 0.5), pool=pool, stage="deliver")
        for operation, mean in (("move", 0.006), ("due", 0.004), ("follow_up", 0.003)):
            poller.observe("database_seconds", self._aside.lognormvariate(math.log(mean), 0.5), operation=operation)
        poller.count("publishes_total", result="confirmed")
        if is_broken:
            poller.count("retries_total", stage=Stage.CHECK, reason=Reason.EXECUTION_FAILED)
            poller.count("log_messages_total", 2, level="warning")
            self._open[Reason.EXECUTION_FAILED] += 1
            poller.count("messages_total", queue=check_queue(pool), result="dead_lettered")
            self._metrics["ops"].count("dead_letters_total", stage=Stage.CHECK, reason=Reason.EXECUTION_FAILED)
            return
        lag, via = self._random.expovariate(1 / 0.7), "push" if self._random.random() < 0.8 else "poll"
        poller.observe("completion_detection_seconds", lag + late, backend=backend, via=via)
        poller.observe("order_stage_seconds", lag + late, pool=pool, stage="detect")
        poller.observe("artifact_bytes", self._aside.lognormvariate(14, 0.4), pool=pool)
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

    def _rows(self, at: int, *, is_blocked: bool) -> None:
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
            away = sum(self._has(Trouble.LOST, at, name) for name in names)
            for state, count in zip(BACKEND_STATES, (len(names) - away, 0, away), strict=True):
                ops.set("pool_backends", count, pool=pool, state=state)
        for name, (_, capacity, _) in _BACKENDS.items():
            ops.set("backend_inflight_tasks", len(self._running[name]), backend=name)
            ops.set("backend_capacity_tasks", capacity, backend=name)
            ops.set("backend_limit_tasks", capacity, backend=name)
            ops.set("backend_up", not self._has(Trouble.LOST, at, name), backend=name)
            ops.set("backend_account_refused", 0, backend=name)
            ops.set("results_at_risk", 0, backend=name)
        for stage, reason in itertools.product(Stage, Reason):
            ops.set("dead_letters_open", self._open[reason] if stage is Stage.CHECK else 0, stage=stage, reason=reason)
        for result in REPLAYS:
            ops.set("dead_letter_replays", {"completed": 11, "failed": 2}.get(result, 0), result=result)
        if not is_blocked and self._turned_at == at:
            self._probed_at = at
        ops.set("probe_last_success_timestamp_seconds", self._probed_at - self._aside.uniform(0, 55), probe="canary")
        ops.set("probe_duration_seconds", 0.9 + self._aside.expovariate(2.0), probe="canary")
        late = {"poll": sum(map(len, self._running.values())) if is_blocked or self._turned_at < at else 0}
        late["follow_up"] = _IN_HAND if is_blocked else 0
        for bound in BOUNDS:
            ops.set("tasks_overdue", late.get(bound, 0), bound=bound)
        for check in INVARIANTS:
            ops.set("invariant_violations", 0, check=check)
        ops.set("database_connections", 31 + self._aside.randrange(3), kind="open")
        ops.set("database_connections", 100, kind="limit")
        for question in QUESTIONS:
            ops.set("state_last_success_timestamp_seconds", at - self._aside.uniform(0, 9), question=question)
            ops.set("state_query_seconds", 0.02, question=question)

    def _scrape(self, at: int, *, is_blocked: bool) -> Iterator[str]:
        for service, metrics in self._metrics.items():
            in_use = self._aside.randrange(1, 4)
            metrics.set("database_pool_connections", in_use, state="in_use")
            metrics.set("database_pool_connections", 6 - in_use, state="idle")
            metrics.set("amqp_connected", 1)
            metrics.set("amqp_blocked", is_blocked)
            for loop in LOOPS:
                if service in _PERSISTED.get(loop, ("ops",)):
                    turned = self._turned_at if service == "poller" and loop == "schedule" else at
                    age = self._aside.uniform(0, 2)
                    metrics.set("loop_last_success_timestamp_seconds", turned - age, loop=loop)
        for number, service in enumerate(self._metrics):
            yield from self._of(service, at)
            yield from _of_process(service, number, at)
        yield from self._of_broker(at, is_blocked=is_blocked)

    def _of(self, service: str, at: int) -> Iterator[str]:
        target = f'job="{service}",instance="{service}:9100"'
        for family in self._metrics[service].registry.collect():
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
        yield f"up{{{target}}} 1 {at}"

    def _of_broker(self, at: int, *, is_blocked: bool) -> Iterator[str]:
        broker = 'job="rabbitmq-detailed",instance="rabbitmq:15692"'
        for queue in self._queues:
            ready = self._random.randrange(3) if queue.startswith("check.") and not queue.endswith(".dead") else 0
            yield f'rabbitmq_detailed_queue_messages_ready{{{broker},queue="{queue}"}} {ready} {at}'
            held = self._aside.randrange(2, 9) if queue.startswith("submit.") and not queue.endswith(".dead") else 0
            yield f'rabbitmq_detailed_queue_messages_unacked{{{broker},queue="{queue}"}} {held} {at}'
            yield f'rabbitmq_detailed_queue_consumers{{{broker},queue="{queue}"}} 1 {at}'
        for alarm in ("memory_used", "free_disk_space"):
            value = int(is_blocked and alarm == "free_disk_space")
            yield f'rabbitmq_alarms_{alarm}_watermark{{job="rabbitmq",instance="rabbitmq:15692"}} {value} {at}'


def _of_process(service: str, number: int, at: int) -> Iterator[str]:
    target = f'job="{service}",instance="{service}:9100"'
    yield f'darkroom_build_info{{{target},version="0.1.0",revision="a1b2c3d",python="3.11"}} 1 {at}'
    memory = 92e6 + 9e6 * number + 1.5e6 * math.sin(at / 900 + number)
    cpu = (at - BEGIN) * (0.02 + 0.03 * number)
    yield f"process_resident_memory_bytes{{{target}}} {memory} {at}"
    yield f"process_cpu_seconds_total{{{target}}} {cpu} {at}"
    yield f"process_open_fds{{{target}}} {24 + 3 * number} {at}"
    yield f"process_start_time_seconds{{{target}}} {BEGIN - 3600 * (number + 1)} {at}"
