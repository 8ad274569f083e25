"""The audit's questions: each statement answers with the rows that break one promise, as subject and detail."""

from typing import Final

#: Where a check says {recent}, one of these goes: two texts, because an OR would make the planner read all rows.
ALL: Final = "true"
RECENT: Final = """t.id in (select r.task_id from task_moves r where r.at > now() - :since * interval '1 second'
    union all select unnest(cast(:also as uuid[])))"""

DUPLICATE_TASK: Final = """
select t.idempotency_key as subject, count(*) || ' tasks have this key' as detail from tasks t
where t.idempotency_key in (select t.idempotency_key from tasks t where {recent})
group by t.idempotency_key having count(*) > 1
union all
select t.idempotency_key, 'the key has task ' || t.id || ' and is also kept as a duplicate of ' || d.task_id
from tasks t join duplicate_keys d on d.idempotency_key = t.idempotency_key where {recent}
union all
select t.idempotency_key, 'the key has task ' || t.id || ' although its order was purged at ' || p.purged_at
from tasks t join purged_keys p on p.idempotency_key = t.idempotency_key where {recent}
"""

DUPLICATE_ORDER: Final = """
select t.order_id as subject, count(*) || ' active tasks: ' || string_agg(t.id::text, ', ') as detail from tasks t
where t.status in ('pending', 'submitting', 'processing') and t.order_id is not null
group by t.order_id having count(*) > 1
"""

DOUBLE_SUBMIT: Final = """
select t.id::text as subject, 'attempts that completed it: ' || coalesce(a.numbers, 'none')
    || '; it ended at attempt ' || t.attempt as detail
from tasks t left join lateral (
    select string_agg(a.attempt::text, ', ' order by a.attempt) as numbers
    from attempts a where a.task_id = t.id and a.outcome = 'completed') a on true
where t.status = 'completed' and a.numbers is distinct from t.attempt::text and {recent}
union all
select t.id::text, 'attempt ' || a.attempt || ' was accepted too, and never ended'
from tasks t join attempts a on a.task_id = t.id and a.attempt <> t.attempt
where t.status = 'completed' and a.accepted_at is not null and a.ended_at is null and {recent}
union all
select t.id::text, 'its row names the job ' || coalesce(t.provider_job_id, 'none') || ', its attempt '
    || coalesce(a.provider_job_id, 'none')
from tasks t join attempts a on a.task_id = t.id and a.attempt = t.attempt
where t.status in ('processing', 'completed') and a.provider_job_id is distinct from t.provider_job_id and {recent}
union all
select min(t.id::text), 'job ' || a.provider_job_id || ' at ' || a.backend || ' stands for ' || count(*) || ' attempts'
from tasks t join attempts a on a.task_id = t.id where a.provider_job_id is not null and {recent}
group by a.backend, a.provider_job_id having count(*) > 1
"""

#: In two halves, each through its own partial index.
LOST_ORDER: Final = """
select t.id::text as subject, t.status || ' without a due_at' as detail from tasks t
where t.status in ('pending', 'submitting') and t.due_at is null
union all
select t.id::text, t.status || ' without a due_at' from tasks t
where t.status = 'processing' and t.due_at is null
"""

MISSING_ARTIFACT: Final = """
select t.id::text as subject, case when t.status = 'completed' then 'completed without a picture'
    else t.status || ' without a reason' end as detail
from tasks t
where (t.status = 'completed'
        and not exists (select 1 from artifacts a where a.task_id = t.id and a.attempt = t.attempt)
    or t.status in ('failed', 'cancelled') and coalesce(t.reason, '') = '')
    and {recent}
"""

#: The collector has a minute to record a letter that is known to be in its dead queue.
MISSING_LETTER: Final = """
select t.id::text as subject, 'failed as ' || t.reason || ' at ' || t.finished_at || ', no dead letter is recorded'
    as detail
from tasks t where t.status = 'failed' and t.told_at < now() - interval '1 minute'
    and not exists (select 1 from dead_letters d where d.task_id = t.id and d.attempt = t.attempt) and {recent}
"""

#: Compared with the greatest capacity since the oldest of them was taken: what is in flight when a capacity is lowered
#: was taken rightly, and runs on.
OVER_CAPACITY: Final = """
select b.name as subject, f.live || ' in flight, it took at most ' || k.most as detail
from backends b join (
    select t.backend, count(*) as live, min(a.started_at) as since
    from tasks t join attempts a on a.task_id = t.id and a.attempt = t.attempt
    where t.status in ('submitting', 'processing') or t.cancel_owed group by t.backend) f on f.backend = b.name
cross join lateral (
    select max(c.capacity) as most from capacities c where c.backend = b.name and c.at >= coalesce(
        (select max(e.at) from capacities e where e.backend = b.name and e.at <= f.since), '-infinity')) k
where f.live > k.most
"""

#: At every moment of the history at which a row was taken: how many stood there with it, and the capacity of that
#: moment. Both are stamped under the lock of the backend's row, so their order is the true one. Ends come before
#: beginnings of the same moment. A cancelled row counts until it was cancelled: when its job left is not recorded.
OVER_CAPACITY_EVER: Final = """
with steps as (
    select m.task_id, m.at, m.backend, lag(m.backend) over (partition by m.task_id order by m.version) as before,
        coalesce(m.from_status in ('submitting', 'processing'), false) as was_there,
        m.to_status in ('submitting', 'processing') as is_there
    from task_moves m
), changes as (
    select backend, at, 1 as change from steps where is_there and not was_there
    union all
    select before, at, -1 from steps where was_there and not is_there
), counted as (
    select backend, at, change,
        sum(change) over (partition by backend order by at, change rows unbounded preceding) as live
    from changes
), beyond as (
    select c.backend, c.at, c.live, k.capacity from counted c cross join lateral (
        select e.capacity from capacities e where e.backend = c.backend and e.at <= c.at order by e.at desc limit 1) k
    where c.change = 1 and c.live > k.capacity
)
select backend as subject, count(*) || ' rows were taken beyond its capacity, the first at ' || min(at) || ' as number '
    || (array_agg(live order by at))[1] || ' of ' || (array_agg(capacity order by at))[1] as detail
from beyond group by backend
"""

#: What was cancelled while submitting is looked at when its lease is over, and owes nothing before. A cancel that a
#: server which is away or frozen owes breaks no promise: its `health` says so, and a person may forget the server.
ZOMBIE: Final = """
select t.id::text as subject, t.status || ' since ' || t.finished_at || ', still owed: '
    || case when t.told_at is null then 'its event' else 'a cancel at ' || t.backend end as detail
from tasks t left join backends b on b.name = t.backend
where t.due_at is not null and t.status in ('completed', 'failed', 'cancelled')
    and case when t.told_at is null then greatest(t.finished_at, case when t.cancel_owed then t.free_at end)
        when b.health = 'up' then greatest(t.told_at, b.health_changed_at) end
        < now() - interval '5 minutes'
"""

BAD_HISTORY: Final = """
with moves as (
    select m.task_id, m.version, m.from_status, m.to_status, m.attempt,
        row_number() over w as place, lag(m.to_status) over w as before, lag(m.attempt) over w as attempt_before,
        lead(m.version) over w is null as is_last, l.from_status is not null as is_legal
    from task_moves m join tasks t on t.id = m.task_id
        left join legal_moves l on l.from_status = m.from_status and l.to_status = m.to_status
    where {recent} window w as (partition by m.task_id order by m.version)
), wrong as (
    select task_id, version, case
        when version <> place then 'move ' || place || ' has version ' || version
        when place = 1 and (from_status is not null or to_status <> 'pending') then 'begins as ' || to_status
        when place > 1 and from_status is distinct from before
            then 'leaves ' || coalesce(from_status, 'nothing') || ' after it had become ' || before
        when place > 1 and not is_legal then 'moves from ' || from_status || ' to ' || to_status
        when attempt < attempt_before then 'attempt falls from ' || attempt_before || ' to ' || attempt
        end as fault
    from moves
)
select task_id::text as subject, min('version ' || version || ': ' || fault) as detail
from wrong where fault is not null group by task_id
union all
select t.id::text, case when m.task_id is null then 'no history'
    else 'history ends as ' || m.to_status || ' in version ' || m.version
        || ', the row is ' || t.status || ' in version ' || t.version end
from tasks t left join moves m on m.task_id = t.id and m.is_last
where (m.task_id is null or m.to_status <> t.status or m.version <> t.version) and {recent}
"""

PICTURES: Final = """
select t.id, a.index, a.key, a.sha256 from tasks t join artifacts a on a.task_id = t.id and a.attempt = t.attempt
where t.status = 'completed' order by t.id, a.index
"""

#: Keys that neither have a row, nor are kept with another one's, nor stand in a letter that belongs to no row.
UNACCOUNTED: Final = """
select k.key from unnest(cast(:keys as text[])) as k(key)
where not exists (select 1 from tasks t where t.idempotency_key = k.key)
    and not exists (select 1 from duplicate_keys d where d.idempotency_key = k.key)
    and not exists (select 1 from purged_keys p where p.idempotency_key = k.key)
    and not exists (
        select 1 from dead_letters l where l.task_id is null and position(to_json(k.key)::text in l.body) > 0)
"""

#: owes_nothing -- the attempt is over, and no cancel of its job is owed: nothing of it may run
OWNERS: Final = """
select coalesce(a.provider_job_id, a.job_key::text) as job_id, t.id as task_id, a.attempt, a.backend, t.status,
    a.ended_at is not null and not (t.cancel_owed and a.attempt = t.attempt) as owes_nothing
from attempts a join tasks t on t.id = a.task_id
where a.provider_job_id = any(cast(:ids as text[])) or a.job_key = any(cast(:keys as uuid[]))
"""

POSTED: Final = """
select a.task_id, a.attempt, a.seed, a.posts, a.provider_job_id, t.body, b.pool
from attempts a join tasks t on t.id = a.task_id join backends b on b.name = a.backend
where a.backend = :backend and a.started_at > now() - (:since + 3600) * interval '1 second'
    and a.posted_at > now() - :since * interval '1 second'
"""
