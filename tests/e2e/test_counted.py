"""One story, told to real processes: every count ends at the number the story implies, and nowhere else."""

import time
from collections.abc import Mapping
from typing import Final

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import Stack
from shared.database.claims import Claimed
from shared.observe.catalog import PREFIX
from tests.e2e.conftest import Build
from tests.e2e.promises import owed
from tests.e2e.system import System, an_order, some_orders
from tests.factories import a_claim
from tests.servers import free_port
from tests.waiting import eventually

#: What the story below implies, over all processes: sample, labels, value. Labels that are not named are summed over.
#: Nine orders: T was taken by a worker that died, R had been in somebody's hands before, four came twice, H came
#: over HTTP twice, B fails two times until it is replayed, C is cancelled while it waits. And two that are no order.
IMPLIED: Final[tuple[tuple[str, Mapping[str, str], float], ...]] = (
    ("orders_received_total", {"source": "amqp", "result": "accepted"}, 7),
    ("orders_received_total", {"source": "amqp", "result": "duplicate"}, 4),
    ("orders_received_total", {"source": "amqp", "result": "conflict"}, 1),
    ("orders_received_total", {"source": "amqp", "result": "invalid"}, 1),
    ("orders_received_total", {"source": "http", "result": "accepted"}, 1),
    ("orders_received_total", {"source": "http", "result": "duplicate"}, 1),
    ("claims_total", {"pool": "comfyui", "result": "won"}, 8),
    ("claims_total", {"pool": "comfyui", "result": "duplicate"}, 4),
    ("claims_total", {"pool": "comfyui", "result": "conflict"}, 1),
    ("claims_total", {"pool": "comfyui", "result": "reclaimed"}, 1),
    ("duplicates_suppressed_total", {"point": "claim"}, 4),
    ("duplicates_suppressed_total", {"point": "publish"}, 1),
    ("duplicates_suppressed_total", {"point": "submit"}, 0),
    ("messages_total", {"queue": "orders", "result": "acked"}, 12),
    ("messages_total", {"queue": "orders", "result": "dead_lettered"}, 2),
    ("messages_total", {"queue": "orders.dead", "result": "acked"}, 2),
    ("messages_total", {"queue": "check.dead", "result": "acked"}, 1),
    ("message_handle_seconds_count", {"queue": "orders"}, 14),
    ("message_redeliveries_total", {"queue": "orders"}, 1),
    ("dead_letters_total", {"stage": "orders", "reason": "invalid_message"}, 1),
    ("dead_letters_total", {"stage": "orders", "reason": "conflict"}, 1),
    ("dead_letters_total", {"stage": "check", "reason": "execution_failed"}, 1),
    ("dead_letters_total", {}, 3),
    ("transitions_total", {"from_status": "pending", "to_status": "submitting", "result": "applied"}, 9),
    ("transitions_total", {"from_status": "submitting", "to_status": "submitting", "result": "applied"}, 1),
    ("transitions_total", {"from_status": "submitting", "to_status": "processing", "result": "applied"}, 10),
    ("transitions_total", {"from_status": "processing", "to_status": "pending", "result": "applied"}, 1),
    ("transitions_total", {"from_status": "processing", "to_status": "completed", "result": "applied"}, 8),
    ("transitions_total", {"from_status": "processing", "to_status": "failed", "result": "applied"}, 1),
    ("transitions_total", {"from_status": "pending", "to_status": "cancelled", "result": "applied"}, 1),
    ("transitions_total", {"result": "applied"}, 31),
    ("transitions_total", {"result": "forbidden"}, 0),
    ("orders_finished_total", {"pool": "comfyui", "outcome": "completed"}, 8),
    ("orders_finished_total", {"pool": "comfyui", "outcome": "failed"}, 1),
    ("orders_finished_total", {"pool": "comfyui", "outcome": "cancelled"}, 1),
    ("orders_finished_total", {}, 10),
    ("order_duration_seconds_count", {"pool": "comfyui", "outcome": "completed"}, 8),
    ("order_duration_seconds_count", {"pool": "comfyui", "outcome": "failed"}, 1),
    ("order_stage_seconds_count", {"pool": "comfyui", "stage": "queue"}, 10),
    ("order_stage_seconds_count", {"pool": "comfyui", "stage": "submit"}, 11),
    ("order_stage_seconds_count", {"pool": "comfyui", "stage": "execute"}, 10),
    ("order_stage_seconds_count", {"pool": "comfyui", "stage": "detect"}, 8),
    ("order_stage_seconds_count", {"pool": "comfyui", "stage": "deliver"}, 10),
    ("completion_detection_seconds_count", {"backend": "gpu-1"}, 8),
    ("task_attempts_count", {"pool": "comfyui"}, 9),
    ("task_attempts_sum", {"pool": "comfyui"}, 7 + 2 + 3),
    ("retries_total", {"stage": "check", "reason": "execution_failed"}, 1),
    ("retries_total", {}, 1),
    ("backend_wait_seconds_count", {"pool": "comfyui"}, 9),
    ("backend_requests_total", {"backend": "gpu-1", "operation": "submit", "result": "ok"}, 10),
    ("backend_requests_total", {"backend": "gpu-1", "operation": "download", "result": "ok"}, 8),
    ("backend_request_seconds_count", {"backend": "gpu-1", "operation": "submit"}, 10),
    ("artifact_bytes_count", {"pool": "comfyui"}, 8),
    ("publishes_total", {"result": "nacked"}, 0),
    ("publishes_total", {"result": "returned"}, 0),
    ("dead_letters_open", {}, 2),
    ("dead_letter_replays", {"result": "completed"}, 1),
    ("dead_letter_replays", {}, 1),
    ("tasks", {}, 0),
    ("tasks_overdue", {}, 0),
    ("task_oldest_age_seconds", {}, 0),
    ("invariant_violations", {}, 0),
    ("backend_inflight_tasks", {}, 0),
    ("backend_capacity_tasks", {"backend": "gpu-1"}, 2),
    ("backend_limit_tasks", {"backend": "gpu-1"}, 2),
    ("backend_up", {"backend": "gpu-1"}, 1),
    ("backend_account_refused", {}, 0),
    ("pool_backends", {"pool": "comfyui", "state": "working"}, 1),
    ("pool_backends", {}, 1),
    ("loop_bugs_total", {}, 0),
    ("amqp_connected", {}, 4),
    ("amqp_blocked", {}, 0),
    ("amqp_reconnects_total", {}, 0),
    ("build_info", {}, 4),
    ("draining", {}, 0),
)
#: Where timing decides how much more: looks, permits, batches.
AT_LEAST: Final[tuple[tuple[str, Mapping[str, str], float], ...]] = (
    ("polls_total", {"backend": "gpu-1", "result": "done"}, 8),
    ("polls_total", {"backend": "gpu-1", "result": "failed"}, 2),
    ("poll_lag_seconds_count", {"pool": "comfyui"}, 1),
    ("publishes_total", {"result": "confirmed"}, 10 + 8 + 1 + 1 + 3 + 9),
    ("publish_confirm_seconds_count", {}, 10 + 8 + 1 + 1 + 3 + 9),
    ("database_seconds_count", {"operation": "claim"}, 2),
    ("database_seconds_count", {"operation": "take"}, 3),
    ("database_seconds_count", {"operation": "follow_up"}, 3),
    ("database_pool_connections", {}, 4),
    ("database_connections", {"kind": "open"}, 4),
)


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(settings={"HTTP_PORT": free_port()})
    for service in ("poller", "producer", "ops"):
        system.add(service)
    return system


def samples(system: System) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Of all living processes together, without the prefix; those of the Python process left out."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for worker in system.workers:
        text = requests.get(f"http://127.0.0.1:{worker.port}/metrics", timeout=10).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    key = (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items()))
                    found[key] = found.get(key, 0.0) + sample.value
    return found


def total(of: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, labels: Mapping[str, str]) -> float:
    return sum(value for (sample, has), value in of.items() if sample == name and labels.items() <= set(has))


def the_story(system: System) -> None:
    url = f"http://127.0.0.1:{system.settings['DARKROOM_HTTP_PORT']}/v1/orders"
    taken, returned, twice, over_http, bad, cancelled = (
        an_order(), an_order(), some_orders(4), an_order(), an_order(), an_order(),
    )  # fmt: skip
    (claimed,) = system.tasks.claim([a_claim(taken)])
    assert isinstance(claimed, Claimed)
    assert len(system.slots.take("comfyui", at_most=1, lease_seconds=0.1).tasks) == 1
    system.place(returned)
    with system.mail.channel() as channel:
        method = eventually(lambda: channel.basic_get("orders")[0], within=10, what="it is in the queue")
        channel.basic_nack(method.delivery_tag)
    system.add("submitter")
    system.await_status("completed", taken, returned)

    system.place(*twice, *twice)
    for _ in range(2):
        answer = requests.post(url, json=over_http.model_dump(mode="json", exclude_defaults=True), timeout=10)
        assert answer.ok, answer.text
        system.await_status("completed", *twice, over_http)
    system.mail.send(b"no order at all")
    system.place(twice[0].model_copy(update={"inputs": {"width": 64, "height": 64, "color": 1}}))

    gpu = system.gpus[0]
    gpu.faults(fail_execution={"match": f'"color": {bad.inputs["color"]}'})
    system.place(bad)
    system.await_status("failed", bad)
    gpu.heal()
    (letter,) = eventually(lambda: system.letters(bad), within=20, what="its letter")
    ended, said = system.darkroom("dead", "replay", str(letter.id), "--by", "ann")
    assert ended == 0, said
    system.await_status("completed", bad)

    assert system.darkroom("backend", "pause", "gpu-1", "--reason", "for a test", "--by", "ann")[0] == 0
    system.place(cancelled)
    system.await_status("pending", cancelled)
    assert requests.post(f"{url}/{cancelled.task_id}/cancel", timeout=10).ok
    system.await_status("cancelled", cancelled)
    assert system.darkroom("backend", "resume", "gpu-1", "--by", "ann")[0] == 0
    eventually(lambda: not owed(system) and len(system.letters()) == 2, within=30, what="nothing is owed")


def test_every_count_is_what_the_story_implies(system: System) -> None:
    the_story(system)

    def wrong() -> list[str]:
        of = samples(system)
        shown = [(name, labels, total(of, name, labels), value) for name, labels, value in IMPLIED]
        told = [f"{name}{dict(labels)}: {is_}, not {value}" for name, labels, is_, value in shown if is_ != value]
        shown = [(name, labels, total(of, name, labels), value) for name, labels, value in AT_LEAST]
        return told + [f"{name}{dict(labels)}: only {is_}" for name, labels, is_, value in shown if is_ < value]

    try:
        eventually(lambda: not wrong(), within=20, every=1)  # the exporter looks every ten seconds
    except AssertionError:
        raise AssertionError("\n".join(wrong())) from None
    of = samples(system)
    ages = {dict(labels)["loop"]: value for (name, labels), value in of.items() if name.startswith("loop_last_success")}
    assert set(ages) >= {"consume", "schedule", "watch", "replay", "export"}
    assert time.time() - ages["schedule"] < 30
    assert time.time() - total(of, "state_last_success_timestamp_seconds", {"question": "state"}) < 30
    assert 0 < total(of, "state_query_seconds", {"question": "state"}) < 5
    counted = total(of, "log_messages_total", {"level": "warning"}), total(of, "log_messages_total", {"level": "error"})
    levels = [line.get("level") for worker in system.workers for line in worker.lines()]
    assert counted == (levels.count("warning"), levels.count("error") + levels.count("critical"))
    assert counted[0] >= 2  # an attempt failed, and then the order


def test_connections_that_the_broker_closed_are_counted_once_each(system: System, stack: Stack) -> None:
    vhost = system.settings["DARKROOM_AMQP_URL"].rpartition("/")[2]
    stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")
    # A producer only publishes; the others have a connection for that and one to consume.
    eventually(lambda: total(samples(system), "amqp_reconnects_total", {"reason": "closed_by_broker"}) == 7, within=20)
    eventually(lambda: all(worker.is_ready() for worker in system.workers), within=30, what="all are ready again")
    assert total(samples(system), "amqp_reconnects_total", {}) == 7
