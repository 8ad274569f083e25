"""The producer: orders come in over HTTP and leave for the broker; upstream systems ask what became of them."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping

from services.producer.api import create_app
from services.producer.auth import is_loopback
from services.producer.orders import Offer
from shared.broker.broker import Broker
from shared.database.callbacks import Callbacks
from shared.database.listing import Listing
from shared.http_connections import http_server
from shared.providers.signatures import Signatures
from shared.providers.table import InvalidTables
from shared.service import CannotStart, Service, run, start
from shared.storage import Artifacts

log = logging.getLogger(__name__)


def main() -> None:
    service = start("producer")
    settings = service.settings
    if not settings.http_token_values and not is_loopback(settings.http_host):
        raise CannotStart(
            f"without DARKROOM_HTTP_TOKENS anybody who reaches {settings.http_host} could place orders:"
            " set tokens, or give DARKROOM_HTTP_HOST a loopback address such as 127.0.0.1"
        )
    broker = Broker(
        settings.amqp_urls, service.topology, name=service.actor, metrics=service.metrics, tick=service.tick
    )
    app = create_app(
        publisher=broker,
        tasks=service.tasks,
        listing=Listing(service.engine),
        store=Artifacts(settings.artifacts_url),
        offer=Offer.of(service.backends, service.tables, service.workflows()),
        metrics=service.metrics,
        tokens=settings.http_token_values,
        read_tokens=settings.http_read_token_values,
        confirm_timeout_seconds=settings.confirm_timeout_seconds,
        is_stopping=service.stopping.is_set,
        callbacks=_callbacks(service),
    )
    listener = _listen(settings.http_host, settings.http_port)
    http = http_server(app, settings.drain_seconds)
    # Orders can be placed while the database is away, so a balancer must go on sending them.
    service.watch(broker, needs_database=False)
    health = service.serve_health()
    broker.start()
    # In a thread of its own: in the main thread uvicorn would take the signals, and they are the service's.
    serving = threading.Thread(target=http.run, args=([listener],), name="http", daemon=True)
    serving.start()
    log.info("listening", extra={"host": settings.http_host, "port": listener.getsockname()[1]})
    service.wait(lambda: None if serving.is_alive() else service.stopping.set())
    ended_by_itself = not serving.is_alive()
    http.should_exit = True
    serving.join(settings.drain_seconds + 5.0)
    if not broker.stop():
        log.warning("the broker connection did not end in good order")
    if health is not None:
        health.close()
    if ended_by_itself:
        log.error("the HTTP server ended by itself")
        sys.exit(1)


def _callbacks(service: Service) -> tuple[Mapping[str, Signatures], Callbacks] | None:
    """The providers that were told to call back; None when none was. Raises CannotStart."""
    found: dict[str, Signatures] = {}
    for backend in service.backends:
        if backend.callbacks and backend.provider is not None:
            table = service.tables[backend.provider]
            assert table.callback is not None  # noqa: S101 - load_backends saw to it
            try:
                url = "" if backend.url == table.base_url else backend.url
                found[backend.provider] = Signatures(table.callback.for_use(os.environ, url=url))
            except InvalidTables as error:
                raise CannotStart(f"backend {backend.name}: {error}") from error
    return (found, Callbacks(service.engine)) if found else None


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, made here so that a taken port is a sentence and port 0 is known before the first request."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host}:{port} ({error.strerror}): give DARKROOM_HTTP_PORT another port, or 0"
        ) from error


if __name__ == "__main__":
    run(main)
