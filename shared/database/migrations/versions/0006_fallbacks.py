"""Orders that name several pools: those that wait in one that takes no work are found without reading all that wait."""

from alembic import op

revision = "0006"
down_revision = "0005"

SQL = """
create index tasks_fallback on tasks (pool, changed_at) where status = 'pending' and body -> 'pools' <> '[]';
comment on column tasks.pool is 'where it is served now; body -> pools names all that may serve it, in the order they are tried';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
