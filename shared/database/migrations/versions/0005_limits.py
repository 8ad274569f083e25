"""How many jobs a backend may have at once for now, since it answered that it was too fast."""

from alembic import op

revision = "0005"
down_revision = "0004"

SQL = """
alter table backends
    add column limit_now int check (limit_now >= 1),
    add column limit_since timestamptz,
    add column limit_cut_at timestamptz,
    add constraint backends_limit_since check (limit_now is null or limit_since is not null);
comment on column backends.limit_now is 'jobs it may have at once although its capacity is more: halved when it answers 429, one more for as many accepted jobs as it says; null: the capacity';
comment on column backends.limit_since is 'jobs begun later and accepted count towards one more';
comment on column backends.limit_cut_at is 'a 429 for a job begun earlier was answered by this halving';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
