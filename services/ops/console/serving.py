"""The console inside the ops process: a server in a thread of its own, with database connections of its own."""

import logging
import socket
import threading
from typing import TYPE_CHECKING, Final, Self

from services.ops.exporter import Exporter
from services.ops.replay import Replayer, confirmed
from shared.broker.broker import Broker
from shared.database.engine import connect
from shared.database.replays import Replays
from shared.domain.fit import CONSOLE_CONNECTIONS
from shared.providers.offered import Offered
from shared.providers.workflow import InvalidWorkflows, Workflows
from shared.service import CannotStart, Service
from shared.storage import Artifacts

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

#: No page takes so long; a plan of 100,000 letters may, while the machine is busy with something else.
STATEMENT_SECONDS: Final = 30.0
#: A page under way at the end of the process is soon done.
_DRAIN_SECONDS: Final = 5.0


class Console:
    """Listens from the moment it is made, so that a taken port is a sentence; answers once started."""

    def __init__(self, server: "uvicorn.Server | None", listener: socket.socket | None) -> None:
        self._server = server
        self._listener = listener
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, service: Service, broker: Broker, exporter: Exporter) -> Self:
        """Raises CannotStart. The settings may want none."""
        settings = service.settings
        if settings.console_port < 0:
            return cls(None, None)
        # Not every ops process has a console, and FastAPI costs 0.3 s of a start.
        from services.ops.console.app import create_app  # noqa: PLC0415
        from services.ops.console.parts import Parts  # noqa: PLC0415
        from shared.http_connections import http_server  # noqa: PLC0415

        engine = connect(
            settings.database_url.get_secret_value(),
            pool_size=CONSOLE_CONNECTIONS,
            statement_timeout_seconds=STATEMENT_SECONDS,
            metrics=service.metrics,
        )
        parts = Parts(
            engine=engine,
            store=Artifacts(settings.artifacts_url),
            replayer=Replayer(
                Replays(engine, settings.default_deadline_seconds),
                publish=confirmed(broker.publish, settings.confirm_timeout_seconds),
                pools=service.pools,
                metrics=service.metrics,
            ),
            offered=Offered.of(service.backends, service.tables, _workflows(service)),
            seen=lambda: exporter.seen,
            pools=service.pools,
            retry=settings.retry,
            default_deadline_seconds=settings.default_deadline_seconds,
            url=settings.console_url,
        )
        return cls(
            http_server(create_app(parts), _DRAIN_SECONDS), _listen(settings.console_host, settings.console_port)
        )

    def start(self) -> None:
        """In a thread of its own: in the main thread uvicorn would take the signals, and they are the service's."""
        if self._server is None or self._listener is None:
            return
        host, port = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="console", daemon=True)
        self._thread.start()
        log.info("console served", extra={"host": host, "port": port})

    @property
    def has_died(self) -> bool:
        """The server ended by itself: the process should end, and be started anew."""
        return self._thread is not None and not self._thread.is_alive()

    def stop(self) -> None:
        """Pages under way are finished."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_DRAIN_SECONDS + 2.0)


def _workflows(service: Service) -> Workflows:
    """Only the form that edits an order needs them, and letters must be collected whatever is wrong with a template."""
    try:
        return service.workflows()
    except InvalidWorkflows as error:
        log.warning("workflows not read, so no order of theirs is edited here", extra={"why": str(error)})
        return Workflows({})


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host}:{port} ({error.strerror}): give DARKROOM_CONSOLE_PORT another port, 0, or -1"
        ) from error
