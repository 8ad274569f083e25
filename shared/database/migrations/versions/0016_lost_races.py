"""Moves that came too late are kept for the story of their order."""

from alembic import op

revision = "0016"
down_revision = "0015"

SQL = """
create table lost_races (
    id bigint generated always as identity primary key,
    task_id uuid not null references tasks (id) on delete cascade,
    at timestamptz not null default clock_timestamp(),
    actor text not null,
    attempt int not null,
    expected_status text not null,
    expected_version int not null,
    wanted_status text not null,
    reason text,
    found_status text not null,
    found_version int not null,
    found_attempt int not null
);
comment on table lost_races is 'Moves whose row somebody else had moved: nothing was changed, and no part of the history that task_moves is. The last few of each task. Owner: shared/database/tasks.py, through races.py';
comment on column lost_races.expected_status is 'what the loser had read, with expected_version and attempt';
comment on column lost_races.found_status is 'what the row was when the loser came, with found_version and found_attempt';
comment on column lost_races.reason is 'of the move that was wanted';
create index lost_races_task on lost_races (task_id, id);
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
