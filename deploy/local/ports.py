"""Free ports on the loopback address."""

import random
import socket
from collections.abc import Collection

LOOPBACK = "127.0.0.1"

#: Below the range outgoing connections take their own ports from (32768 and up on Linux). Inside that range a
#: client that keeps trying a stopped server can be given the server's port, or even connect to itself.
_CHOICE = range(20000, 32000)

#: Where RabbitMQ and PostgreSQL live by default, in case such a server starts after us.
STANDARD_PORTS = frozenset({4369, 5432, 5671, 5672, 15672, 15692, 25672})


def is_free(port: int) -> bool:
    """Nothing listens on the port. Connections of a stopped server that still linger do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(besides: Collection[int] = ()) -> int:
    """A port nobody uses, other than the ones in `besides`."""
    for _ in range(1000):
        port = random.choice(_CHOICE)
        if port not in STANDARD_PORTS and port not in besides and is_free(port):
            return port
    raise OSError(f"no free port between {_CHOICE.start} and {_CHOICE.stop}")
