"""A broker and a database that belong together: one folder, one state file, one up and one down."""

import fcntl
import functools
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.broker import Broker
from deploy.local.database import Database
from deploy.local.install import Tools, ready
from deploy.local.ports import LOOPBACK, is_free
from deploy.local.process import Process
from deploy.local.state import State

ROOT = Path(__file__).resolve().parents[2]

#: Which ports must be free for which process to start. Of a process that runs, none may change.
_PORTS_OF = {
    "epmd": ("epmd",),
    "broker": ("amqp", "distribution", "prometheus"),
    "database": ("postgres",),
}


@dataclass(frozen=True)
class Server:
    """One line of the status."""

    name: str
    pid: int | None  # None: not running
    url: str


class Stack:
    """Everything under `directory`; as root, PostgreSQL's data may have to go elsewhere (state.json says where)."""

    def __init__(
        self,
        directory: Path,
        *,
        find: Callable[[Callable[[str], None]], Tools] = ready,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = directory.resolve()
        self._say = say
        self._tools = functools.cache(lambda: find(say))
        self._state = State(self.directory / "state.json")
        self._state.load()
        self.broker = Broker(self.directory / "rabbitmq", self._state, self._tools)
        self.database = Database(self.directory / "postgres", self._state, self._tools)

    @property
    def amqp_url(self) -> str:
        return self.broker.url

    @property
    def database_url(self) -> str:
        return self.database.url_of("darkroom")

    @property
    def prometheus_port(self) -> int:
        """Where the broker answers GET /metrics."""
        return self._state.port("prometheus")

    def up(self) -> None:
        """Both servers run and answer. What ran already is kept; a port that somebody took meanwhile is replaced."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._state.load()
            self._tools()  # before anything starts: it may have to install, or to give up
            before = dict(self._running())
            self._choose_ports(before)
            try:
                if "broker" not in before:
                    self._say("starting RabbitMQ")
                self.broker.launch()  # takes longest, so it comes first and is waited for last
                if "database" not in before:
                    self._say("starting PostgreSQL")
                self.database.start()
                if not self.database.exists("darkroom"):
                    self.database.create("darkroom")
                self.broker.wait()
            except BaseException:  # Ctrl-C included: leave nothing half started
                self._stop_all(besides=before)
                raise
            self._write_environment()

    def down(self, wipe: bool = False) -> None:
        """Both servers and epmd are gone. The data stays and the next `up` finds it, unless it is wiped."""
        if not self.directory.exists():
            return
        with self._lock():
            self._state.load()
            self._environment_file.unlink(missing_ok=True)
            self._stop_all(cleanly=not wipe)
            if wipe:
                self.database.wipe()
                for name in ("rabbitmq", "postgres"):
                    shutil.rmtree(self.directory / name, ignore_errors=True)
                for name in ("postgres.log", "state.json"):
                    (self.directory / name).unlink(missing_ok=True)

    def status(self) -> list[Server]:
        """RabbitMQ and PostgreSQL, in this order."""
        self._state.load()
        running = dict(self._running())
        if not self._state.ports:
            return [Server("rabbitmq", None, ""), Server("postgresql", None, "")]
        metrics = f"http://{LOOPBACK}:{self.prometheus_port}/metrics"
        broker, database = running.get("broker"), running.get("database")
        return [
            Server("rabbitmq", broker.pid if broker else None, self.amqp_url),
            Server("metrics", broker.pid if broker else None, metrics),
            Server("postgresql", database.pid if database else None, self.database_url),
        ]

    def environment(self) -> dict[str, str]:
        """The settings with which darkroom finds this stack."""
        return {
            "DARKROOM_DATABASE_URL": self.database_url,
            "DARKROOM_AMQP_URL": self.amqp_url,
            "DARKROOM_ARTIFACTS_URL": (self.directory / "pictures").as_uri(),
            "DARKROOM_WORKFLOWS_DIR": str(ROOT / "deploy" / "workflows"),
        }

    def create_database(self, name: str, template: str | None = None) -> str:
        """A database of its own, empty or a copy of `template`; returns its URL."""
        return self.database.create(name, template)

    @property
    def _environment_file(self) -> Path:
        return self.directory / "env"

    def _write_environment(self) -> None:
        self._environment_file.touch(0o600)
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in self.environment().items()]
        self._environment_file.write_text("".join(lines))

    def _running(self) -> Iterator[tuple[str, Process]]:
        for name in _PORTS_OF:
            if process := self._state.process(name):
                yield name, process

    def _choose_ports(self, running: dict[str, Process]) -> None:
        for process, names in _PORTS_OF.items():
            for name in names:
                port = self._state.ports.get(name)
                if process not in running and not (port and is_free(port)):
                    self._state.choose_port(name)

    def _stop_all(self, besides: Collection[str] = (), cleanly: bool = True) -> None:
        if "broker" not in besides:
            if not cleanly:
                self.broker.kill()  # a clean shutdown takes six seconds, and its data is not wanted any more
            self.broker.stop()
        if "epmd" not in besides:
            self.broker.stop_epmd()
        if "database" not in besides:
            self.database.stop(immediate=not cleanly)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time; the lock goes with its process, however that ends."""
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
