"""Place one order and know that the broker has it: python publish.py KEY COLOR. AMQP_URL names the broker."""

import json
import os
import sys

import pika


def place(channel, order):
    """Returns once the broker has confirmed it. Any exception means: place the same order again."""
    channel.basic_publish(
        exchange="orders",
        routing_key="order.placed",
        body=json.dumps(order).encode(),
        properties=pika.BasicProperties(
            type="order.placed.v1",
            content_type="application/json",
            delivery_mode=2,  # persistent: it survives a restart of the broker
        ),
        mandatory=True,  # an order that no queue takes raises UnroutableError instead of vanishing
    )


def main():
    key, color = sys.argv[1], int(sys.argv[2])
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.confirm_delivery()  # from here on, basic_publish waits for the broker
    order = {"idempotency_key": key, "pool": "comfyui", "workflow": "solid-invert", "inputs": {"color": color}}
    place(channel, order)
    connection.close()
    print(f"confirmed {key}")


if __name__ == "__main__":
    main()
