"""An order with other inputs goes round under its key, what was changed is kept, and what cannot run is not written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from services.ops.edits import edit
from services.ops.replay import Replayer
from services.submitter.intake import Intake
from shared.database.adopt import Refused
from shared.database.claims import ClaimResult
from shared.database.replays import Replays
from shared.database.revisions import Edited, revisions_of
from shared.domain.messages import Order, order_placed
from shared.domain.task import Reason, Stage, Status
from tests.factories import MEASURED, a_claim, an_order, at_once, delivered
from tests.integration.plans_lab import HOUR, PlansLab
from tests.integration.rows_lab import POOL, a_delivery, letter_about

BEFORE = {"prompt": "a moon", "width": 512}


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def fits(pool: str, workflow: str | None, inputs: Mapping[str, Any]) -> Sequence[str]:
    return [] if isinstance(inputs.get("width", 512), int) else ["input width is no number"]


def edited(lab: PlansLab, letter: int, changes: Mapping[str, Any], **more: Any) -> Edited | Refused:
    replays = Replays(lab.engine, HOUR)
    replayer = Replayer(replays, publish=lab.outbox.publish, pools=[POOL], metrics=lab.metrics)
    return edit(replays, replayer, letter, changes, "ann", **{"check": fits} | more)


def everything(lab: PlansLab) -> list[object]:
    tables = ("tasks", "task_moves", "dead_letters", "replays", "task_revisions", "operator_actions")
    return [lab.sql(f"select * from {table} order by 1, 2") for table in tables]  # noqa: S608 - names from above


def test_an_edited_order_runs_with_its_new_inputs_and_what_was_changed_is_kept(lab):
    task = lab.failed(inputs=BEFORE)
    (letter,) = lab.bury(letter_about(task))
    done = edited(lab, letter, {"prompt": "a sun", "steps": 20, "width": None}, why="a typing error")
    assert (done.revision, done.replay.task.status) == (1, Status.PENDING)
    (taken,) = lab.take()
    assert (taken.id, taken.attempt, dict(taken.inputs)) == (task.id, 2, {"prompt": "a sun", "steps": 20})
    (revision,) = revisions_of(lab.engine, task.id)
    assert (revision.revision, revision.by_whom, revision.replay_id) == (1, "ann", done.replay.id)
    assert revision.diff == {
        "prompt": {"before": "a moon", "after": "a sun"},
        "steps": {"after": 20},
        "width": {"before": 512},
    }
    deeds = {row.action: row for row in lab.sql("select * from operator_actions")}
    assert deeds["order edit"].subject == str(task.id)
    assert deeds["order edit"].detail == {"letter": letter, "revision": 1, "inputs": ["prompt", "steps", "width"]}
    assert deeds["dead letter replay"].detail["why"] == "a typing error"
    assert len(lab.outbox.to("submit.comfyui")) == 1


def test_a_second_edit_is_the_second_revision(lab):
    task = lab.failed(inputs=BEFORE)
    edited(lab, *lab.bury(letter_about(task)), {"width": 64})
    (taken,) = lab.take()
    again = lab.paid(lab.end(taken, Status.FAILED, reason=Reason.REJECTED, stage=Stage.SUBMIT))
    assert edited(lab, *lab.bury(letter_about(again)), {"width": 32}).revision == 2
    assert [revision.diff["width"]["after"] for revision in revisions_of(lab.engine, task.id)] == [64, 32]


def test_a_copy_of_the_original_order_stays_a_duplicate_and_the_edited_one_is_a_conflict(lab):
    order = an_order(inputs=BEFORE)
    task = lab.failed(**order.model_dump(exclude_defaults=True))
    edited(lab, *lab.bury(letter_about(task)), {"width": 64})
    (copy,) = lab.tasks.claim([a_claim(order)])
    assert (copy.result, copy.task.id) == (ClaimResult.DUPLICATE, task.id)
    changed = Order(**order.model_dump() | {"inputs": {**BEFORE, "width": 64}})
    (other,) = lab.tasks.claim([a_claim(changed)])
    assert other.result is ClaimResult.CONFLICT


def test_a_late_copy_of_an_order_that_could_not_be_started_leaves_its_edited_one_alone(lab):
    intake = Intake(
        lab.tasks,
        pools=[POOL],
        pools_now=lab.slots.pools,
        problems=lambda said: fits(said.pool, said.workflow, said.inputs),
        default_deadline_seconds=HOUR,
        metrics=MEASURED,
    )
    order = an_order(inputs={"width": "wide"})
    intake.handle([delivered(order_placed(order))])
    task = lab.paid(lab.tasks.get([order.task_id])[order.task_id])
    assert (task.status, task.reason) == (Status.FAILED, Reason.INVALID_WORKFLOW)
    edited(lab, *lab.bury(letter_about(task)), {"width": 64})
    intake.handle([delivered(order_placed(order))])
    assert lab.row(task).status is Status.PENDING


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": "wide"}, "no number"),
        ({"prompt": "half a \ud800 character"}, "half a character"),
        ({"prompt": "x" * 70_000}, "at most 65536"),
        ({"width": 512}, "its inputs already"),
    ],
)
def test_nothing_is_written_when_the_inputs_cannot_be_started(lab, changes, why):
    (letter,) = lab.bury(letter_about(lab.failed(inputs=BEFORE)))
    before = everything(lab)
    refused = edited(lab, letter, changes)
    assert isinstance(refused, Refused)
    assert why in refused.why
    assert everything(lab) == before
    assert lab.outbox.messages == []


def test_a_letter_that_may_not_go_round_is_not_edited_either(lab):
    unknown = lab.bury(letter_about(lab.failed(reason=Reason.OUTCOME_UNKNOWN, inputs=BEFORE)))
    loose = lab.bury(a_delivery(body=b"{}", message_id="m"))
    before = everything(lab)
    for letter, why in ((*unknown, "submit-again"), (*loose, "no task"), (999, "no dead letter")):
        assert why in edited(lab, letter, {"width": 64}).why
    assert everything(lab) == before


def test_of_two_people_who_edit_a_letter_at_once_one_does(lab):
    task = lab.failed(inputs=BEFORE)
    (letter,) = lab.bury(letter_about(task))
    answers = at_once([lambda width=width: edited(lab, letter, {"width": width}) for width in (64, 32)])
    assert sorted(isinstance(answer, Refused) for answer in answers) == [False, True]
    (revision,) = revisions_of(lab.engine, task.id)
    assert lab.row(task).inputs["width"] == revision.diff["width"]["after"]


def test_the_failed_event_of_an_edited_order_is_out_before_it_runs_again(lab):
    task = lab.end(lab.processing(inputs=BEFORE), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK)
    (letter,) = lab.bury(letter_about(task))
    lab.outbox.away = True
    assert "the broker is away" in edited(lab, letter, {"width": 64}).why
    assert lab.row(task).inputs == BEFORE
    lab.outbox.away = False
    assert edited(lab, letter, {"width": 64}).revision == 1
    assert [message.routing_key for message in lab.outbox.messages] == ["order.failed", "submit.comfyui"]


def test_inputs_are_those_that_the_order_gives_to_the_pool_it_goes_to(lab):
    pools = ["comfyui", {"pool": "wan", "inputs": {"prompt": "for wan"}}]
    task = lab.failed(inputs=BEFORE, pools=pools)
    (letter,) = lab.bury(letter_about(task))
    asked: list[tuple[str, str | None, dict[str, Any]]] = []

    def check(pool: str, workflow: str | None, inputs: Mapping[str, Any]) -> Sequence[str]:
        asked.append((pool, workflow, dict(inputs)))
        return []

    edited(lab, letter, {"prompt": "a sun"}, check=check, pool="wan")
    row = lab.row(task)
    assert asked == [("wan", None, {"prompt": "a sun"})]
    assert (row.pool, dict(row.inputs), row.body["inputs"]) == ("wan", {"prompt": "a sun"}, BEFORE)


def test_an_order_may_go_to_another_pool_with_the_inputs_it_has(lab):
    (letter,) = lab.bury(letter_about(lab.failed(inputs=BEFORE)))
    done = edited(lab, letter, {}, pool="wan")
    assert (done.revision, done.replay.task.pool) == (None, "wan")
    assert json.loads(json.dumps(done.diff)) == {}


def test_an_order_may_go_to_one_backend_alone_in_whatever_pool_that_is(lab):
    backends = ((1, "comfyui"), (2, "other-pool"))
    lab.slots.sync([(f"gpu-{n}", pool, "comfyui", "http://127.0.0.1:1", 100, 60.0) for n, pool in backends])
    (letter,) = lab.dead(1)
    refused = edited(lab, letter, {}, pool="comfyui", backend="gpu-2")
    assert refused == Refused("gpu-2 serves pool other-pool, not comfyui")
    assert edited(lab, letter, {}, backend="moon") == Refused(
        "no backend in use is called 'moon'; there are: gpu-1, gpu-2"
    )
    done = edited(lab, letter, {}, backend="gpu-2")
    assert isinstance(done, Edited)
    assert done.replay.task is not None
    assert (done.replay.task.pool, done.replay.task.pinned_backend) == ("other-pool", "gpu-2")
    (taken,) = lab.slots.take("other-pool", at_most=5, lease_seconds=60).tasks
    assert taken.backend == "gpu-2"
