"""Alembic's entry point: runs the revisions on the connection that `shared.database.migrate` hands over."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=None)
with context.begin_transaction():
    # Two services starting at once must not both migrate: the second waits here and then finds nothing to do.
    connection.exec_driver_sql("select pg_advisory_xact_lock(7223001)")
    context.run_migrations()
