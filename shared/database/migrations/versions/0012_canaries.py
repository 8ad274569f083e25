"""The history of canary orders may go with their rows; any other one stays append-only."""

from alembic import op

revision = "0012"
down_revision = "0011"

SQL = """
create function refuse_change_but_of_canaries() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and exists (select from tasks where id = old.task_id and pool = 'canary'
                                        and idempotency_key like 'darkroom.canary.%') then
        return old;
    end if;
    raise exception 'the history in % is append-only', tg_table_name using errcode = 'integrity_constraint_violation';
end $$;
drop trigger task_moves_append_only on task_moves;
create trigger task_moves_append_only before update or delete on task_moves
    for each row execute function refuse_change_but_of_canaries();
create index tasks_canaries on tasks (created_at) where pool = 'canary';
comment on table task_moves is 'Append-only history, written by the trigger on tasks: whoever makes an illegal move gets an IntegrityError. Only that of a canary order goes with its row';
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
