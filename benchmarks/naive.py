"""What one would write first, measured beside darkroom: one thing after the other, each step waited for.

submitter: order -> INSERT, commit -> POST /prompt -> UPDATE, commit -> publish the check, confirm -> ack
poller:    check -> GET /history until there -> GET /view, file -> UPDATE, commit -> publish the event, confirm -> ack

It does the same job when nothing goes wrong, and loses or doubles orders when something does. In its favour: one kept
connection per simulated server and to the database, nothing is verified, no file is forced to the disk.

    python -m benchmarks.naive submitter|poller AMQP_URL DATABASE_URL FOLDER SIMULATOR_URL...
"""

import itertools
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import pika
import psycopg2
import requests

from deploy.local.stack import ROOT

ORDERS: Final = "naive.orders"
CHECKS: Final = "naive.checks"
EVENTS: Final = "naive.events"
TABLE: Final = """
create table orders (id uuid primary key, status text not null, body jsonb not null, job_id text, file text,
                     created_at timestamptz not null default now(), finished_at timestamptz)
"""
_PREFETCH: Final = 10
_QUEUE: Final = {"x-queue-type": "quorum"}
_PERSISTENT: Final = 2


def declare(amqp_url: str) -> None:
    """Queues and exchange exist. Nobody listens to the events, as nobody does to darkroom's in this benchmark."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    for queue in (ORDERS, CHECKS):
        channel.queue_declare(queue, durable=True, arguments=_QUEUE)
        channel.queue_purge(queue)  # of what the workers of an earlier round had done and not acked
    channel.exchange_declare(EVENTS, "topic", durable=True)
    connection.close()


class Worker:
    """Connections of one process: one to the database, two to the broker, one to each simulated server."""

    def __init__(self, amqp_url: str, database_url: str, folder: Path, simulators: list[str]) -> None:
        self._database = psycopg2.connect(database_url)
        self._cursor = self._database.cursor()
        self._incoming = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
        self._outgoing = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
        self._outgoing.confirm_delivery()
        self._http = requests.Session()
        self._folder = folder
        self._turns = itertools.cycle(simulators)
        self._graph = json.loads((ROOT / "deploy/workflows/solid-invert/graph.json").read_text())

    def serve(self, queue: str) -> None:
        """Never returns."""
        self._incoming.basic_qos(prefetch_count=_PREFETCH)
        self._incoming.basic_consume(queue, self._submit if queue == ORDERS else self._check)
        self._incoming.start_consuming()

    def _submit(self, channel: Any, method: Any, _: Any, body: bytes) -> None:
        order = json.loads(body)
        self._execute(
            "insert into orders (id, status, body) values (%s, 'submitting', %s)",
            order["idempotency_key"],
            body.decode(),
        )
        graph = json.loads(json.dumps(self._graph))
        graph["1"]["inputs"] |= order["inputs"]
        simulator = next(self._turns)
        answer = self._http.post(f"{simulator}/prompt", json={"prompt": graph}, timeout=30)
        job = answer.json()["prompt_id"]
        self._execute(
            "update orders set status = 'processing', job_id = %s where id = %s", job, order["idempotency_key"]
        )
        check = {"id": order["idempotency_key"], "job": job, "simulator": simulator}
        self._publish("", CHECKS, check)
        channel.basic_ack(method.delivery_tag)

    def _check(self, channel: Any, method: Any, _: Any, body: bytes) -> None:
        check = json.loads(body)
        job, simulator = check["job"], check["simulator"]
        while not (history := self._http.get(f"{simulator}/history/{job}", timeout=30).json()):
            time.sleep(0.02)
        picture = history[job]["outputs"]["3"]["images"][0]
        content = self._http.get(f"{simulator}/view", params=picture, timeout=30).content
        file = self._folder / f"{check['id']}.png"
        file.write_bytes(content)
        self._execute(
            "update orders set status = 'completed', file = %s, finished_at = now() where id = %s",
            str(file),
            check["id"],
        )
        self._publish(EVENTS, "order.completed", {"id": check["id"], "file": str(file)})
        channel.basic_ack(method.delivery_tag)

    def _execute(self, statement: str, *values: str) -> None:
        self._cursor.execute(statement, values)
        self._database.commit()

    def _publish(self, exchange: str, key: str, value: object) -> None:
        properties = pika.BasicProperties(delivery_mode=_PERSISTENT)
        self._outgoing.basic_publish(exchange, key, json.dumps(value).encode(), properties)


def main() -> None:
    role, amqp_url, database_url, folder, *simulators = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Worker(amqp_url, database_url, Path(folder), simulators).serve(ORDERS if role == "submitter" else CHECKS)


if __name__ == "__main__":
    main()
