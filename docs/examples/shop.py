"""A small shop: a request commits the order and is answered; one thread publishes orders, another listens to events.

Settings: AMQP_URL, SHOP_DATABASE (a file), SHOP_PORT, SHOP_SWEEP_SECONDS.
"""

import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from contextlib import closing, contextmanager

import pika
from flask import Flask, request

AMQP_URL = os.environ["AMQP_URL"]
DATABASE = os.environ["SHOP_DATABASE"]
SWEEP_SECONDS = float(os.environ.get("SHOP_SWEEP_SECONDS", "30"))
EVENTS = "shop.order-events"  # a queue of the shop's own

app = Flask(__name__)
log = logging.getLogger("shop")
wake = threading.Event()


@contextmanager
def database():
    """A transaction: committed at the end, rolled back on an exception."""
    with closing(sqlite3.connect(DATABASE, timeout=10)) as connection, connection:
        connection.row_factory = sqlite3.Row
        yield connection


def make_tables():
    with database() as db:
        db.execute(
            "create table if not exists orders (key text primary key, body text not null,"
            " confirmed integer not null default 0, status text not null default 'placed',"
            " version integer not null default 0, reason text, pictures text not null default '[]')"
        )


# --- requests: no call of ComfyUI, no waiting for the broker


@app.post("/orders")
def create_order():
    number = uuid.uuid4().hex
    order = {
        "idempotency_key": f"shop-{number}",  # made once and kept with the order, never made again for a retry
        "order_id": number,
        "pool": "comfyui",
        "workflow": "solid-invert",
        "inputs": {"color": request.get_json()["color"]},
    }
    with database() as db:  # the body is kept as well: the same key with another content would be refused
        db.execute("insert into orders (key, body) values (?, ?)", (order["idempotency_key"], json.dumps(order)))
    wake.set()  # after the commit: nobody makes a picture for an order that is then rolled back
    return {"key": order["idempotency_key"]}, 202


@app.get("/orders/<key>")
def read_order(key):
    with database() as db:
        row = db.execute("select status, reason, pictures from orders where key = ?", (key,)).fetchone()
    return {**row, "pictures": json.loads(row["pictures"])} if row else ({"error": "no such order"}, 404)


# --- orders to darkroom


def publish_unconfirmed():
    """Every committed order is with the broker and marked so; an exception leaves the rest for the next time."""
    with database() as db:
        waiting = db.execute("select key, body from orders where confirmed = 0 order by rowid").fetchall()
    if not waiting:
        return
    with closing(pika.BlockingConnection(pika.URLParameters(AMQP_URL))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(type="order.placed.v1", content_type="application/json", delivery_mode=2)
        for order in waiting:
            channel.basic_publish("orders", "order.placed", order["body"].encode(), properties, mandatory=True)
            # Killed before the next line, the shop publishes it again: the same key makes no second picture.
            with database() as db:
                db.execute("update orders set confirmed = 1 where key = ?", (order["key"],))


def publisher():
    while True:
        wake.clear()
        try:
            publish_unconfirmed()
        except Exception:
            log.exception("orders wait for the next sweep")
        wake.wait(SWEEP_SECONDS)  # a new order wakes it, and the sweep finds what failed or was left by a crash


# --- events from darkroom


def save(event):
    """A repeat and a late, older event change nothing."""
    with database() as db:
        if event["event"] == "duplicate":
            db.execute("update orders set status = 'duplicate' where key = ?", (event["idempotency_key"],))
        else:
            pictures = json.dumps([picture["key"] for picture in event["artifacts"]])
            db.execute(
                "update orders set status = :status, version = :version, reason = :reason, pictures = :pictures"
                " where key = :idempotency_key and version < :version",
                {**event, "pictures": pictures},
            )


def listener():
    while True:
        try:
            with closing(pika.BlockingConnection(pika.URLParameters(AMQP_URL))) as connection:
                channel = connection.channel()
                channel.queue_declare(EVENTS, durable=True, arguments={"x-queue-type": "quorum"})
                channel.queue_bind(EVENTS, "events", "order.#")
                channel.basic_qos(prefetch_count=50)
                for method, _properties, body in channel.consume(EVENTS):
                    save(json.loads(body))
                    channel.basic_ack(method.delivery_tag)  # after the commit
        except Exception:
            log.exception("not listening; again in 2 s")
            time.sleep(2)


if __name__ == "__main__":
    make_tables()
    for work in (listener, publisher):
        threading.Thread(target=work, daemon=True).start()
    app.run(port=int(os.environ.get("SHOP_PORT", "5000")))
