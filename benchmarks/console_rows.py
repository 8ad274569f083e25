"""What the console's pages are measured over besides large.py's past: plans of all letters, a long story, an audit."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.console_pages import Samples
from shared.database.adopt import Refused
from shared.database.letters import LetterFilter
from shared.database.plan_steps import PlanSteps
from shared.database.plans import Plans
from shared.domain.task import task_id_for

WHO: Final = "benchmark"
_STORY: Final = task_id_for("benchmark-long-story")
_SMALL_PLANS: Final = 120
#: Of the running plan: letters that ended, and those behind them that are on their way.
_ENDED: Final = 0.5
_SENT: Final = 200

_BEGIN_STORY: Final = sa.text("""
insert into tasks (id, idempotency_key, order_id, fingerprint, pool, body, deadline_at, due_at, actor, trace_id)
select :id, 'benchmark-long-story', 'benchmark-long-story', t.fingerprint, t.pool, t.body, now() + interval '1 day',
    now() + interval '1 day', 'benchmark', t.trace_id
from tasks t where t.pool = 'comfyui' limit 1
""")
#: Given back a thousand times, each time with a line for the taking, and then failed.
_TELL_STORY: Final = """
do $$ declare job uuid; begin
    for n in 1..1000 loop
        job := gen_random_uuid();
        update tasks set status = 'submitting', version = version + 1, attempt = n, backend = 'gpu-1', job_key = job,
            actor = 'submitter@benchmark', free_at = now() + interval '1 minute' where id = '{id}';
        insert into attempts (task_id, attempt, backend, job_key, seed, ended_at, outcome, detail)
            values ('{id}', n, 'gpu-1', job, n, now(), 'not_created', 'the server is busy');
        update tasks set status = 'pending', version = version + 1, backend = null, job_key = null,
            reason = 'provider_busy', free_at = now() where id = '{id}';
    end loop;
    update tasks set status = 'failed', version = version + 1, reason = 'deadline', detail = 'its time is over',
        stage = 'submit', finished_at = now(), told_at = now(), due_at = null where id = '{id}';
end $$
"""
_BURY_STORY: Final = sa.text("""
insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool)
select :id || ':' || n, :id, n, 'submit', 'deadline', 'its time is over', 'benchmark', 'comfyui'
from generate_series(901, 1000) n
""")
#: As if their replays had ended: none of these orders moves.
_END_ITEMS: Final = sa.text("""
with made as (
    insert into replays (dead_letter_id, by_whom, at, task_id, state, result, closed_at)
    select i.dead_letter_id, :who, now(), d.task_id, 'closed',
        case when i.place % 10 = 0 then 'failed' else 'completed' end, now()
    from plan_items i join dead_letters d on d.id = i.dead_letter_id
    where i.plan_id = :plan and i.place <= :upto returning id, dead_letter_id, result
)
update plan_items i set state = 'ended', result = made.result, replay_id = made.id, ended_at = now()
from made where i.plan_id = :plan and i.dead_letter_id = made.dead_letter_id
""")
_SEND_ITEMS: Final = sa.text("""
with made as (
    insert into replays (dead_letter_id, by_whom, task_id)
    select i.dead_letter_id, :who, d.task_id from plan_items i join dead_letters d on d.id = i.dead_letter_id
    where i.plan_id = :plan and i.place > :after and i.place <= :upto returning id, dead_letter_id
)
update plan_items i set state = 'sent', replay_id = made.id
from made where i.plan_id = :plan and i.dead_letter_id = made.dead_letter_id
""")
_STATE: Final = sa.text("update plans set state = :state, counted = null where id = :plan")
_AUDIT: Final = sa.text("""
insert into operator_actions (at, by_whom, action, subject, detail)
select now(), :who, 'dead letter replay', i.dead_letter_id::text, jsonb_build_object('plan', i.plan_id, 'way', 'row')
from plan_items i where i.plan_id = :plan and i.state = 'ended' order by i.place
""")
_LETTERS: Final = sa.text("select max(place) from plan_items where plan_id = :plan")
_IS_THERE: Final = sa.text("select exists (select from plans where by_whom = :who)")
_OF_STATUS: Final = "select id::text from tasks where status = '{}' order by created_at limit 1"
_OF_LETTERS: Final = "select id from dead_letters where {} order by id limit 1 offset 100"
_OF_PLANS: Final = "select id from plans where by_whom = :who and state = '{}' order by id limit 1"


def prepare(engine: sa.Engine) -> Samples:
    """The rows are there, made once; what stands in the addresses of the pages over them."""
    plans = Plans(engine)
    with engine.begin() as c:
        is_there = bool(c.execute(_IS_THERE, {"who": WHO}).scalar_one())
    if not is_there:
        _plan_everything(engine, plans)
        _tell_a_long_story(engine)
        _say(engine, "vacuum analyze")  # as autovacuum would in the middle of the measurement
    with engine.begin() as c:
        return Samples(**_samples(c))


def _plan_everything(engine: sa.Engine, plans: Plans) -> None:
    planned, done, running = (_planned(plans, LetterFilter(state=None)) for _ in range(3))
    for plan, share, state in ((done, 1.0, "done"), (running, _ENDED, "running")):
        _say(engine, "analyze plan_items, replays")  # their rows are new: planned for empty tables, this takes minutes
        with engine.begin() as c:
            letters = int(
                c.execute(sa.text("select max(place) from plan_items where plan_id = :p"), {"p": plan}).scalar_one()
            )
            ended = int(share * letters)
            c.execute(_END_ITEMS, {"plan": plan, "upto": ended, "who": WHO})
            if ended < letters:
                c.execute(_SEND_ITEMS, {"plan": plan, "after": ended, "upto": ended + _SENT, "who": WHO})
            c.execute(_STATE, {"plan": plan, "state": state})
            c.execute(_AUDIT, {"plan": plan, "who": WHO})
    PlanSteps(engine, WHO, 86400.0).settle()
    with engine.begin() as c:
        letters_of = sa.text("select dead_letter_id from plan_items where plan_id = :p order by place limit :n")
        some = list(c.execute(letters_of, {"p": planned, "n": _SMALL_PLANS}).scalars())
    for letter in some:
        _planned(plans, [letter])


def _say(engine: sa.Engine, command: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(sa.text(command))


def _planned(plans: Plans, chosen: LetterFilter | list[int]) -> int:
    made = plans.make(chosen, WHO)
    if isinstance(made, Refused):
        raise TypeError(made.why)
    return made[0].id


def _tell_a_long_story(engine: sa.Engine) -> None:
    with engine.begin() as c:
        c.execute(_BEGIN_STORY, {"id": str(_STORY)})
        c.execution_options(no_parameters=True).exec_driver_sql(_TELL_STORY.format(id=_STORY))
        c.execute(_BURY_STORY, {"id": str(_STORY)})


#: Each names one field of Samples.
_QUESTIONS: Final[Mapping[str, str]] = {
    "deep_order": "select to_char(created_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24\\:MI\\:SS.US') || '~' || id"
    " from tasks order by created_at desc offset (select count(*) / 2 from tasks) limit 1",
    "deep_letter": "select id from dead_letters order by id offset (select count(*) / 2 from dead_letters) limit 1",
    "deep_group": "select percentile_disc(0.5) within group (order by id) from dead_letters where fingerprint ="
    " (select fingerprint from letter_groups order by total desc limit 1)",
    "deep_action": "select percentile_disc(0.5) within group (order by id) from operator_actions",
    "group": "select fingerprint from letter_groups order by total desc limit 1",
    "reason": "select reason from dead_letters group by reason order by count(*) desc limit 1",
    "backend": "select backend from dead_letters where backend is not null group by 1 order by count(*) desc limit 1",
    "workflow": "select workflow from dead_letters where workflow is not null"
    " group by 1 order by count(*) desc limit 1",
    "moment": "select to_char(percentile_disc(0.5) within group (order by at) at time zone 'utc',"
    " 'YYYY-MM-DD\"T\"HH24\\:MI\\:SS') from dead_letters",
    "open_letter": _OF_LETTERS.format("state = 'open' and task_id is not null and backend is not null"),
    "rowless_letter": _OF_LETTERS.format("task_id is null"),
    "replayed_letter": _OF_LETTERS.format("state = 'replayed'"),
    "story": "select task_id::text from task_moves group by task_id order by count(*) desc limit 1",
    "waiting": _OF_STATUS.format("pending"),
    "running_order": _OF_STATUS.format("processing"),
    "completed": _OF_STATUS.format("completed"),
    "failed": _OF_STATUS.format("failed"),
    "cancelled": _OF_STATUS.format("cancelled"),
    "order_id": "select t.order_id from dead_letters d join tasks t on t.id = d.task_id order by d.id desc limit 1",
    "planned": _OF_PLANS.format("planned"),
    "running": _OF_PLANS.format("running"),
    "done": _OF_PLANS.format("done"),
    "half": "select max(i.place) / 2 from plan_items i join plans p on p.id = i.plan_id where p.by_whom = :who",
}


def _samples(c: sa.Connection) -> dict[str, Any]:
    return {name: c.execute(sa.text(question), {"who": WHO}).scalar_one() for name, question in _QUESTIONS.items()}
