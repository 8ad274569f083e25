"""Alive asks only our own loops, ready asks everything, and a hung process ends itself."""

import json
import threading
import time

import pytest
import requests

from shared.observe.health import EXIT_HUNG, Health, Server, Watchdog
from shared.observe.metrics import build
from tests.waiting import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(clock=clock)


@pytest.fixture
def server():
    """A running server; `server.get(path)` answers (status, body)."""
    metrics = build("poller", strict=True)
    health = Health(metrics)
    running = Server(health, metrics).start()

    def get(path: str, **headers: str) -> tuple[int, str]:
        answer = requests.get(f"http://127.0.0.1:{running.port}{path}", headers=headers, timeout=5)
        return answer.status_code, answer.text

    running.get, running.health = get, health
    yield running
    running.close()


def test_a_process_is_alive_while_each_loop_keeps_its_limit(health, clock):
    health.beat("consume", 60)
    health.beat("schedule", 5)
    clock.now += 5
    assert health.live().ok
    clock.now += 0.1
    report = health.live()
    assert not report.ok
    assert (report.checks["consume"]["ok"], report.checks["schedule"]["ok"]) == (True, False)
    health.beat("schedule", 5)
    assert health.live().ok


def test_a_loop_that_ended_in_good_order_is_not_missed(health, clock):
    health.beat("watch", 1)
    health.retire("watch")
    clock.now += 100
    assert health.live().ok


def test_of_several_loops_with_one_name_each_must_turn(health, clock):
    for server in ("gpu-1", "gpu-2"):
        health.beat("watch", 1, of=server)
    clock.now += 2
    health.beat("watch", 1, of="gpu-1")
    assert {loop: check["ok"] for loop, check in health.live().checks.items()} == {
        "watch gpu-1": True,
        "watch gpu-2": False,
    }
    health.retire("watch")
    assert health.live().ok


def test_an_outage_makes_a_process_unready_but_not_dead(health):
    health.beat("consume", 60)
    health.ready("broker", ok=False, detail="connection refused")
    assert health.live().ok
    assert not health.readiness().ok
    assert health.readiness().checks["broker"]["detail"] == "connection refused"


def test_a_process_is_not_ready_before_every_required_check_has_answered(clock):
    health = Health(required=["database", "queues"], clock=clock)
    health.ready("queues", ok=True)
    assert health.readiness().checks["database"]["detail"] == "has not answered yet"
    health.ready("database", ok=True)
    assert health.readiness().ok


def test_an_old_answer_does_not_count(health, clock):
    health.ready("database", ok=True, stale_after_seconds=15)
    health.ready("settings", ok=True)
    clock.now += 16
    checks = health.readiness().checks
    assert (checks["database"]["ok"], checks["settings"]["ok"]) == (False, True)
    assert checks["database"]["age_seconds"] == 16


def test_a_draining_process_is_not_ready(health):
    health.ready("database", ok=True)
    health.drain()
    assert not health.readiness().ok


def test_a_question_is_asked_at_its_interval_and_what_it_raises_is_a_no(health, clock):
    answers = iter([True, (False, "schema is old"), ConnectionError("postgresql://u:hunter2@db")])
    asked = []

    def question():
        asked.append(clock.now)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    health.ask("database", question, every_seconds=5)
    said = []
    for _ in range(3):
        for thread in [*health.refresh(), *health.refresh()]:
            thread.join(5)
        said.append((health.readiness().ok, health.readiness().checks["database"]["detail"]))
        clock.now += 5
    assert said == [(True, ""), (False, "schema is old"), (False, "ConnectionError")]
    assert asked == [1000, 1005, 1010]


def test_a_beat_shows_in_the_metrics():
    metrics = build("poller", strict=True)
    Health(metrics).beat("schedule", 5)
    assert metrics.value("loop_last_success_timestamp_seconds", loop="schedule") == pytest.approx(time.time(), abs=5)


def test_of_several_loops_with_one_name_the_metrics_show_the_one_that_is_furthest_behind(monkeypatch):
    metrics = build("poller", strict=True)
    health = Health(metrics)
    shown = []
    for now, backend in [(100.0, "gpu-1"), (101.0, "gpu-2"), (160.0, "gpu-2"), (161.0, "gpu-1")]:
        monkeypatch.setattr("shared.observe.health.time.time", lambda now=now: now)
        health.beat("watch", 60, of=backend)
        shown.append(metrics.value("loop_last_success_timestamp_seconds", loop="watch"))
    assert shown == [100, 100, 100, 160]


def test_draining_shows_in_the_metrics_from_the_beginning():
    metrics = build("poller", strict=True)
    health = Health(metrics)
    assert metrics.registry.get_sample_value("darkroom_draining") == 0
    health.drain()
    assert metrics.value("draining") == 1


def test_a_loop_hung_for_two_limits_ends_the_process(health, clock):
    left: list[int] = []
    watchdog = Watchdog(health, left.append, interval_seconds=1, clock=clock)
    health.beat("consume", 10)
    while not left and clock.now < 1100:
        clock.now += 1
        watchdog.look()
    assert left == [EXIT_HUNG]
    assert 30 <= clock.now - 1000 <= 31  # one limit until it is late, two more until it is given up


def test_a_loop_that_comes_back_in_time_is_forgiven(health, clock):
    left: list[int] = []
    watchdog = Watchdog(health, left.append, interval_seconds=1, clock=clock)
    for second in range(200):
        if second % 25 == 0:  # late by 15 s each time
            health.beat("consume", 10)
        clock.now += 1
        watchdog.look()
    assert left == []


def test_a_process_that_was_paused_as_a_whole_is_not_taken_for_hung(health, clock):
    left: list[int] = []
    watchdog = Watchdog(health, left.append, interval_seconds=1, clock=clock)
    health.beat("consume", 10)
    watchdog.look()
    clock.now += 3600
    watchdog.look()
    health.beat("consume", 10)
    watchdog.look()
    assert left == []


def test_the_watchdog_thread_leaves_by_itself():
    health = Health()
    health.beat("consume", 0.02)
    left = threading.Event()
    watchdog = Watchdog(health, lambda code: left.set(), interval_seconds=0.01)
    watchdog.start()
    assert left.wait(5)
    watchdog.stop()


def test_the_server_answers_on_a_port_it_chose_itself(server):
    assert server.port > 0
    server.health.beat("schedule", 60)
    status, body = server.get("/livez")
    assert status == 200
    assert json.loads(body)["checks"]["schedule"]["ok"] is True
    assert server.get("/elsewhere")[0] == 404


def test_readyz_says_per_check_what_is_missing(server):
    server.health.ready("database", ok=True)
    assert server.get("/readyz")[0] == 200
    server.health.ready("broker", ok=False, detail="blocked")
    status, body = server.get("/readyz")
    assert status == 503
    said = json.loads(body)
    assert (said["ok"], said["draining"]) == (False, False)
    assert said["checks"]["broker"]["detail"] == "blocked"
    server.health.drain()
    assert json.loads(server.get("/readyz")[1])["draining"] is True


def test_a_question_that_hangs_does_not_hold_up_the_answer_nor_another_question(server):
    release, asked = threading.Event(), []
    server.health.ask("database", lambda: release.wait(30), every_seconds=0)
    server.health.ask("broker", lambda: not asked.append(1), every_seconds=0)
    began = time.monotonic()
    assert server.get("/readyz")[0] == 503
    assert time.monotonic() - began < 2
    eventually(lambda: len(asked) > 3, within=10)
    release.set()


def test_metrics_are_served_in_both_formats(server):
    server.health.beat("schedule", 60)
    status, text = server.get("/metrics")
    assert status == 200
    assert 'darkroom_loop_last_success_timestamp_seconds{loop="schedule"}' in text
    assert server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")[1].endswith("# EOF\n")


def test_a_closed_server_frees_its_port():
    metrics = build("poller")
    first = Server(Health(), metrics).start()
    first.close()
    second = Server(Health(), metrics, port=first.port).start()
    assert second.port == first.port
    second.close()


def test_a_scraper_that_hangs_up_is_no_news_and_a_mistake_of_ours_is(server, capsys, caplog):
    for error in (BrokenPipeError(), ValueError("ours")):
        try:
            raise error
        except (OSError, ValueError):
            server._http.handle_error(None, ("127.0.0.1", 1))
    assert capsys.readouterr().err == ""
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]
