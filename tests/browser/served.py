"""The console on a port of its own, in a thread of this process, for a browser to visit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socket import create_server

from starlette.types import ASGIApp

from shared.http_connections import http_server


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address, while it lasts."""
    listener = create_server(("127.0.0.1", 0))
    server = http_server(app, drain_seconds=1)
    thread = threading.Thread(target=server.run, args=([listener],), name="served")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
