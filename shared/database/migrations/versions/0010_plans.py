"""Replay plans: a frozen set of letters, the pace at which they go round, and what came of each."""

from alembic import op

revision = "0010"
down_revision = "0009"

SQL = """
create table plans (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    by_whom text not null,
    chosen jsonb not null,
    note text,
    state text not null default 'planned'
        check (state in ('planned', 'running', 'paused', 'stopped', 'done', 'aborted')),
    state_why text,
    changed_at timestamptz not null default now(),
    changed_by text not null,
    pool text,
    is_forced boolean not null default false,
    rate float8 not null check (rate > 0),
    ramp int[] not null check (0 < all (ramp)),
    stop_at float8 check (stop_at > 0 and stop_at <= 1),
    stop_window int not null check (stop_window >= 1),
    step int not null default 0 check (step >= 0),
    step_sent int not null default 0 check (step_sent >= 0),
    paced_until timestamptz,
    judged_from timestamptz
);
comment on table plans is 'Letters that a person sends round again at a pace. Owner: shared/database/plans.py';
comment on column plans.chosen is 'how the letters were chosen, a time window as absolute moments; which they are stands in plan_items';
comment on column plans.pool is 'where the orders go instead of their own pool';
comment on column plans.is_forced is 'letters go round although another task of their order_id is completed';
comment on column plans.rate is 'letters per second, at most';
comment on column plans.ramp is 'first so many letters, then so many, each time only when the results of all before are known to be fine';
comment on column plans.stop_at is 'share of failures among the last stop_window results at which the plan stops itself';
comment on column plans.step is 'place in the ramp; past its end only rate and stop_at hold';
comment on column plans.paced_until is 'what the rate allows is used up to this moment';
comment on column plans.judged_from is 'results from before this moment no longer count for stop_at: somebody has looked at them';
create index plans_running on plans (id) where state = 'running';

create table plan_items (
    plan_id bigint not null references plans (id) on delete cascade,
    place int not null,
    dead_letter_id bigint not null references dead_letters (id) on delete cascade,
    predicted text not null,
    state text not null default 'waiting' check (state in ('waiting', 'sent', 'ended')),
    result text check (result in ('completed', 'failed', 'cancelled', 'published', 'refused')),
    why text,
    replay_id bigint references replays (id) on delete cascade,
    ended_at timestamptz,
    primary key (plan_id, place),
    unique (plan_id, dead_letter_id),
    check ((state = 'ended') = (result is not null)),
    check (state = 'waiting' or result = 'refused' or replay_id is not null)
);
comment on table plan_items is 'The letters of a plan, frozen when it was made, in the order they go round';
comment on column plan_items.predicted is 'what a replay would have done when the plan was made';
comment on column plan_items.result is 'what became of the task; published: it had no row and its message is at the broker';
create unique index plan_items_replay on plan_items (replay_id) where replay_id is not null;
create index plan_items_waiting on plan_items (plan_id, place) where state = 'waiting';
create index plan_items_ended on plan_items (plan_id, ended_at) where state = 'ended';

create table task_revisions (
    task_id uuid not null references tasks (id) on delete cascade,
    revision int not null check (revision >= 1),
    at timestamptz not null default now(),
    by_whom text not null,
    replay_id bigint not null references replays (id) on delete cascade,
    diff jsonb not null,
    primary key (task_id, revision)
);
comment on table task_revisions is 'Inputs that a person changed before a replay; the key and the fingerprint of the order stay as they came';
comment on column task_revisions.diff is 'input -> {before, after}; one that is missing there was not given';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
