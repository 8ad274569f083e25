"""Dead letters say more of where they come from; groups of them are kept; purged keys stay as tombstones."""

from alembic import op

revision = "0009"
down_revision = "0008"

SQL = """
alter table dead_letters
    add column first_at timestamptz not null default now(),
    add column repeats int not null default 0 check (repeats >= 0),
    add column exception text,
    add column backend text,
    add column workflow text,
    add column provider_job_id text,
    add column exchange text,
    add column routing_key text,
    add column queue text,
    add column deliveries int,
    add column broker_reason text,
    add column trace_id text,
    add column version text,
    drop constraint dead_letters_state_check,
    add constraint dead_letters_state_check
        check (state in ('open', 'replayed', 'discarded', 'archived'));
comment on column dead_letters.at is 'last seen: when it was recorded, or recorded again';
comment on column dead_letters.repeats is 'failures of the same order that were recorded before this one';
comment on column dead_letters.exception is 'type of the exception, where detail is a traceback';
comment on column dead_letters.backend is 'where the attempt ran that failed';
comment on column dead_letters.queue is 'the work queue the message was in; exchange and routing_key are those it came by';
comment on column dead_letters.deliveries is 'how often the message had been handed out';
comment on column dead_letters.broker_reason is 'the word of the broker, where it buried the message itself';
comment on column dead_letters.version is 'of the program that buried it';

update dead_letters d set first_at = d.at, trace_id = split_part(d.headers ->> 'traceparent', '-', 2),
    queue = d.headers #>> '{x-death,0,queue}', broker_reason = d.headers #>> '{x-death,0,reason}',
    backend = a.backend, provider_job_id = a.provider_job_id, workflow = t.body ->> 'workflow'
from dead_letters l left join attempts a on a.task_id = l.task_id and a.attempt = l.attempt
    left join tasks t on t.id = l.task_id
where l.id = d.id;

create table letter_groups (
    fingerprint text primary key,
    reason text not null,
    pool text,
    total bigint not null check (total >= 0),
    first_at timestamptz not null,
    last_at timestamptz not null,
    backends text[] not null,
    workflows text[] not null,
    last_version text,
    note text,
    owner text,
    fixed_in text,
    fixed_at timestamptz,
    reopened_at timestamptz,
    check ((fixed_in is null) = (fixed_at is null)),
    check (reopened_at is null or fixed_at is not null)
);
comment on table letter_groups is 'Failures of one kind. The counts are kept by triggers on dead_letters, the rest by people. Owner: shared/database/letter_groups.py';
comment on column letter_groups.total is 'letters ever recorded, whatever became of them; one that came back counts again';
comment on column letter_groups.fixed_in is 'the version somebody says it is fixed in';
comment on column letter_groups.reopened_at is 'when it failed again although it was said to be fixed; null: it did not';

create function count_into_groups(ids bigint[]) returns void language sql as $$
    insert into letter_groups as g
        (fingerprint, reason, pool, total, first_at, last_at, backends, workflows, last_version)
    select d.fingerprint, min(d.reason), min(d.pool), count(*), min(d.at), max(d.at),
        array_remove(array_agg(distinct d.backend), null), array_remove(array_agg(distinct d.workflow), null),
        max(d.version)
    from dead_letters d where d.id = any(ids) group by d.fingerprint order by d.fingerprint
    on conflict (fingerprint) do update set
        total = g.total + excluded.total,
        last_at = greatest(g.last_at, excluded.last_at),
        backends = array(select distinct b from unnest(g.backends || excluded.backends) b order by b limit 50),
        workflows = array(select distinct w from unnest(g.workflows || excluded.workflows) w order by w limit 50),
        last_version = coalesce(excluded.last_version, g.last_version),
        reopened_at = case when g.fixed_at is not null then coalesce(g.reopened_at, now()) end
$$;
comment on function count_into_groups is 'In the order of the fingerprints, so that two collectors cannot deadlock';
create function count_new_letters() returns trigger language plpgsql as $$
begin
    perform count_into_groups(array(select n.id from new_letters n));
    return null;
end $$;
create function count_letters_again() returns trigger language plpgsql as $$
begin
    perform count_into_groups(array(
        select n.id from new_letters n join old_letters o on o.id = n.id where n.at <> o.at));
    return null;
end $$;
insert into letter_groups (fingerprint, reason, pool, total, first_at, last_at, backends, workflows)
    select d.fingerprint, min(d.reason), min(d.pool), count(*), min(d.first_at), max(d.at),
        array_remove(array_agg(distinct d.backend), null), array_remove(array_agg(distinct d.workflow), null)
    from dead_letters d group by d.fingerprint;
create trigger letters_arrived after insert on dead_letters
    referencing new table as new_letters for each statement execute function count_new_letters();
create trigger letters_came_back after update on dead_letters
    referencing old table as old_letters new table as new_letters
    for each statement execute function count_letters_again();

drop index dead_letters_open;
create index dead_letters_open on dead_letters (fingerprint, stage, reason) where state = 'open';
create index dead_letters_waiting on dead_letters (at) where state = 'open';
create index dead_letters_state on dead_letters (state, id);
create index dead_letters_group on dead_letters (fingerprint, id);
create index dead_letters_reason on dead_letters (reason, id);
create index dead_letters_pool on dead_letters (pool, id);
create index dead_letters_backend on dead_letters (backend, id);
create index dead_letters_workflow on dead_letters (workflow, id);
create index replays_letter on replays (dead_letter_id);
drop index replays_task;
create index replays_task on replays (task_id);
create index duplicate_keys_task on duplicate_keys (task_id);
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
