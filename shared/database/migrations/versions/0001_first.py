"""Tasks, their history, attempts, artifacts, backends, dead letters, replays, operator actions."""

from alembic import op

revision = "0001"
down_revision = None

SQL = """
create table backends (
    name text primary key,
    pool text not null,
    adapter text not null,
    url text not null,
    capacity int not null check (capacity >= 1),
    max_run_seconds double precision not null check (max_run_seconds > 0),
    rate_starts int check (rate_starts >= 1),
    rate_seconds double precision check (rate_seconds > 0),
    enabled boolean not null default true,
    health text not null default 'up' check (health in ('up', 'down', 'frozen')),
    health_detail text,
    health_changed_at timestamptz not null default now(),
    paused_until timestamptz,
    pause_reason text,
    check ((rate_starts is null) = (rate_seconds is null))
);
comment on table backends is 'One ComfyUI server or provider account each. Owner: shared/database/slots.py';
comment on column backends.rate_starts is 'at most so many attempts begin here in any span of rate_seconds; null: no limit';
comment on column backends.enabled is 'false once the backends file no longer names it: checked until its jobs end, given nothing new';
comment on column backends.health is 'down: not reachable; frozen: answers, but its worker does not; neither gets work';
comment on column backends.paused_until is 'no new work before this moment; infinity while an operator has paused it';

create table tasks (
    id uuid primary key,
    idempotency_key text not null unique,
    order_id text,
    fingerprint text not null,
    pool text not null,
    priority smallint not null default 0 check (priority in (0, 1)),
    body jsonb,
    status text not null default 'pending'
        check (status in ('pending', 'submitting', 'processing', 'completed', 'failed', 'cancelled')),
    version int not null default 1,
    attempt int not null default 0,
    charged int not null default 0,
    backend text references backends (name),
    job_key uuid,
    provider_job_id text,
    free_at timestamptz not null default now(),
    due_at timestamptz,
    deadline_at timestamptz not null,
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    finished_at timestamptz,
    cancel_owed boolean not null default false,
    told_at timestamptz,
    avoid_backend text,
    reason text,
    detail text,
    stage text,
    actor text not null,
    trace_id text not null,
    check (due_at is not null or status in ('completed', 'failed', 'cancelled')),
    check (status not in ('submitting', 'processing') or (backend is not null and job_key is not null)),
    check (status <> 'processing' or provider_job_id is not null),
    check (status <> 'failed' or (reason is not null and stage is not null)),
    check ((finished_at is not null) = (status in ('completed', 'failed', 'cancelled'))),
    check (not cancel_owed or due_at is not null),
    check (told_at is null or status in ('completed', 'failed', 'cancelled'))
) with (fillfactor = 70);
comment on table tasks is 'One row per idempotency key. Every change of status goes through shared/database/tasks.py or slots.py and names the version it read';
comment on column tasks.body is 'the order as sent; null when only its key could be read';
comment on column tasks.version is 'rises with every move and with nothing else';
comment on column tasks.charged is 'attempts that used up a try; waiting charges nothing';
comment on column tasks.free_at is 'pending: end of a backoff; submitting: end of the lease';
comment on column tasks.due_at is 'when somebody must look at the row again; null only when nothing is owed';
comment on column tasks.cancel_owed is 'the row is final, but a job at the provider may still run: it holds its slot until cancelled there';
comment on column tasks.told_at is 'when the event and the letter of a final row were confirmed: they are not said again while a cancel is still owed';
comment on column tasks.actor is 'who made the last move; the trigger copies it into task_moves';
create unique index tasks_one_active_order on tasks (order_id) where status in ('pending', 'submitting', 'processing');
create index tasks_order_id on tasks (order_id) where order_id is not null;
create index tasks_newest on tasks (status, created_at, id);
create index tasks_due on tasks (due_at) where due_at is not null;
create index tasks_free on tasks (pool, priority desc, created_at) where status in ('pending', 'submitting');
create index tasks_live on tasks (backend) where status in ('submitting', 'processing') or cancel_owed;

create table duplicate_keys (
    idempotency_key text primary key,
    task_id uuid not null references tasks (id),
    own_task_id uuid not null unique,
    fingerprint text not null,
    at timestamptz not null default now()
);
comment on table duplicate_keys is 'Keys of orders whose order_id already had an active task: they stay with that task for good';

create table legal_moves (
    from_status text not null,
    to_status text not null,
    primary key (from_status, to_status)
);
comment on table legal_moves is 'The same pairs as LEGAL_MOVES in shared/domain/task.py; a test compares them';
insert into legal_moves values
    ('pending', 'submitting'), ('pending', 'failed'), ('pending', 'cancelled'),
    ('submitting', 'submitting'), ('submitting', 'pending'), ('submitting', 'processing'),
    ('submitting', 'completed'), ('submitting', 'failed'), ('submitting', 'cancelled'),
    ('processing', 'pending'), ('processing', 'completed'), ('processing', 'failed'), ('processing', 'cancelled'),
    ('failed', 'pending'), ('failed', 'processing');

create table task_moves (
    task_id uuid not null references tasks (id),
    version int not null,
    at timestamptz not null,
    from_status text,
    to_status text not null,
    actor text not null,
    attempt int not null,
    backend text,
    reason text,
    primary key (task_id, version),
    foreign key (from_status, to_status) references legal_moves (from_status, to_status),
    check (from_status is not null or to_status = 'pending')
);
comment on table task_moves is 'Append-only history, written by the trigger on tasks: whoever makes an illegal move gets an IntegrityError';
comment on column task_moves.backend is 'where the row stood after the move';
create index task_moves_at on task_moves (at);

create function note_move() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        insert into task_moves values (new.id, new.version, clock_timestamp(), null, new.status, new.actor, new.attempt,
                                       new.backend, new.reason);
    else
        if new.version <> old.version + 1 then
            raise exception 'task %: version must go from % to %, not %', old.id, old.version, old.version + 1, new.version
                using errcode = 'integrity_constraint_violation';
        end if;
        insert into task_moves values (new.id, new.version, clock_timestamp(), old.status, new.status, new.actor, new.attempt,
                                       new.backend, new.reason);
    end if;
    return null;
end $$;
create trigger tasks_born after insert on tasks for each row execute function note_move();
create trigger tasks_moved after update on tasks for each row
    when (old.version is distinct from new.version or old.status is distinct from new.status)
    execute function note_move();

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the history in % is append-only', tg_table_name using errcode = 'integrity_constraint_violation';
end $$;
create trigger task_moves_append_only before update or delete on task_moves for each row execute function refuse_change();

create table attempts (
    task_id uuid not null references tasks (id),
    attempt int not null check (attempt >= 1),
    backend text not null references backends (name),
    job_key uuid not null unique,
    seed bigint not null,
    body_hash text,
    started_at timestamptz not null default now(),
    posted_at timestamptz,
    accepted_at timestamptz,
    provider_job_id text,
    ended_at timestamptz,
    outcome text,
    detail text,
    primary key (task_id, attempt)
);
comment on table attempts is 'One row per attempt, written before the provider is called; the provider job id even when the task has moved on';
create index attempts_started on attempts (backend, started_at);
comment on column attempts.posted_at is 'set immediately before the POST, with the hash of the body that is about to leave';
comment on column attempts.outcome is 'how it ended: completed, cancelled, not_created, out_of_memory, or the reason of its failure';

create table artifacts (
    task_id uuid not null references tasks (id),
    attempt int not null,
    index int not null check (index >= 0),
    key text not null,
    sha256 text not null,
    bytes bigint not null check (bytes > 0),
    media_type text not null,
    width int not null,
    height int not null,
    created_at timestamptz not null default now(),
    primary key (task_id, attempt, index)
);
comment on table artifacts is 'References to stored pictures; the pictures are in the artifact store under `key`';

create table dead_letters (
    id bigint generated always as identity primary key,
    identity text not null unique,
    task_id uuid references tasks (id),
    attempt int,
    stage text not null,
    reason text not null,
    detail text not null,
    fingerprint text not null,
    pool text,
    message_id text,
    message_type text,
    body text,
    headers jsonb not null default '{}',
    at timestamptz not null default now(),
    state text not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    closed_at timestamptz,
    closed_by text
);
comment on table dead_letters is 'Every letter once. Owner: shared/database/dead_letters.py';
comment on column dead_letters.identity is 'task_id:attempt:stage, or SHA-256 of message id and body where no task is known';
comment on column dead_letters.body is 'text of the message, at most 64 KiB';
create index dead_letters_open on dead_letters (at) where state = 'open';
create index dead_letters_task on dead_letters (task_id);

create table replays (
    id bigint generated always as identity primary key,
    dead_letter_id bigint not null references dead_letters (id),
    by_whom text not null,
    at timestamptz not null default now(),
    task_id uuid references tasks (id),
    state text not null default 'open' check (state in ('open', 'closed')),
    result text,
    closed_at timestamptz
);
comment on table replays is 'Who sent which letter round again, and what came of it';
create unique index replays_one_open on replays (dead_letter_id) where state = 'open';
create index replays_task on replays (task_id) where state = 'open';

create table operator_actions (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    by_whom text not null,
    action text not null,
    subject text not null,
    detail jsonb not null default '{}'
);
comment on table operator_actions is 'Append-only: what people did by hand';
create index operator_actions_subject on operator_actions (subject);
create trigger operator_actions_append_only before update or delete on operator_actions
    for each row execute function refuse_change();
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
