"""Canary orders that came through are found without reading all others that ended."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("create index tasks_canaries on tasks (created_at) where pool = 'canary'")
