"""A replay may name the one backend that makes its orders."""

from alembic import op

revision = "0015"
down_revision = "0014"

SQL = """
alter table tasks add column pinned_backend text references backends (name);
comment on column tasks.pinned_backend is 'the only backend that may make it, as a person has said with a replay; null: any of its pool. Holds for every attempt until the next replay, an adopted job, or another pool';
create index tasks_pinned on tasks (pinned_backend, priority desc, created_at)
    where status = 'pending' and pinned_backend is not null;

alter table plans
    add column backend text references backends (name),
    add constraint plans_backend_in_pool check (backend is null or pool is not null);
comment on column plans.backend is 'the one backend of that pool that makes the orders; null: any of it';

alter table backends add column gone_at timestamptz;
comment on column backends.gone_at is 'since when the backends file names it no more; orders that wait for it alone are failed soon after';
update backends set gone_at = now() where not enabled;
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
