"""What every service process does alike: settings, logs, metrics, health, database, backends, a clean end."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import sqlalchemy as sa

from shared.broker.broker import Broker
from shared.broker.topology import Topology, topology
from shared.config import Settings, SettingsError, load_settings
from shared.database.engine import connect
from shared.database.revision import current_revision, newest_revision
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.errors import DarkroomError, Outage
from shared.domain.fit import CONNECTIONS
from shared.domain.messages import Choice
from shared.observe import crash, logs, metrics
from shared.observe.health import Health, Server, Watchdog
from shared.observe.metrics import Metrics
from shared.providers.base import Provider
from shared.providers.comfyui import MAX_PICTURE_BYTES
from shared.providers.comfyui_http import Timings
from shared.providers.inputs import Pictures
from shared.providers.registry import BackendConfig, InvalidBackends, Tools, build, load_backends, load_fallbacks
from shared.providers.table import Table
from shared.providers.table_files import load_tables
from shared.providers.workflow import Workflows, load_workflows

log = logging.getLogger(__name__)

#: A loop that does not turn for so long hangs; the I/O loop ticks every second.
CONSUME_LIMIT_SECONDS: Final = 60.0
#: How long the database may take over the readiness question; a worse answer is none.
_READINESS_SECONDS: Final = 2.0


class CannotStart(DarkroomError):
    """Something a person must put right first; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process. Made by `start`; `wait` returns on SIGTERM or SIGINT."""

    name: str
    settings: Settings
    backends: Sequence[BackendConfig]
    tables: Mapping[str, Table]
    topology: Topology
    metrics: Metrics
    health: Health
    engine: sa.Engine
    #: For the readiness question alone, which must be answered soon, also while every other connection is stuck.
    readiness_engine: sa.Engine
    stopping: threading.Event
    #: Pools that are tried after a pool, for orders that name one.
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def actor(self) -> str:
        return f"{self.name}@{self.settings.instance}"

    @property
    def pools(self) -> list[str]:
        return list(dict.fromkeys(backend.pool for backend in self.backends))

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.engine, self.actor, self.metrics)

    @property
    def slots(self) -> Slots:
        return Slots(self.engine, self.actor, self.metrics)

    def workflows(self) -> Workflows:
        return load_workflows(self.settings.workflows_dir)

    def providers(self, workflows: Workflows) -> dict[str, Provider]:
        """One provider per backend of the file and of the table, where jobs of earlier files may still run.

        Raises InvalidBackends for one of the file. One that only the table still names is left out when it cannot be
        made any more: its jobs are asked about once it can.
        """
        in_file = {backend.name: backend for backend in self.backends}
        tools = replace(
            tools_of(self.settings, workflows), results=self._results, tables=self.tables, environ=os.environ
        )
        found: dict[str, Provider] = {}
        for row in self.slots.backends():
            named = in_file.get(row.name)
            unknown_state = partial(self.metrics.count, "unknown_states_total", backend=row.name)
            told = replace(
                tools,
                observe=partial(self._observe, row.name),
                unknown_state=unknown_state,
                on_unknown=None if named is None else named.on_unknown,
                callback_url=self.settings.callback_url if named is not None and named.callbacks else None,
            )
            try:
                found[row.name] = build(row, told)
            except InvalidBackends as error:
                if named is not None:
                    raise
                log.warning("backend left out", extra={"backend": row.name, "why": str(error)})
        return found

    def _results(self, own: str) -> Pictures:
        """Fetches pictures that an API made; its own host may be on a private network."""
        return Pictures(
            allow_private=self.settings.allow_private_inputs,
            private_hosts=[own],
            max_bytes=MAX_PICTURE_BYTES,
            read_seconds=30.0,
            limit_seconds=120.0,
        )

    def problems(self, providers: Mapping[str, Provider], pool: str) -> Callable[[Choice], Sequence[str]]:
        """What is wrong with what an order says to this pool, whose backends all take the same."""
        provider = next(providers[backend.name] for backend in self.backends if backend.pool == pool)
        return lambda choice: provider.problems(choice.workflow, choice.inputs)

    def sync_backends(self) -> None:
        """The table `backends` says what the backends file says."""
        wanted = [
            (b.name, b.pool, b.kind, b.url, b.capacity, b.max_run_seconds or self.settings.max_run_seconds)
            for b in self.backends
        ]
        ttls = {b.name: self.tables[b.provider].result_ttl_s for b in self.backends if b.provider is not None}
        self.slots.sync(
            wanted,
            rates={b.name: b.rate for b in self.backends if b.rate is not None},
            result_ttls={name: ttl for name, ttl in ttls.items() if ttl is not None},
        )

    def watch(self, broker: Broker, *, needs_database: bool = True) -> None:
        """Have readiness follow the broker and the database; without need of the database it is only reported."""

        def broker_ready() -> tuple[bool, str]:
            problems = broker.problems
            return not problems, "; ".join(problems)

        self.health.ask("broker", broker_ready, every_seconds=1.0)
        self.health.ask("database", partial(self._database_ready, needed=needs_database), every_seconds=5.0)

    def tick(self) -> None:
        """The I/O loop turned."""
        self.health.beat("consume", CONSUME_LIMIT_SECONDS)

    def serve_health(self) -> Server | None:
        """Start the watchdog, and /metrics, /livez and /readyz; None when the settings want no port for these."""
        Watchdog(self.health).start()
        if self.settings.metrics_port < 0:
            return None
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            server = Server(self.health, self.metrics, host, port).start()
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host}:{port} ({error.strerror}): give DARKROOM_METRICS_PORT another port, or 0"
            ) from error
        log.info("health served", extra={"host": server.host, "port": server.port})
        return server

    def wait(self, turn: Callable[[], None] = lambda: None, every_seconds: float = 1.0) -> None:
        """Until told to stop; `turn` runs in between, and an outage in it is waited out."""
        gc.collect()
        gc.freeze()  # what a start leaves is here to stay: 100,000 objects that no collection need look at again
        while not self.stopping.is_set():
            self._look_at_pool()
            try:
                turn()
            except Outage as error:
                log.warning("outage", extra={"why": str(error)})
            self.stopping.wait(every_seconds)
        self.health.drain()
        log.info("draining")

    def _look_at_pool(self) -> None:
        pool = self.engine.pool
        assert isinstance(pool, sa.QueuePool)  # noqa: S101 - what an engine for PostgreSQL has
        self.metrics.set("database_pool_connections", pool.checkedout(), state="in_use")
        self.metrics.set("database_pool_connections", pool.checkedin(), state="idle")

    def _database_ready(self, *, needed: bool) -> tuple[bool, str]:
        try:
            ok, detail = self._schema_is_right()
        except Outage:
            ok, detail = False, "away"
        return ok or not needed, detail

    def _schema_is_right(self) -> tuple[bool, str]:
        found = current_revision(self.readiness_engine)
        wanted = newest_revision()
        # A newer schema is fine: migrations that old code cannot survive come after the old code is gone.
        return found is not None and found >= wanted, f"schema {found}, this code needs {wanted}"

    def _observe(self, backend: str, operation: str, result: str, seconds: float) -> None:
        self.metrics.count("backend_requests_total", backend=backend, operation=operation, result=result)
        self.metrics.observe("backend_request_seconds", seconds, backend=backend, operation=operation)


def tools_of(settings: Settings, workflows: Workflows) -> Tools:
    """What every provider is made with."""
    return Tools(
        workflows=workflows,
        pictures=Pictures(
            folders=settings.input_folders,
            allow_private=settings.allow_private_inputs,
            connect_seconds=min(5.0, settings.input_timeout_seconds),
            read_seconds=min(10.0, settings.input_timeout_seconds),
            limit_seconds=settings.input_timeout_seconds,
        ),
        timings=Timings(
            connect=min(5.0, settings.backend_timeout_seconds),
            submit_read=settings.backend_timeout_seconds,
            upload_read=settings.backend_timeout_seconds,
            read=min(10.0, settings.backend_timeout_seconds),
            settle=settings.settle_seconds,
        ),
    )


def start(name: str) -> Service:
    """Read the settings, set up logs, metrics and signals, and wait for a database with the right schema.

    Raises SettingsError, InvalidBackends, CannotStart: all of them for a person to read.
    """
    settings = load_settings()
    logs.configure(name, settings.instance, settings.log_level)
    crash.arm(settings.kill_at)
    if settings.backends_file is None:
        raise CannotStart("DARKROOM_BACKENDS_FILE is not set: name the TOML file with your [[backend]] tables")
    tables = load_tables(settings.providers_dir)
    backends = load_backends(settings.backends_file, tables)
    if settings.callback_url is None and (calling := [b.name for b in backends if b.callbacks]):
        raise CannotStart(f"DARKROOM_CALLBACK_URL is not set, and {', '.join(calling)} should call back")
    pools = list(dict.fromkeys(backend.pool for backend in backends))
    topo = topology(pools)
    measured = metrics.build(
        name, pools=pools, backends=[b.name for b in backends], queues=[queue.name for queue in topo.queues]
    )
    logs.count_in(measured)
    service = Service(
        name=name,
        settings=settings,
        backends=backends,
        fallbacks=load_fallbacks(settings.backends_file),
        tables=tables,
        topology=topo,
        metrics=measured,
        health=Health(measured, required=("broker", "database")),
        engine=connect(settings.database_url.get_secret_value(), pool_size=CONNECTIONS[name], metrics=measured),
        readiness_engine=connect(
            settings.database_url.get_secret_value(), pool_size=1, statement_timeout_seconds=_READINESS_SECONDS
        ),
        stopping=threading.Event(),
    )
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: service.stopping.set())
    _wait_for_schema(service)
    return service


def _wait_for_schema(service: Service) -> None:
    """Returns when the database can be used; an empty one is a person's business, an absent one comes back."""
    while not service.stopping.is_set():
        try:
            found = current_revision(service.engine)
        except Outage as error:
            log.warning("waiting for the database", extra={"why": str(error)})
            service.stopping.wait(1.0)
            continue
        if found is None or found < newest_revision():
            raise CannotStart(f"the database is at schema {found}, not {newest_revision()}: run `darkroom migrate`")
        return


def run(main: Callable[[], None]) -> None:
    """Call `main` as the process; mistakes in the configuration are a few plain lines and exit status 2."""
    try:
        main()
    except (SettingsError, DarkroomError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
