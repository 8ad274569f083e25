"""What a plan would do and how far it came is kept beside it, so that no page counts its letters one by one."""

from alembic import op

revision = "0017"
down_revision = "0016"

SQL = """
alter table plans add column preview jsonb, add column previewed_at timestamptz, add column counted jsonb,
    add constraint plans_preview_check check ((preview is null) = (previewed_at is null));
comment on column plans.preview is 'what it would have done at previewed_at; nothing goes by it';
comment on column plans.counted is 'how many of its letters are where, while nothing changes that: not yet applied, or over; null: plan_items says';
create index plans_uncounted on plans (id) where state in ('done', 'aborted') and counted is null;
drop index plan_items_sent;
create index plan_items_sent on plan_items (plan_id, place) where state = 'sent';
create index plan_items_result on plan_items (plan_id, result, place) where result is not null;
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
