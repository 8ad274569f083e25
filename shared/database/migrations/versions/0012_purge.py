"""Old orders go: their keys stay as tombstones, their pictures are remembered until they are deleted."""

from alembic import op

revision = "0012"
down_revision = "0011"

SQL = """
create table purged_keys (
    idempotency_key text primary key,
    task_id uuid not null unique,
    fingerprint text not null,
    status text not null check (status in ('completed', 'failed', 'cancelled')),
    finished_at timestamptz not null,
    purged_at timestamptz not null default now()
);
comment on table purged_keys is 'Tombstones: keys of orders whose rows are purged make no second order. Owner: shared/database/purge.py';
comment on column purged_keys.task_id is 'the id that the key names, also where it was kept with the task of another order';
create index purged_keys_at on purged_keys (purged_at);

create table purged_pictures (
    task_id uuid primary key
);
comment on table purged_pictures is 'Purged tasks whose pictures are still to be deleted from the store';

create or replace function refuse_change() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and tg_table_name = 'task_moves' and current_setting('darkroom.purging', true) = 'on' then
        return old;
    end if;
    raise exception 'the history in % is append-only', tg_table_name using errcode = 'integrity_constraint_violation';
end $$;
comment on function refuse_change is 'A purge alone may delete, moves alone, and says so by darkroom.purging in its transaction';

create index plan_items_letter on plan_items (dead_letter_id);
create index task_revisions_replay on task_revisions (replay_id);
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
