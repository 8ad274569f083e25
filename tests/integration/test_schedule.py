"""The table owns time: due rows become checks, missing permits are made, and a silent pool's orders still end."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from services.poller.schedule import Schedule
from shared.database.pins import stranded
from shared.domain.errors import BrokerAway
from shared.domain.messages import Message
from shared.domain.task import Reason, Status, Task
from tests.factories import MEASURED, POOL, Rows, a_claim
from tests.integration.broker_lab import BrokerLab
from tests.waiting import eventually


class FakePublisher:
    """Confirms at once. depths -- messages that are ready in a queue besides those published here."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.depths: Counter[str] = Counter()
        self.away = False

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        return self._answer(None, lambda: self.sent.extend(messages))

    def depth(self, queue: str) -> "Future[int]":
        return self._answer(self.depths[queue], lambda: None)

    def _answer(self, value: Any, work: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.away:
            future.set_exception(BrokerAway("gone"))
        else:
            work()
            future.set_result(value)
        return future


class Lab(Rows):
    def __init__(self, url: str) -> None:
        super().__init__(url, threads=10)
        self.backends(gpu_1=100)
        self.publisher = FakePublisher()
        self.schedule = self.schedule_with(self.publisher)

    def schedule_with(self, publisher: Any) -> Schedule:
        return Schedule(
            self.tasks,
            self.slots,
            publisher,
            [POOL],
            interval=0.05,
            check_interval=60.0,
            permit_interval=0.1,
            metrics=MEASURED,
            stranded=partial(stranded, self.engine, 60.0, 500),
        )

    def due(self, task: Task, **ago: float) -> Task:
        return self.age(task, due_at=5, **ago)

    @property
    def checked(self) -> list[tuple[str, str | None, str, set[str]]]:
        """Queue, backend, via and tasks of every check message."""
        found = []
        for message in self.publisher.sent:
            if message.type == "task.check.v1":
                body = json.loads(message.body)
                ids = {ref["task_id"] for ref in body["tasks"]}
                found.append((message.routing_key, body["backend"], body["via"], ids))
        return found

    @property
    def queues(self) -> Counter[str]:
        return Counter(message.routing_key for message in self.publisher.sent)


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_a_running_job_whose_moment_has_come_is_checked_once_per_interval(lab: Lab) -> None:
    task = lab.due(lab.processing())
    lab.processing()

    lab.schedule.turn()
    lab.schedule.turn()

    assert lab.checked == [("check.comfyui", "gpu-1", "poll", {str(task.id)})]
    assert lab.now(task).version == task.version


def test_many_due_rows_travel_in_few_messages_each_for_one_backend(lab: Lab) -> None:
    lab.backends(gpu_1=200, gpu_2=200)
    lab.tasks.claim([a_claim() for _ in range(250)])
    for task in lab.take(250):
        lab.record(task, "job", 60)
    lab.sql("update tasks set due_at = now() - interval '1 second'")

    assert lab.schedule.turn() is False

    sizes = Counter((backend, len(ids)) for _, backend, _, ids in lab.checked)
    assert sizes == {("gpu-1", 100): 1, ("gpu-1", 25): 1, ("gpu-2", 100): 1, ("gpu-2", 25): 1}


def test_a_final_row_that_still_owes_something_is_checked(lab: Lab) -> None:
    task = lab.due(lab.failed())

    lab.schedule.turn()

    assert [ids for *_, ids in lab.checked] == [{str(task.id)}]


def test_a_submitting_row_is_sent_only_past_its_deadline(lab: Lab) -> None:
    in_time, late = lab.submitting(), lab.submitting()
    lab.due(in_time, free_at=5)
    lab.due(late, free_at=5, deadline_at=5)

    lab.schedule.turn()

    assert [ids for *_, ids in lab.checked] == [{str(late.id)}]


def test_an_order_that_waited_past_its_deadline_ends_here_without_any_consumer(lab: Lab) -> None:
    lab.slots.pause("gpu-1", "ann", "new driver", None)
    task = lab.due(lab.pending(), deadline_at=5)
    waiting = lab.due(lab.pending())

    lab.schedule.turn()

    row = lab.now(task)
    assert (row.status, row.reason, row.due_at) == (Status.FAILED, Reason.DEADLINE, None)
    assert lab.queues == {"submit.dead": 1, "order.failed": 1}
    assert lab.now(waiting).status is Status.PENDING


def test_an_end_that_could_not_be_said_is_said_by_the_next_look(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lab.due(lab.pending(), deadline_at=5)
    depth = lab.publisher.depth
    monkeypatch.setattr(lab.publisher, "depth", lambda queue: (depth(queue), setattr(lab.publisher, "away", True))[0])

    with pytest.raises(BrokerAway):
        lab.schedule.turn()
    assert lab.now(task).status is Status.FAILED
    assert lab.now(task).due_at is not None

    monkeypatch.undo()
    lab.publisher.away = False
    lab.due(lab.now(task))
    lab.schedule.turn()
    assert [ids for *_, ids in lab.checked] == [{str(task.id)}]


def test_a_check_queue_that_does_not_drain_gets_nothing_and_its_rows_stay_due(lab: Lab) -> None:
    task = lab.due(lab.processing())
    lab.publisher.depths["check.comfyui"] = 51

    lab.schedule.turn()
    assert lab.publisher.sent == []
    lab.publisher.depths["check.comfyui"] = 50
    lab.schedule.turn()

    assert [ids for *_, ids in lab.checked] == [{str(task.id)}]


def test_a_row_of_a_pool_nobody_serves_goes_to_a_queue_that_is_served(lab: Lab) -> None:
    task = lab.due(lab.failed(pool="other-pool"))
    lab.publisher.depths["check.comfyui"] = 51
    lab.schedule.turn()
    assert lab.checked == [], "not while that queue does not drain"
    lab.publisher.depths.clear()
    lab.due(task)

    lab.schedule.turn()

    assert [(queue, ids) for queue, _, _, ids in lab.checked] == [("check.comfyui", {str(task.id)})]


@pytest.mark.parametrize(("ready", "made"), [(0, 4), (1, 3), (4, 0), (9, 0)])
def test_permits_are_made_for_free_rows_beyond_those_ready(lab: Lab, ready: int, made: int) -> None:
    lab.age(lab.submitting(), free_at=1)
    for _ in range(3):
        lab.pending()
    lab.publisher.depths["submit.comfyui"] = ready

    lab.schedule.make_permits()

    assert lab.queues["submit.comfyui"] == made


def test_a_queue_with_permits_enough_gets_no_more_and_nobody_counts_what_waits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.pending()
    counted: list[dict[str, int]] = []
    count = lab.tasks.free_rows
    monkeypatch.setattr(lab.schedule._tasks, "free_rows", lambda most: counted.append(most) or count(most))

    lab.publisher.depths["submit.comfyui"] = 500
    lab.schedule.make_permits()
    lab.publisher.depths["submit.comfyui"] = 499
    lab.schedule.make_permits()

    assert counted == [{}, {POOL: 999}]
    assert lab.publisher.sent == []


def test_rows_that_are_not_free_yet_get_no_permit(lab: Lab) -> None:
    lab.moved(lab.processing(), Status.PENDING, free_in=60.0)
    lab.age(lab.pending(), free_at=-60)

    lab.schedule.make_permits()

    assert lab.publisher.sent == []


def test_a_row_whose_one_backend_is_gone_for_good_ends_and_says_so(lab: Lab) -> None:
    lab.backends(gpu_1=5, gpu_2=5)
    alone, late, free = (lab.pending() for _ in range(3))
    lab.sql("update tasks set pinned_backend = 'gpu-2' where id <> :id", id=free.id)
    lab.age(alone, changed_at=100)
    lab.schedule.make_permits()
    assert lab.now(alone).status is Status.PENDING
    lab.backends(gpu_1=5)
    lab.schedule.make_permits()
    assert lab.now(alone).status is Status.PENDING, "it may be back in a moment"
    lab.sql("update backends set gone_at = now() - interval '61 seconds' where name = 'gpu-2'")
    lab.publisher.sent.clear()

    lab.schedule.make_permits()

    row = lab.now(alone)
    assert (row.status, row.reason, row.due_at) == (Status.FAILED, Reason.REJECTED, None)
    assert "gpu-2 is no longer in the backends file" in (row.detail or "")
    assert lab.queues == {"submit.dead": 1, "order.failed": 1, "submit.comfyui": 1}, "one permit, for the free one"
    assert [lab.now(task).status for task in (late, free)] == [Status.PENDING] * 2


def test_a_row_whose_one_backend_moved_to_another_pool_ends_too(lab: Lab) -> None:
    task = lab.pending()
    lab.slots.sync([(f"gpu-{n}", pool, "comfyui", "u", 5, 60.0) for n, pool in ((1, POOL), (2, "other-pool"))])
    lab.sql("update tasks set pinned_backend = 'gpu-2'")
    lab.age(task, changed_at=61)

    lab.schedule.make_permits()

    assert lab.now(task).detail == "a replay has sent it to one backend alone, and gpu-2 serves another pool now"


def test_a_pool_that_takes_no_work_gets_no_permits(lab: Lab) -> None:
    lab.pending()
    lab.slots.set_health("gpu-1", "down")

    lab.schedule.make_permits()

    assert lab.publisher.sent == []


def test_a_paused_pool_gets_permits_while_a_row_there_has_no_owner(lab: Lab) -> None:
    task = lab.submitting()
    lab.slots.pause("gpu-1", "ann", "new driver", None)
    lab.schedule.make_permits()
    assert lab.publisher.sent == []
    lab.age(task, free_at=1)

    lab.schedule.make_permits()

    assert lab.queues == {"submit.comfyui": 1}


def test_a_hint_has_somebody_look_what_ended_at_that_backend(lab: Lab) -> None:
    lab.processing()

    lab.schedule.look_now(POOL, "gpu-1")

    assert lab.checked == [("check.comfyui", "gpu-1", "push", set())]


def test_a_hint_for_a_queue_that_does_not_drain_is_dropped(lab: Lab) -> None:
    lab.publisher.depths["check.comfyui"] = 51
    lab.schedule.look_now(POOL, "gpu-1")
    assert lab.publisher.sent == []
    lab.publisher.depths["check.comfyui"] = 50

    lab.schedule.look_now(POOL, "gpu-1")

    assert lab.checked == [("check.comfyui", "gpu-1", "push", set())]


def test_the_loop_outlives_a_bug(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = threading.Event()
    monkeypatch.setattr(lab.schedule, "make_permits", lambda: 1 / 0)
    loop = threading.Thread(target=lab.schedule.run, args=(stopping, lambda: None))
    before = MEASURED.value("loop_bugs_total", loop="schedule")
    loop.start()
    try:
        eventually(lambda: MEASURED.value("loop_bugs_total", loop="schedule") > before, within=10)
        monkeypatch.undo()
        lab.pending()
        eventually(lambda: lab.queues["submit.comfyui"] >= 1, within=10)
    finally:
        stopping.set()
        loop.join(10)


def test_the_loop_outlives_an_outage(lab: Lab) -> None:
    stopping, beats = threading.Event(), []
    lab.publisher.away = True
    lab.due(lab.processing())
    lab.pending()
    loop = threading.Thread(target=lab.schedule.run, args=(stopping, lambda: beats.append(1)))
    loop.start()
    try:
        eventually(lambda: len(beats) >= 2, within=10)
        assert lab.publisher.sent == []
        lab.publisher.away = False
        lab.sql("update tasks set due_at = now() where status = 'processing'")
        eventually(lambda: len(lab.checked) >= 1 and lab.queues["submit.comfyui"] >= 1, within=10)
    finally:
        stopping.set()
        loop.join(10)


def test_due_rows_reach_a_real_queue_and_the_permits_in_it_are_counted(lab: Lab, amqp_url: str) -> None:
    broker_lab = BrokerLab(amqp_url)
    schedule = lab.schedule_with(broker_lab.broker().publisher)
    lab.due(lab.processing())
    lab.pending()
    eventually(lambda: turned(schedule), within=10)

    schedule.make_permits()
    eventually(lambda: broker_lab.depth("submit.comfyui") == 1, within=10)
    schedule.make_permits()

    assert (broker_lab.depth("check.comfyui"), broker_lab.depth("submit.comfyui")) == (1, 1)
    broker_lab.close()


def turned(schedule: Schedule) -> bool:
    try:
        schedule.turn()
    except BrokerAway:  # the channel for questions opens a moment after the one for messages
        return False
    return True
