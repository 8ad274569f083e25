"""Capacities: what each backend took, and since when, so that the audit can judge any moment of the history."""

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
create table capacities (
    backend text not null references backends (name),
    at timestamptz not null,
    capacity int not null check (capacity >= 1),
    primary key (backend, at)
);
comment on table capacities is 'Append-only history of backends.capacity, written by the trigger on backends. A row is judged by the capacity at the moment it was taken';
insert into capacities select name, clock_timestamp(), capacity from backends;

create function note_capacity() returns trigger language plpgsql as $$
begin
    insert into capacities values (new.name, clock_timestamp(), new.capacity);
    return null;
end $$;
create trigger backends_born after insert on backends for each row execute function note_capacity();
create trigger backends_resized after update on backends for each row
    when (old.capacity is distinct from new.capacity) execute function note_capacity();
create trigger capacities_append_only before update or delete on capacities
    for each row execute function refuse_change();
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
