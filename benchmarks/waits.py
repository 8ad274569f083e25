"""What one wait costs on this machine: for the disk, for a commit, for a confirm. Rates of what waits hang on them.

The naive workers wait for the disk four times an order: for three commits and for the confirm of a check. That of the
event does not, as no queue takes it. darkroom waits once for a batch. So the quicker the disk, the smaller the ratio of
both; a reader on another machine needs these beside it.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pika
import psycopg2

from benchmarks.measure import percentile
from deploy.local.stack import Stack

_TIMES: Final = 300
_PAGE: Final = 8192  # bytes, one page of PostgreSQL's log
_QUEUE: Final = "bench.waits"


def measure_waits(stack: Stack) -> dict[str, Any]:
    """Medians in ms, each of one after the other with nothing beside it."""
    database_url = stack.create_database("waits")
    return {
        "fdatasync_ms": _fdatasync(database_url),
        "commit_ms": commit_ms(database_url),
        "confirm_ms": _confirm(stack.amqp_url),
    }


def delay_commits(stack: Stack, database: str, milliseconds: float) -> None:
    """Whoever connects to this database from now on waits so much longer whenever its commit is written out.

    Only what PostgreSQL writes gets slower, not the broker. With no siblings asked for, the delay comes also when
    nobody else is committing (PostgreSQL's XLogFlush).
    """
    stack.database.sql(f'ALTER DATABASE "{database}" SET commit_delay = {milliseconds * 1000:.0f}')
    stack.database.sql(f'ALTER DATABASE "{database}" SET commit_siblings = 0')


def commit_ms(database_url: str) -> float:
    """One row and its commit."""
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("create table if not exists waits (n int)")
    cursor = connection.cursor()

    def insert() -> None:
        cursor.execute("insert into waits values (1)")
        connection.commit()

    found = _median_ms(insert)
    connection.close()
    return found


def _fdatasync(database_url: str) -> float:
    """Where the database has its files; over pages that are there already, as its log is."""
    connection = psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute("show data_directory")
        folder = Path(cursor.fetchone()[0]).parent
    connection.close()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(_PAGE * _TIMES))
        os.fsync(file.fileno())
        file.seek(0)

        def write() -> None:
            file.write(os.urandom(_PAGE))
            os.fdatasync(file.fileno())

        return _median_ms(write)


def _confirm(amqp_url: str) -> float:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.queue_declare(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    found = _median_ms(
        lambda: channel.basic_publish("", _QUEUE, b"x" * 300, pika.BasicProperties(delivery_mode=2))  # persistent
    )
    channel.queue_delete(_QUEUE)
    connection.close()
    return found


def _median_ms(once: Callable[[], object]) -> float:
    took = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    return percentile(took, 0.5) * 1000
