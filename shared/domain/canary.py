"""The canary of `darkroom doctor`: a message that goes the whole way of a dead letter and is none."""

import uuid
from collections.abc import Mapping
from typing import Final

from shared.domain.messages import Delivery, Message

CANARY: Final = "doctor.canary.v1"
ANSWER: Final = "doctor.canary.answered.v1"
#: The queues that a look at the broker makes for itself, and deletes, begin like this.
OWN_QUEUES: Final = "darkroom.doctor."
#: Header that names the queue of whoever sent the canary and waits for it.
ANSWER_TO: Final = "answer_to"


def is_canary(delivery: Delivery) -> bool:
    """Whether the broker itself buried this message out of a queue of the doctor's. Never raises.

    The type alone proves nothing: an order may come under any type, and its letter must not be lost.
    """
    deaths = delivery.headers.get("x-death") if isinstance(delivery.headers, Mapping) else None
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    queue = death.get("queue") if isinstance(death, Mapping) else None
    return delivery.type == CANARY and isinstance(queue, str) and queue.startswith(OWN_QUEUES)


def answers_to(delivery: Delivery) -> list[Message]:
    """What a canary's sender waits for, on its own queue alone; it may be gone, so nobody need be there."""
    to = delivery.headers.get(ANSWER_TO)
    if not isinstance(to, str) or not to.startswith(OWN_QUEUES):
        return []
    return [
        Message(
            routing_key=to,
            type=ANSWER,
            body=delivery.queue.encode(),
            message_id=str(uuid.uuid4()),
            mandatory=False,
        )
    ]
