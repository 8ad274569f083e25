"""Rows that need nothing but their POST, started together at a simulated ComfyUI; what is not plain goes on alone."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from services.submitter.submit import Submit
from shared.database.tasks import FRESH_SECONDS
from shared.domain.errors import DatabaseAway
from shared.domain.outcome import Done
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Status
from shared.observe.logs import ContextPool
from shared.providers.comfyui import ComfyUI
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows, permits
from tests.integration.comfyui_lab import Lab, running_lab
from tests.waiting import eventually

COUNT = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


class Together(Rows):
    """A submitter of one simulated server, and as many pending rows as it has permits."""

    def __init__(self, url: str, server: Lab, *, spare_seconds: float = 60.0) -> None:
        super().__init__(url, threads=10)
        server.begin()
        self.server = server
        self.backends(gpu_1=10)
        self.provider = server.new_adapter()
        self.calls = ContextPool(8)
        self.stopping = threading.Event()
        self.submit = Submit(
            POOL,
            self.tasks,
            self.slots,
            {"gpu-1": self.provider},
            artifacts=Artifacts("memory://"),
            calls=self.calls,
            lease_seconds=self.provider.submit_limit_seconds + FRESH_SECONDS + spare_seconds,
            first_look_seconds=7,
            retry=RetryPolicy(first_seconds=0),
            metrics=MEASURED,
            stopping=self.stopping,
        )
        self.orders = [
            self.pending(
                workflow="solid-invert", inputs={"width": 32, "height": 32, "color": time.time_ns() % 0xFFFFFF}
            )
            for _ in range(COUNT)
        ]

    def close(self) -> None:
        self.stopping.set()
        self.calls.shutdown()
        super().close()

    def start(self) -> list[Any]:
        """The verdicts on a permit for each row."""
        answers = self.submit.handle(permits(COUNT))
        return [answer.result(30) if isinstance(answer, Future) else answer for answer in answers]

    def statuses(self) -> Counter[Status]:
        return Counter(self.now(order).status for order in self.orders)

    def runs(self) -> list[int]:
        """How many jobs each row has at the server, once all that it has have ended."""
        keys = [str(self.now(order).job_key) for order in self.orders]

        def ended() -> bool:
            return self.server.stats()["queue_remaining"] == 0

        eventually(ended, within=10)
        seen = Counter(row["prompt_id"] for row in self.server.stats()["executions"])
        return [seen[key] for key in keys]


@pytest.fixture
def lab(database_url: str, server: Lab) -> Iterator[Together]:
    lab = Together(database_url, server)
    yield lab
    lab.close()


def test_rows_that_are_taken_together_share_a_write_before_their_posts_and_one_after(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_post, record = lab.tasks.may_post, lab.tasks.record
    written: list[int] = []

    def counted(write: Any) -> Any:
        return lambda rows, *more: written.append(len(rows)) or write(rows, *more)

    monkeypatch.setattr(lab.tasks, "may_post", counted(may_post))
    monkeypatch.setattr(lab.tasks, "record", counted(record))

    verdicts = lab.start()

    assert [[message.routing_key for message in verdict.then] for verdict in verdicts] == [["order.processing"]] * COUNT
    assert lab.statuses() == {Status.PROCESSING: COUNT}
    assert (lab.server.posts, lab.runs()) == (COUNT, [1] * COUNT)
    assert written[0] == COUNT
    assert len(written) < 2 * COUNT
    assert all(lab.attempts(order)[0].body_hash for order in lab.orders)


@pytest.mark.parametrize(
    "fault",
    [
        {"answer_500": {"queue": False, "times": 1}},
        {"drop_before_read": {"times": 1}},
        {"drop_after_accept": {"times": 1}},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_one_whose_answer_is_lost_goes_on_alone_and_has_one_job_in_the_end(
    lab: Together, fault: dict[str, Any]
) -> None:
    lab.server.faults(**fault)

    lab.start()

    assert lab.statuses() == {Status.PROCESSING: COUNT}
    assert lab.runs() == [1] * COUNT


def test_one_that_is_no_job_for_the_server_fails_alone(lab: Together) -> None:
    wrong = lab.pending(workflow="solid-invert", inputs={"width": -1, "height": 32, "color": 1})
    lab.orders[0] = lab.moved(lab.orders[0], Status.CANCELLED)  # one permit each

    lab.start()

    row = lab.now(wrong)
    assert (row.status, row.reason) == (Status.FAILED, Reason.REJECTED)
    assert lab.server.posts == COUNT - 1
    assert lab.statuses() == {Status.PROCESSING: COUNT - 1, Status.CANCELLED: 1}


def test_nothing_is_sent_for_one_that_was_cancelled_before_its_post(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_post = lab.tasks.may_post

    def late(*args: Any) -> Any:
        lab.tasks.cancel(lab.orders[0].id)
        return may_post(*args)

    monkeypatch.setattr(lab.tasks, "may_post", late)

    lab.start()

    assert lab.statuses() == {Status.PROCESSING: COUNT - 1, Status.CANCELLED: 1}
    assert lab.server.posts == COUNT - 1


def test_the_job_of_one_that_was_cancelled_during_its_post_is_cancelled(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = lab.tasks.record
    lab.server.faults(seconds_per_image=5)

    def late(*args: Any) -> Any:
        lab.tasks.cancel(lab.orders[0].id)
        return record(*args)

    monkeypatch.setattr(lab.tasks, "record", late)

    lab.start()

    key = str(lab.attempts(lab.orders[0])[0].job_key)
    ended = [row["outcome"] for row in lab.server.stats()["executions"] if row["prompt_id"] == key]
    assert ended in (["interrupted"], ["deleted"])
    assert lab.statuses() == {Status.PROCESSING: COUNT - 1, Status.CANCELLED: 1}
    lab.server.restart()


def test_while_the_database_is_away_all_that_were_accepted_are_recorded_again_and_never_sent_again(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails(monkeypatch, lab, DatabaseAway("gone"), lambda tries, _: tries <= 2)

    lab.start()

    assert lab.statuses() == {Status.PROCESSING: COUNT}
    assert lab.server.posts == COUNT


def test_one_that_cannot_be_recorded_with_the_others_is_recorded_alone(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails(monkeypatch, lab, RuntimeError("poison"), lambda _, rows: len(rows) > 1)

    lab.start()

    assert lab.statuses() == {Status.PROCESSING: COUNT}
    assert lab.server.posts == COUNT


def test_after_a_bug_while_posts_were_under_way_the_server_is_asked_before_anything_is_sent(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ComfyUI.submit_together

    def broken(self: ComfyUI, prepared: Sequence[Any]) -> Iterator[Any]:
        for _ in together(self, prepared):
            pass
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(ComfyUI, "submit_together", broken)

    lab.start()

    assert lab.statuses() == {Status.PROCESSING: COUNT}
    assert (lab.server.posts, lab.runs()) == (COUNT, [1] * COUNT)


def test_an_answer_about_the_lease_that_comes_too_late_sends_nothing_before_it_is_asked_again(
    database_url: str, server: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Together(database_url, server, spare_seconds=0.5)
    may_post, posts = lab.tasks.may_post, []

    def late_once(*args: Any) -> Any:
        posts.append(server.posts)
        answer = may_post(*args)
        time.sleep(0.6 if len(posts) == 1 else 0)
        return answer

    monkeypatch.setattr(lab.tasks, "may_post", late_once)
    try:
        lab.start()
        assert lab.statuses() == {Status.PROCESSING: COUNT}
        assert posts[:2] == [0, 0]
        assert server.posts == COUNT
    finally:
        lab.close()


def test_a_worker_that_stops_while_the_database_is_away_leaves_the_rows_to_the_end_of_their_lease(
    lab: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fails(monkeypatch, lab, DatabaseAway("gone"), lambda *_: True)
    lab.stopping.set()

    assert lab.start() == [Done()] * COUNT
    assert lab.statuses() == {Status.SUBMITTING: COUNT}


def _fails(monkeypatch: pytest.MonkeyPatch, lab: Together, error: Exception, when: Any) -> None:
    """Recording raises `error` when `when`, given the number of the try and the rows, says so."""
    record, tries = lab.tasks.record, []

    def failing(rows: Sequence[Any], due_in: float) -> Any:
        tries.append(1)
        if when(len(tries), rows):
            raise error
        return record(rows, due_in)

    monkeypatch.setattr(lab.tasks, "record", failing)
