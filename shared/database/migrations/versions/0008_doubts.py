"""A provider that loses answer after answer gets no orders but probes."""

from alembic import op

revision = "0008"
down_revision = "0007"

SQL = """
alter table backends
    add column doubts int not null default 0 check (doubts >= 0),
    add column doubted_at timestamptz,
    add constraint backends_doubts_dated check (doubts = 0 or doubted_at is not null),
    drop constraint backends_health_check,
    add constraint backends_health_check check (health in ('up', 'down', 'frozen', 'refused', 'silent'));
comment on column backends.health is 'down: not reachable; frozen: answers, but its worker does not; refused: its account has no money or no valid key; silent: answers to POSTs are lost one after another; none of them gets work, but refused and silent get one order at each probe_at';
comment on column backends.probe_at is 'refused, silent: when the next order may try whether it is over';
comment on column backends.doubts is 'POSTs whose answers were lost in a row, up to doubted_at; an order accepted or ended by an answer since then begins a new row, which is seen at the next doubt';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
