"""Leases that are over are found without reading all that wait."""

from alembic import op

revision = "0007"
down_revision = "0006"

SQL = """
create index tasks_leases on tasks (pool, free_at) where status = 'submitting';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
