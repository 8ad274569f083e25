"""The canary order: sent by one replica, seen coming through, counted nowhere else, and gone again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services.ops.canary import CanaryOrders
from services.submitter.intake import Intake
from shared.database.canaries import forget_canaries
from shared.database.moves import Change
from shared.database.recent import read_recent
from shared.domain.canary_order import CANARY_POOL
from shared.domain.messages import Message, Order
from shared.domain.outcome import Done, FollowUp
from shared.domain.task import Reason, Stage, Status, Task
from shared.observe import metrics
from shared.observe.catalog import PREFIX
from shared.observe.trace import read_trace_id
from shared.providers.base import Job, Succeeded
from shared.providers.canary import Canary
from shared.storage import Artifacts
from tests.factories import Rows, a_claim, an_order, delivered


class Lab(Rows):
    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self.metrics = metrics.build("ops", strict=True)
        self.counted = metrics.build("submitter", pools=[CANARY_POOL], strict=True)
        self.artifacts = Artifacts(str(folder))
        self.sent: list[Message] = []
        self.leads = True
        self.clock = 0.0
        self.canary = self.another_canary()
        self.slots.sync([(CANARY_POOL, CANARY_POOL, CANARY_POOL, "", 2, 60.0)])

    def another_canary(self) -> CanaryOrders:
        return CanaryOrders(
            self.engine,
            self.tasks,
            self.artifacts,
            publish=self.sent.extend,
            leads=lambda: self.leads,
            metrics=self.metrics,
            clock=lambda: self.clock,
        )

    def claim(self) -> Task:
        """What the submitter does with the last order sent."""
        intake = Intake(
            self.tasks,
            pools=[CANARY_POOL],
            pools_now=lambda: [],
            problems=lambda choice: Canary().problems(choice.workflow, choice.inputs),
            default_deadline_seconds=3600,
            metrics=self.counted,
        )
        (outcome,) = intake.handle([delivered(self.sent[-1])])
        assert isinstance(outcome, Done)
        assert [message.routing_key for message in outcome.then] == ["submit.canary"]
        return self.tasks.get([Order.model_validate_json(self.sent[-1].body).task_id]).popitem()[1]

    def come_through(self) -> Task:
        """What submitter and poller do with it."""
        self.claim()
        (task,) = self.slots.take(CANARY_POOL, at_most=1, lease_seconds=60).tasks
        provider = Canary()
        accepted = provider.submit(provider.prepare(Job.of(task)))
        row = self.tasks.record([(task, accepted)], 60)[0]
        assert row is not None
        state = provider.check([Job.of(row)])[Job.of(row).job_key]
        assert isinstance(state, Succeeded)
        files = provider.fetch(Job.of(row), state.outputs)
        kept = [self.artifacts.put(row.id, row.attempt, index, file) for index, file in enumerate(files)]
        assert len(kept) == 1
        done = self.tasks.move([Change(task=row, to=Status.COMPLETED, artifacts=kept)])[row.id]
        self.tasks.clear_due([FollowUp(done.id, done.version)])
        return done

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(PREFIX + name, {"probe": "canary"})


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(database_url, tmp_path / "pictures")
    yield lab
    lab.close()


def keys(sent: Sequence[Message]) -> set[str]:
    return {Order.model_validate_json(message.body).idempotency_key for message in sent}


def test_one_that_came_through_is_told_of_with_how_long_it_took_and_the_next_follows_a_minute_later(lab: Lab) -> None:
    lab.canary.turn()
    began = lab.gauge("probe_last_success_timestamp_seconds")
    assert began is not None
    lab.clock = 3.0
    lab.canary.turn()
    assert lab.gauge("probe_duration_seconds") is None
    done = lab.come_through()
    lab.clock = 4.0
    wait = lab.canary.turn()
    assert lab.gauge("probe_duration_seconds") == 4
    assert (lab.gauge("probe_last_success_timestamp_seconds") or 0) > began
    assert wait == 56
    assert read_trace_id(lab.sent[0].headers["traceparent"]) == done.trace_id
    lab.canary.turn()
    assert len(keys(lab.sent)) == 2


def test_the_next_one_waits_for_the_one_before_until_that_must_be_lost(lab: Lab) -> None:
    lab.canary.turn()
    began = lab.gauge("probe_last_success_timestamp_seconds")
    lab.clock = 599.0
    lab.canary.turn()
    assert len(lab.sent) == 1
    lab.clock = 601.0
    assert lab.canary.turn() == 0
    lab.canary.turn()
    assert len(keys(lab.sent)) == 2
    assert lab.gauge("probe_last_success_timestamp_seconds") == began


def test_one_that_failed_is_no_success(lab: Lab) -> None:
    lab.canary.turn()
    began = lab.gauge("probe_last_success_timestamp_seconds")
    failed = lab.moved(lab.claim(), Status.FAILED, reason=Reason.DEADLINE, stage=Stage.SUBMIT)
    lab.tasks.clear_due([FollowUp(failed.id, failed.version)])
    lab.canary.turn()
    assert lab.gauge("probe_last_success_timestamp_seconds") == began
    assert lab.gauge("probe_duration_seconds") is None


def test_a_replica_that_does_not_send_says_nothing(lab: Lab) -> None:
    lab.canary.turn()
    lab.leads = False
    lab.canary.turn()
    assert lab.gauge("probe_last_success_timestamp_seconds") is None
    assert len(lab.sent) == 1


def test_it_is_in_no_count_of_orders(lab: Lab) -> None:
    lab.canary.turn()
    lab.come_through()
    told = [
        sample
        for family in lab.counted.registry.collect()
        for sample in family.samples
        if "canary" in sample.labels.values() or (sample.name == PREFIX + "orders_received_total" and sample.value)
    ]
    assert told == []


def test_it_is_no_order_that_ended_on_the_first_page_of_the_console(lab: Lab) -> None:
    lab.canary.turn()
    lab.come_through()
    assert list(read_recent(lab.engine).bars) == []
    lab.failed(pool="comfyui")
    assert sum(bar.failed for bar in read_recent(lab.engine).bars) == 1
    assert sum(bar.completed for bar in read_recent(lab.engine).bars) == 0


def test_rows_and_pictures_of_those_that_came_through_go_and_all_else_stays(lab: Lab) -> None:
    lab.canary.turn()
    old = lab.come_through()
    (key,) = [artifact.key for artifact in lab.tasks.artifacts([old.id])[old.id]]
    lab.age(old, created_at=700)
    lab.canary.turn()  # sees it come through, and tidies up
    lab.canary.turn()
    young = lab.come_through()
    theirs = lab.tasks.claim([a_claim(an_order(pool=CANARY_POOL, workflow=None))])[0].task

    assert lab.tasks.get([old.id, young.id, theirs.id]).keys() == {young.id, theirs.id}
    assert not lab.artifacts.exists(key)
    assert not (lab.artifacts._folder / str(old.id)).exists()  # type: ignore[operator]
    for table in ("task_moves", "attempts", "artifacts"):
        assert lab.sql(f"select 1 from {table} where task_id = :id", id=old.id) == []  # noqa: S608 - ours
    assert lab.history(young)[-1] == ("processing", "completed")
    assert forget_canaries(lab.engine, 600) == []
    assert lab.sql("select 1 from purged_pictures") == []


def test_one_with_a_letter_stays(lab: Lab) -> None:
    lab.canary.turn()
    row = lab.come_through()
    lab.age(row, created_at=700)
    lab.sql(
        "insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, headers)"
        " values ('x', :id, 1, 'check', 'bug', '', 'f', '{}')",
        id=row.id,
    )
    assert forget_canaries(lab.engine, 600) == []
    assert lab.now(row).status is Status.COMPLETED


def test_pictures_that_could_not_be_deleted_are_left_to_the_next_purge(lab: Lab) -> None:
    lab.canary.turn()
    row = lab.age(lab.come_through(), created_at=700)
    folder = lab.artifacts._folder
    assert folder is not None
    folder.rename(folder.with_name("elsewhere"))
    lab.canary.turn()
    assert [left.task_id for left in lab.sql("select task_id from purged_pictures")] == [row.id]
