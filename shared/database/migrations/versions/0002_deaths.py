"""Which attempt kills the workers that look at it."""

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = """
alter table attempts add column deaths smallint not null default 0;
comment on column attempts.deaths is 'workers in a row that began to look at nothing else and never said that they survived it';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
