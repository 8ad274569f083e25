"""The catalogue is closed: what is written is declared, and what is declared exists at 0 from the start."""

import itertools
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.domain.task import LEGAL_MOVES
from shared.observe.catalog import CATALOGUE, FAST, ORDER, SERVICES, Anything, Kind, catalogue_table
from shared.observe.metrics import EVERYTHING, Metrics, UnknownSeries, build

POOLS = ("comfyui", "openai_images")
BACKENDS = ("gpu-1", "openai_images")
QUEUES = ("orders", "submit.comfyui", "check.comfyui")


def metrics(service: str = EVERYTHING, *, strict: bool = True) -> Metrics:
    return build(service, pools=POOLS, backends=BACKENDS, queues=QUEUES, strict=strict)


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def page(of: Metrics) -> str:
    return generate_latest(of.registry).decode()


def series(of: Metrics) -> int:
    return sum(len(family.samples) for family in text_string_to_metric_families(page(of)))


def test_names_units_and_types_agree():
    for metric in CATALOGUE:
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert (metric.buckets is not None) == (metric.kind is Kind.HISTOGRAM), metric.name
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith(("_seconds", "_bytes", "_attempts"))
        assert metric.question.endswith("?")
        assert set(metric.services) <= set(SERVICES)
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


def test_no_label_can_hold_an_id():
    labels = set(itertools.chain.from_iterable(metric.labels for metric in CATALOGUE))
    assert not labels & {"order", "task", "task_id", "order_id", "trace_id", "key", "url", "error", "user", "prompt"}
    open_ones = [m.name for m in CATALOGUE if any(isinstance(values, Anything) for values in m.labels.values())]
    assert open_ones == ["build_info"]


@pytest.mark.parametrize("ladder", [FAST, ORDER])
def test_bucket_ladders_rise(ladder):
    assert list(ladder) == sorted(set(ladder))


def test_the_latency_promise_of_300_seconds_is_a_bucket_bound():
    assert 'darkroom_order_duration_seconds_bucket{le="300.0",outcome="completed",pool="comfyui"} 0.0' in page(
        metrics()
    )


def test_every_counter_and_histogram_is_born_at_zero():
    text = page(metrics())
    for metric in CATALOGUE:
        if metric.kind is not Kind.GAUGE:
            assert f"\ndarkroom_{metric.name}" in text, metric.name
    assert 'darkroom_dead_letters_total{reason="bug",stage="check"} 0.0' in text
    assert not re.search(r"^darkroom_\w+_created\b", text, re.MULTILINE)


def test_a_gauge_with_labels_says_nothing_before_its_first_value():
    fresh = metrics()
    assert "darkroom_invariant_violations{" not in page(fresh)
    fresh.set("invariant_violations", 0, check="zombie")
    assert 'darkroom_invariant_violations{check="zombie"} 0.0' in page(fresh)


def test_a_forgotten_gauge_has_no_series_until_it_is_set_again():
    ours = metrics()
    ours.set("invariant_violations", 3, check="zombie")
    ours.forget("invariant_violations")
    assert "darkroom_invariant_violations{" not in page(ours)
    ours.set("invariant_violations", 4, check="zombie")
    assert ours.value("invariant_violations", check="zombie") == 4


def test_counting_observing_and_setting_show():
    ours = metrics()
    ours.count("messages_total", queue="orders", result="acked")
    ours.count("messages_total", 2, queue="orders", result="acked")
    ours.observe("backend_request_seconds", 0.3, backend="gpu-1", operation="submit")
    ours.set("amqp_connected", 1)
    assert ours.value("messages_total", queue="orders", result="acked") == 3
    assert ours.value("backend_request_seconds", backend="gpu-1", operation="submit") == 1
    assert ours.value("amqp_connected") == 1


def test_a_negative_duration_counts_as_zero():
    ours = metrics()
    ours.observe("completion_detection_seconds", -5, backend="gpu-1", via="push")
    assert ours.registry.get_sample_value(
        "darkroom_completion_detection_seconds_sum", {"backend": "gpu-1", "via": "push"}
    ) == pytest.approx(0)


def test_two_processes_of_one_test_do_not_share_numbers():
    first, second = metrics(), metrics()
    first.count("publishes_total", result="confirmed")
    assert second.value("publishes_total", result="confirmed") == 0


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("messages_total", {"queue": "nobody's", "result": "acked"}),
        ("messages_total", {"queue": "orders", "result": "lost"}),
        ("messages_total", {"queue": "orders"}),
        ("messages_total", {"queue": "orders", "result": "acked", "task": "1"}),
        ("mesages_total", {}),
        ("amqp_connected", {}),
    ],
)
def test_what_the_catalogue_does_not_have_fails_a_test_but_not_an_order(name, labels, caplog):
    with pytest.raises(UnknownSeries):
        metrics().count(name, **labels)
    lenient = metrics(strict=False)
    before = series(lenient)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            lenient.count(name, **labels)
    assert len(caplog.records) == 1
    assert series(lenient) == before


def test_a_pool_nobody_configured_counts_as_other():
    ours = metrics()
    ours.count("claims_total", pool="made-up-by-upstream", result="won")
    assert ours.value("claims_total", pool="other", result="won") == 1


def test_legal_moves_are_applied_or_stale_and_only_illegal_ones_forbidden():
    ours = metrics()
    for before, after in LEGAL_MOVES:
        ours.count("transitions_total", from_status=before, to_status=after, result="applied")
        with pytest.raises(UnknownSeries):
            ours.count("transitions_total", from_status=before, to_status=after, result="forbidden")
    ours.count("transitions_total", from_status="completed", to_status="pending", result="forbidden")
    with pytest.raises(UnknownSeries):
        ours.count("transitions_total", from_status="completed", to_status="pending", result="applied")


def test_a_service_exports_only_what_it_writes():
    assert "darkroom_claims_total" in page(metrics("submitter"))
    assert "darkroom_claims_total" not in page(metrics("poller"))
    with pytest.raises(ValueError, match="no service"):
        build("submiter")


@pytest.mark.parametrize("service", SERVICES)
def test_ten_backends_stay_within_the_budget_of_series_and_of_50_ms_a_scrape(service):
    backends = [f"gpu-{n}" for n in range(10)]
    queues = ["orders", *(f"{step}.{pool}" for step in ("submit", "check") for pool in POOLS)]
    full = build(service, pools=POOLS, backends=backends, queues=queues)
    assert series(full) < 3000

    def scrape() -> float:
        began = time.thread_time()
        generate_latest(full.registry)
        return time.thread_time() - began

    assert min(scrape() for _ in range(5)) < 0.05


def test_more_than_twenty_backends_are_refused():
    with pytest.raises(ValueError, match="at most 20"):
        build("submitter", backends=[f"gpu-{n}" for n in range(21)])


def test_the_build_and_the_python_process_are_exported():
    text = page(build("ops", revision="abc123"))
    assert 'revision="abc123"' in text
    assert "python_gc_collections_total" in text


def test_counting_from_many_threads_loses_nothing():
    ours = metrics()

    def work() -> None:
        for _ in range(500):
            ours.count("publishes_total", result="confirmed")
            ours.set("loop_last_success_timestamp_seconds", 1, loop="consume")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ours.value("publishes_total", result="confirmed") == 2000


def test_the_table_names_every_metric():
    assert [line.split("`")[1] for line in catalogue_table().splitlines()[2:]] == [
        "darkroom_" + metric.name for metric in CATALOGUE
    ]


def test_gauges_may_be_forgotten_while_other_threads_count(switching_often: None) -> None:
    counted, ended = metrics(strict=False), threading.Event()

    def count() -> None:
        for number in range(3000):  # each a name that nobody configured, so all are asked for in a new way
            counted.count("unknown_states_total", backend=f"other-{number}")
        ended.set()

    counting = threading.Thread(target=count)
    counting.start()
    while not ended.is_set():
        counted.forget("backend_up")
    counting.join()

    assert counted.value("unknown_states_total", backend="other") == 3000


def test_what_the_canary_does_is_seen_nowhere() -> None:
    ours = build("ops", pools=["comfyui", "canary"], backends=["gpu-1", "canary"], strict=True)
    ours.count("orders_finished_total", pool="canary", outcome="completed")
    ours.observe("order_duration_seconds", 1, pool="canary", outcome="completed")
    ours.set("backend_up", 1, backend="canary")
    ours.set("backend_up", 1, backend="gpu-1")
    assert not re.search('(pool|backend)="canary"', page(ours))
    assert ours.value("orders_finished_total", pool="other", outcome="completed") == 0
