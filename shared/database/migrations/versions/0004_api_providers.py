"""What API providers need: results that vanish, accounts that are refused, several POSTs of one attempt, costs."""

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
alter table backends
    add column result_ttl_seconds double precision check (result_ttl_seconds > 0),
    add column probe_at timestamptz,
    add column probe_seconds double precision,
    drop constraint backends_health_check,
    add constraint backends_health_check check (health in ('up', 'down', 'frozen', 'refused'));
comment on column backends.health is 'down: not reachable; frozen: answers, but its worker does not; refused: its account has no money or no valid key; none of them gets work, but refused gets one order at each probe_at';
comment on column backends.result_ttl_seconds is 'for how long the provider keeps what a job made; null: for ever';
comment on column backends.probe_at is 'refused: when the next order may try whether the account is good again';

alter table tasks
    add column job_handle jsonb not null default '{}',
    add column result_until timestamptz;
comment on column tasks.job_handle is 'what the provider gave with its job id to ask about the job, such as addresses';
comment on column tasks.result_until is 'processing: until then its result is surely kept, if the job ended right after it was last seen running';
create index tasks_result_until on tasks (result_until) where result_until is not null;

alter table attempts
    add column posts int not null default 0,
    add column looks int not null default 0,
    add column cost_estimated double precision,
    add column cost_actual double precision,
    add column cost_unit text;
comment on column attempts.posted_at is 'set immediately before the first POST';
comment on column attempts.posts is 'POSTs that were about to leave; more than one only where a repeat is safe or was asked for';
comment on column attempts.looks is 'how often the provider was asked in vain what became of a POST without an answer';
comment on column attempts.cost_actual is 'what the provider says it cost, in cost_unit';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
