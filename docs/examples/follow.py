"""Keep a table of what became of orders: python follow.py DATABASE. AMQP_URL names the broker. Runs until stopped."""

import json
import os
import sqlite3
import sys

import pika

QUEUE = "example.order-events"  # yours: one per system that wants every event


def save(database, event):
    """The table knows the newest version of each task. A repeat and a late, older event change nothing."""
    with database:  # commits
        database.execute(
            "insert into pictures (task_id, idempotency_key, status, version, reason, pictures)"
            " values (:task_id, :idempotency_key, :status, :version, :reason, :pictures)"
            " on conflict (task_id) do update set status = excluded.status, version = excluded.version,"
            " reason = excluded.reason, pictures = excluded.pictures where excluded.version > pictures.version",
            {**event, "pictures": json.dumps([picture["key"] for picture in event["artifacts"]])},
        )


def main():
    database = sqlite3.connect(sys.argv[1])
    with database:
        database.execute(
            "create table if not exists pictures (task_id text primary key, idempotency_key text not null,"
            " status text not null, version integer not null, reason text, pictures text not null)"
        )
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    for status in ("processing", "completed", "failed", "cancelled"):
        channel.queue_bind(QUEUE, "events", f"order.{status}")
    channel.basic_qos(prefetch_count=50)
    print("listening", flush=True)
    for method, _properties, body in channel.consume(QUEUE):
        save(database, json.loads(body))
        channel.basic_ack(method.delivery_tag)  # last: killed before this line, the event comes again


if __name__ == "__main__":
    main()
