"""Letters without a row stay under way in their plan until it is known what their message became."""

from alembic import op

revision = "0014"
down_revision = "0013"

SQL = """
alter table plan_items add column dies_as text, add column becomes uuid;
comment on column plan_items.dies_as is 'identity of the letter that its message leaves when it dies again; of letters without a row';
comment on column plan_items.becomes is 'the task that its message becomes, if its key can be read; of letters without a row';
comment on column plan_items.result is 'what became of the task; published: nothing was seen of its message but that the broker has it';
create index plan_items_sent on plan_items (plan_id) where state = 'sent';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
