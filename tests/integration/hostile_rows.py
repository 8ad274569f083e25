"""An order in the database as somebody would write it who means harm to whoever looks at it in the console."""

from shared.database.tasks import Tasks
from shared.domain.task import Reason, Stage, Status, Task
from tests.factories import MEASURED, POOL, a_picture
from tests.integration.console_lab import ConsoleLab

#: Ends attributes and elements, is a template, a format and a link, turns the direction of reading.
HOSTILE = "\"'><x-evil onx=1></td></main>{{7*7}}%s<!--javascript:x\u202e\u0007"
#: The same as a person reads it.
SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\u0007", "\\u0007")


def a_hostile_order(lab: ConsoleLab, evil: str = HOSTILE) -> Task:
    """A failed order with `evil` wherever somebody else's words end up, with a picture, a letter and deeds."""
    lab.slots.sync([(evil, POOL, evil, evil, 2, 1800.0)])
    lab.tasks = Tasks(lab.engine, evil, MEASURED)
    task = lab.moved(lab.processing(), Status.FAILED, reason=Reason.BUG, detail=evil, stage=Stage.CHECK)
    picture = lab.store.put(task.id, 1, 0, a_picture())
    for statement in (
        "alter table task_moves disable trigger user",
        "update task_moves set reason = :evil",
        "update tasks set pool = :evil, reason = :evil, trace_id = :evil, provider_job_id = :evil,"
        " idempotency_key = :evil, order_id = :evil, body = jsonb_build_object('workflow', cast(:evil as text),"
        " cast(:evil as text), jsonb_build_array(cast(:evil as text)))",
        "update attempts set provider_job_id = :evil, outcome = :evil, detail = :evil, cost_actual = 1.5,"
        " cost_unit = :evil",
        "insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint, at)"
        " values (:evil, :id, gen_random_uuid(), 'f', now())",
        "insert into operator_actions (by_whom, action, subject, detail) values"
        " (:evil, :evil, cast(:id as text), jsonb_build_object('why', cast(:evil as text))),"
        " (:evil, :evil, :evil, jsonb_build_object(cast(:evil as text), cast(:evil as text)))",
        "insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool, headers, body,"
        " exception, backend, workflow, provider_job_id, exchange, routing_key, queue, broker_reason, message_id,"
        " message_type, trace_id, version)"
        " values ('i', :id, 1, 'check', :evil, :evil, 'f', :evil, jsonb_build_object(cast(:evil as text), :evil),"
        " :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil, :evil)",
        "update letter_groups set note = :evil, owner = :evil, fixed_in = :evil, fixed_at = now(), reopened_at = now()",
        "insert into plans (by_whom, chosen, note, changed_by, pool, rate, ramp, stop_window) select :evil,"
        " jsonb_build_object(cast(:evil as text), :evil), :evil, :evil, :evil, 1, '{1}', 20 from generate_series(1, 2)",
        "update plans set state = 'stopped', state_why = :evil where id = 2",
        "insert into replays (dead_letter_id, by_whom, state, result, closed_at)"
        " select id, :evil, 'closed', :evil, now() from dead_letters",
        "insert into plan_items (plan_id, place, dead_letter_id, predicted, state, result, why, ended_at)"
        " select p.id, 1, d.id, 'will_run', 'ended', 'refused', :evil, now() from plans p, dead_letters d",
        "insert into artifacts (task_id, attempt, index, key, sha256, bytes, media_type, width, height)"
        " values (:id, 1, 0, :key, 'x', :bytes, 'image/png', 8, 8)",
    ):
        lab.sql(statement, evil=evil, id=task.id, key=picture.key, bytes=picture.bytes)
    lab.slots.pause(evil, evil, evil, None)
    lab.exporter.turn()
    return lab.now(task)
