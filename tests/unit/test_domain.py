"""The pure core: names that everybody derives alike, waits that stay in bounds, messages that AMQP can carry."""

import json
import uuid
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.domain.errors import BrokerAway, DatabaseAway, Outage, ProviderBusy, StorageAway
from shared.domain.messages import (
    MAX_DETAIL_CHARS,
    Order,
    check,
    dead_letter,
    dead_letter_headers,
    event,
    order_placed,
    permit,
)
from shared.domain.messages import CheckTasks as Checks
from shared.domain.messages import TaskRef as Ref
from shared.domain.retry import TRIES, Bug, RetryPolicy, tried
from shared.domain.task import (
    ACTIVE,
    FINAL,
    LEGAL_MOVES,
    Priority,
    Reason,
    Stage,
    Status,
    Task,
    fingerprint_of,
    job_key_for,
    seed_for,
    task_id_for,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def a_row(**values: Any) -> Task:
    given_values: dict[str, Any] = dict.fromkeys(field.name for field in fields(Task))
    given_values |= {
        "id": task_id_for("k"),
        "idempotency_key": "k",
        "pool": "comfyui",
        "priority": Priority.NORMAL,
        "status": Status.FAILED,
        "version": 4,
        "attempt": 2,
        "changed_at": NOW,
        "deadline_at": NOW,
        "now": NOW,
        "trace_id": "0" * 31 + "1",
        "reason": "bug",
        "stage": "check",
    }
    return Task(**given_values | values)


def test_the_names_of_a_task_and_its_jobs_never_change() -> None:
    """Producers elsewhere and jobs at providers carry them: a change here would make second pictures."""
    assert str(task_id_for("order-1")) == "47e135e8-c7f9-5776-95bb-3ea2a9748c1a"
    assert str(job_key_for(task_id_for("order-1"), 1)) == "cf92a76a-fc0f-55b7-ac61-e90854a4e51c"
    assert job_key_for(task_id_for("order-1"), 1) != job_key_for(task_id_for("order-1"), 2)


@given(st.uuids())
def test_a_seed_is_a_number_that_every_json_reader_holds_exactly(job_key: uuid.UUID) -> None:
    assert 0 <= seed_for(job_key) < 2**53
    assert int(float(seed_for(job_key))) == seed_for(job_key)


def test_active_rows_can_end_and_ended_ones_stay_except_for_a_failed_one() -> None:
    assert set(Status) == ACTIVE | FINAL
    assert {before for before, _ in LEGAL_MOVES if before in FINAL} == {Status.FAILED}
    for status in ACTIVE:
        assert {(status, Status.FAILED), (status, Status.CANCELLED)} <= LEGAL_MOVES


def test_orders_that_mean_the_same_have_one_fingerprint() -> None:
    short = Order.model_validate({"idempotency_key": "k", "pool": "p", "inputs": {"a": 1, "b": 2}})
    long = Order.model_validate(
        {"inputs": {"b": 2, "a": 1}, "priority": "normal", "metadata": {}, "pool": "p", "idempotency_key": "k"}
    )

    assert short.fingerprint == long.fingerprint
    assert short.fingerprint != long.model_copy(update={"inputs": {"a": 1, "b": 3}}).fingerprint


@given(st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=5))
def test_an_order_reads_back_as_it_was_published(inputs: dict[str, Any]) -> None:
    order = Order(idempotency_key="k", pool="p", inputs=inputs)

    again = Order.model_validate_json(order_placed(order).body)

    assert again == order
    plain = order.model_dump(mode="json", exclude={"pools", "fallback_on"})
    assert again.fingerprint == order.fingerprint == fingerprint_of(plain)


@pytest.mark.parametrize("key", ["", "x" * 201, "a\x00", "a\nb", "\x7f", "\ud800"])
def test_a_key_nobody_could_store_or_read_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        Order(idempotency_key=key, pool="p")


@given(st.text(min_size=1, max_size=200))
def test_every_correlation_id_fits_into_a_short_string_of_amqp(key: str) -> None:
    try:
        order = Order(idempotency_key=key, pool="p")
    except ValidationError:
        return
    correlation_id = order_placed(order).correlation_id
    assert correlation_id is not None
    assert len(correlation_id.encode()) <= 255
    assert key.startswith(correlation_id)


@given(st.text())
def test_every_detail_fits_into_a_header(detail: str) -> None:
    headers = dead_letter_headers(reason=Reason.BUG, stage=Stage.CHECK, detail=detail + "x" * 3000)

    assert len(headers["detail"].encode()) <= 4 * MAX_DETAIL_CHARS


def test_the_same_row_state_gives_the_same_event_and_letter_and_the_next_one_others() -> None:
    row, later = a_row(), a_row(version=5)

    assert event(row, "failed").message_id == event(row, "failed").message_id
    assert dead_letter(row).message_id == dead_letter(row).message_id
    assert event(row, "failed").message_id != event(later, "failed").message_id
    assert dead_letter(row).message_id != dead_letter(later).message_id
    assert (
        event(row, "duplicate", duplicate_key="a").message_id != event(row, "duplicate", duplicate_key="b").message_id
    )


def test_an_event_gives_the_upstream_its_own_metadata_and_cuts_long_details() -> None:
    message = event(a_row(detail="x" * 9000, body={"metadata": {"shop": 7}}), "failed")

    body = json.loads(message.body)
    assert (body["metadata"], body["reason"], len(body["detail"])) == ({"shop": 7}, "bug", MAX_DETAIL_CHARS)
    assert (message.exchange, message.routing_key, message.mandatory) == ("events", "order.failed", False)
    assert json.loads(event(a_row(body=None), "failed").body)["metadata"] == {}


def test_a_letter_goes_to_the_dead_queue_of_its_stage() -> None:
    message = dead_letter(a_row(stage="submit"))

    assert (message.exchange, message.routing_key, message.mandatory) == ("", "submit.dead", True)
    assert message.headers["task_id"] == str(task_id_for("k"))
    assert message.headers["traceparent"].startswith("00-" + "0" * 31 + "1-")


def test_permits_and_checks_name_their_queue() -> None:
    assert permit("fal").routing_key == "submit.fal"
    ref = Ref(task_id=task_id_for("k"), attempt=1)
    assert check("comfyui", Checks(pool="gone", tasks=[ref])).routing_key == "check.comfyui"


def test_a_row_is_past_its_deadline_by_the_clock_of_the_database() -> None:
    assert a_row(deadline_at=NOW).is_past_deadline
    assert not a_row(deadline_at=NOW + timedelta(microseconds=1)).is_past_deadline


@given(charged=st.integers(0, 100), factor=st.floats(1, 10), first=st.floats(0, 3600))
def test_a_backoff_stays_within_its_cap_for_all_that_the_settings_allow(
    charged: int, factor: float, first: float
) -> None:
    assert 0 <= RetryPolicy(first_seconds=first, factor=factor).backoff_seconds(charged) <= 900


def test_backoffs_grow_by_their_factor() -> None:
    policy = RetryPolicy(first_seconds=10, factor=3, cap_seconds=900)

    longest = [max(policy.backoff_seconds(charged) for _ in range(500)) for charged in (1, 2, 3)]

    assert longest[0] <= 10 < longest[1] <= 30 < longest[2] <= 90


def test_tries_are_left_until_they_are_used_up() -> None:
    assert [RetryPolicy(max_charged=2).has_tries_left(charged) for charged in (0, 1, 2, 3)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_bug_is_tried_three_times_with_pauses_and_then_named() -> None:
    tries: list[int] = []
    pauses: list[float] = []

    def work(before: int) -> None:
        tries.append(before)
        raise KeyError("a bug")

    found = tried(work, pauses.append)

    assert isinstance(found, Bug)
    assert "KeyError: 'a bug'" in found.trace
    assert (tries, len(pauses)) == ([0, 1, 2], TRIES - 1)
    assert pauses == sorted(pauses)


def test_an_outage_is_nobodys_bug() -> None:
    tries: list[int] = []

    def work(before: int) -> None:
        tries.append(before)
        raise DatabaseAway("gone")

    with pytest.raises(Outage):
        tried(work, lambda _: None)
    assert tries == [0]


def test_what_every_handler_needs_is_an_outage_and_a_busy_provider_is_none() -> None:
    assert all(issubclass(error, Outage) for error in (DatabaseAway, BrokerAway, StorageAway))
    assert not issubclass(ProviderBusy, Outage)
