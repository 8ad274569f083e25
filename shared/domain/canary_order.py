"""The order that proves every minute that orders come through: it takes the whole way and is nobody's. Pure."""

import uuid
from typing import Final

from shared.domain.messages import Order

#: Its pool, the adapter of that pool's one backend, and the backend's name. What happens in it is in no metric of
#: orders: only the probe_* gauges speak of it.
CANARY_POOL: Final = "canary"
#: Its idempotency keys begin so; rows of others in its pool are nobody's to delete.
KEY_PREFIX: Final = "darkroom.canary."


def canary_order() -> Order:
    """One that nobody has placed before."""
    return Order(idempotency_key=f"{KEY_PREFIX}{uuid.uuid4()}", pool=CANARY_POOL)
