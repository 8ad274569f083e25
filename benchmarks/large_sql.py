"""The statements of `benchmarks.large`: each writes one table at once, from the plan and the fates."""

from typing import Final

#: `at` and its like are seconds from the moment the slot was free; null: when the order came.
TEMPORARY: Final = """
create temp table fates (
    fate int primary key, status text, version int, attempt int, charged int, has_backend bool, is_accepted bool,
    is_final bool, at float8, reason text, stage text, detail text, letter text, letter_at float8, letter_attempt int,
    letter_stage text, letter_reason text, letter_detail text, replayed_at float8
) on commit drop;
create temp table steps (
    fate int, version int, at float8, before text, after text, reason text, attempt int, has_backend bool
) on commit drop;
create temp table tries (fate int, attempt int, started float8, accepted float8, ended float8, outcome text)
    on commit drop;
create temp table slots (slot int primary key, backend text, pool text, body text, canonical text) on commit drop;
create temp table groups (fate int, pool text, fingerprint text, primary key (fate, pool)) on commit drop;
create temp table rowless (stage text, reason text, detail text, fingerprint text) on commit drop;
create temp table plan (
    number int, key text, task_id uuid, fate int, slot int, came float8, turn float8, job_keys uuid[],
    twice uuid
) on commit drop;
create function pg_temp.moment(turn float8, seconds float8, came float8) returns timestamptz
    language sql immutable as 'select to_timestamp(coalesce(turn + seconds, came))';
create function pg_temp.named(pattern text, key text, number int) returns text
    language sql immutable as 'select replace(replace(pattern, ''KEY'', key), ''NUMBER'', number::text)';
"""

FATE: Final = """
insert into pg_temp.fates values (
    %(fate)s, %(status)s, %(version)s, %(attempt)s, %(charged)s, %(has_backend)s, %(is_accepted)s, %(is_final)s, %(at)s,
    %(reason)s, %(stage)s, %(detail)s, %(letter)s, %(letter_at)s, %(letter_attempt)s, %(letter_stage)s,
    %(letter_reason)s, %(letter_detail)s, %(replayed_at)s)
"""

#: It took so many from long before the first order on, and not from now on as the trigger notes.
BACKEND: Final = """
insert into backends (name, pool, adapter, url, capacity, max_run_seconds)
values (%(name)s, %(pool)s, %(adapter)s, %(url)s, %(slots)s, 1800)
on conflict (name) do update set capacity = excluded.capacity;
insert into capacities values (%(name)s, now() - %(span)s * interval '1 second', %(slots)s)
"""

PLANNED: Final = """
alter table pg_temp.plan add primary key (number);
analyze pg_temp.plan, pg_temp.steps, pg_temp.tries, pg_temp.fates, pg_temp.slots, pg_temp.groups
"""

#: Written: every table here but `backends`, `capacities` and `legal_moves`.
TABLES: Final = (
    "tasks",
    "task_moves",
    "attempts",
    "artifacts",
    "duplicate_keys",
    "dead_letters",
    "replays",
    "operator_actions",
)

#: How to drop each key of these tables and to make it again; a key can go once no foreign key needs it.
KEYS: Final = """
select format('alter table %%s drop constraint %%I', conrelid::regclass, conname),
    format('alter table %%s add constraint %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
from pg_constraint
where contype in ('f', 'p', 'u')
    and (conrelid = any(%(tables)s::regclass[]) or confrelid = any(%(tables)s::regclass[]))
order by contype = 'f' desc, oid
"""

#: The same of the indexes that are no keys.
INDEXES: Final = """
select format('drop index %%s', indexrelid::regclass), pg_get_indexdef(indexrelid) from pg_index i
where indrelid = any(%(tables)s::regclass[]) and not exists (select from pg_constraint where conindid = i.indexrelid)
order by indexrelid
"""

_TASKS: Final = """
insert into tasks (id, idempotency_key, order_id, fingerprint, pool, priority, body, status, version, attempt, charged,
    backend, job_key, provider_job_id, free_at, due_at, deadline_at, created_at, changed_at, finished_at, told_at,
    reason, detail, stage, actor, trace_id)
select p.task_id, p.key, 'shop-' || p.number,
    encode(sha256(convert_to(pg_temp.named(s.canonical, p.key, p.number), 'UTF8')), 'hex'), s.pool, 0,
    pg_temp.named(s.body, p.key, p.number)::jsonb, f.status, f.version, f.attempt, f.charged,
    case when f.has_backend then s.backend end, case when f.has_backend then p.job_keys[f.attempt] end,
    case when f.is_accepted then p.job_keys[f.attempt]::text end,
    case f.status when 'submitting' then now() + interval '90 seconds' else to_timestamp(p.came) end,
    case f.status when 'pending' then to_timestamp(p.came + 86400) when 'submitting' then now() + interval '90 seconds'
        when 'processing' then now() + p.number % 10 * interval '1 second' end,
    to_timestamp(p.came + 86400), to_timestamp(p.came), pg_temp.moment(p.turn, f.at, p.came),
    case when f.is_final then pg_temp.moment(p.turn, f.at, p.came) end,
    case when f.is_final then pg_temp.moment(p.turn, f.at, p.came) + interval '100 ms' end,
    f.reason, pg_temp.named(f.detail, p.key, p.number), f.stage, 'large', md5(p.key)
from pg_temp.plan p join pg_temp.fates f using (fate) join pg_temp.slots s using (slot) order by p.number
"""

_MOVES: Final = """
insert into task_moves (task_id, version, at, from_status, to_status, actor, attempt, backend, reason)
select p.task_id, m.version, pg_temp.moment(p.turn, m.at, p.came), m.before, m.after,
    case when m.reason = 'replay' then 'ana' else 'large' end, m.attempt, case when m.has_backend then s.backend end,
    m.reason
from pg_temp.plan p join pg_temp.steps m using (fate) join pg_temp.slots s using (slot) order by p.number, m.version
"""

_ATTEMPTS: Final = """
insert into attempts (task_id, attempt, backend, job_key, seed, body_hash, started_at, posted_at, accepted_at,
    provider_job_id, ended_at, outcome, posts)
select p.task_id, a.attempt, s.backend, p.job_keys[a.attempt],
    ('x' || left(replace(p.job_keys[a.attempt]::text, '-', ''), 14))::bit(56)::bigint >> 3, md5(p.key),
    pg_temp.moment(p.turn, a.started, null), pg_temp.moment(p.turn, a.started + 0.05, null),
    pg_temp.moment(p.turn, a.accepted, null), case when a.accepted is not null then p.job_keys[a.attempt]::text end,
    pg_temp.moment(p.turn, a.ended, null), a.outcome, 1
from pg_temp.plan p join pg_temp.tries a using (fate) join pg_temp.slots s using (slot) order by p.number, a.attempt
"""

_ARTIFACTS: Final = """
insert into artifacts (task_id, attempt, index, key, sha256, bytes, media_type, width, height, created_at)
select p.task_id, f.attempt, 0, p.task_id || '/' || f.attempt || '/0.png', encode(sha256(p.key::bytea), 'hex'),
    800000 + p.number % 400000, 'image/png', 1024, 1024, pg_temp.moment(p.turn, f.at, null)
from pg_temp.plan p join pg_temp.fates f using (fate) where f.status = 'completed' order by p.number
"""

_KEYS: Final = """
insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint, at)
select p.key || '-again', p.task_id, p.twice, md5(p.key), to_timestamp(p.came + 0.2)
from pg_temp.plan p where p.twice is not null
"""

#: Discarded ten minutes later, or just now.
_LETTERS: Final = """
insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool, message_id,
    message_type, body, first_at, at, state, closed_at, closed_by, backend, workflow, provider_job_id, exchange,
    routing_key, queue, deliveries, trace_id, version)
select p.task_id || ':' || f.letter_attempt || ':' || f.letter_stage, p.task_id, f.letter_attempt, f.letter_stage,
    f.letter_reason, pg_temp.named(f.letter_detail, p.key, p.number), g.fingerprint, s.pool,
    md5(p.key)::uuid::text, 'task.dead.v1', pg_temp.named(s.body, p.key, p.number),
    pg_temp.moment(p.turn, f.letter_at + 1, null), pg_temp.moment(p.turn, f.letter_at + 1, null), f.letter,
    case f.letter when 'discarded' then least(pg_temp.moment(p.turn, f.letter_at + 600, null), now())
        when 'replayed' then pg_temp.moment(p.turn, f.replayed_at, null) end,
    case f.letter when 'open' then null else (array['ana', 'bo', 'chidi'])[1 + p.number % 3] end,
    case when f.letter_attempt > 0 then s.backend end, s.body::jsonb ->> 'workflow',
    case when f.letter_attempt > 0 and f.letter_stage = 'check' then p.job_keys[f.letter_attempt]::text end,
    '', f.letter_stage || '.' || s.pool, f.letter_stage || '.' || s.pool, 1, md5(p.key), '0.1.0'
from pg_temp.plan p join pg_temp.fates f using (fate) join pg_temp.slots s using (slot)
    join pg_temp.groups g using (fate, pool)
order by p.number
"""

#: Of messages that made no row, over the whole time; one kind and the other by turns.
ROWLESS_LETTERS: Final = """
insert into dead_letters (identity, stage, reason, detail, fingerprint, message_id, message_type, body, first_at, at)
select encode(sha256(n::text::bytea), 'hex'), r.stage, r.reason, replace(r.detail, 'NUMBER', n::text), r.fingerprint,
    md5(n::text)::uuid::text, 'order.placed.v1', '{"idempotency_key": "rowless-' || n || '"}',
    at, at
from (select n, now() - %(span)s * interval '1 second' * n / %(count)s as at from generate_series(1, %(count)s) n) l
    join (select row_number() over (order by reason) - 1 as place, * from pg_temp.rowless) r on r.place = mod(n, 2)
"""

_REPLAYS: Final = """
insert into replays (dead_letter_id, by_whom, at, task_id, state, result, closed_at)
select d.id, d.closed_by, d.closed_at, d.task_id, 'closed', 'completed', t.finished_at
from dead_letters d join tasks t on t.id = d.task_id where d.state = 'replayed' order by d.closed_at, d.id
"""

_ACTIONS: Final = """
insert into operator_actions (at, by_whom, action, subject, detail)
select d.closed_at, d.closed_by, 'dead letter ' || case d.state when 'replayed' then 'replay' else 'discard' end,
    d.id::text, jsonb_build_object('why', 'the same as the others of ' || d.fingerprint)
from dead_letters d where d.state <> 'open' order by d.closed_at, d.id
"""

#: What the trigger does, which would look each letter up in a table without keys.
GROUPS: Final = "select count_into_groups(array(select id from dead_letters))"

#: In the order in which they refer to each other.
STATEMENTS: Final = (
    ("tasks", _TASKS),
    ("task_moves", _MOVES),
    ("attempts", _ATTEMPTS),
    ("artifacts", _ARTIFACTS),
    ("duplicate_keys", _KEYS),
    ("dead_letters", _LETTERS),
    ("replays", _REPLAYS),
    ("operator_actions", _ACTIONS),
)
