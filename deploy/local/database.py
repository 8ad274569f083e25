"""One private PostgreSQL server: its data, its process, and psql."""

import os
import pwd
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.install import Tools
from deploy.local.ports import LOOPBACK
from deploy.local.problem import StackProblem
from deploy.local.process import Process, User, launch, run
from deploy.local.state import State

USER = "darkroom"

#: Where the data goes when we are root and PostgreSQL's user cannot reach the stack's own folder.
_SHARED_FOLDER = Path("/var/lib/darkroom")

#: fsync stays on: the crash tests rely on what was committed.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a socket's path may have 107 bytes at most; checkouts lie deeper
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Database:
    """`start` and `stop` act on one server that keeps its port and its data."""

    def __init__(self, folder: Path, state: State, tools: Callable[[], Tools]) -> None:
        self._folder = folder
        self._state = state
        self._tools = tools
        self._log = folder.with_suffix(".log")

    @property
    def process(self) -> Process | None:
        return self._state.process("database")

    def url_of(self, name: str) -> str:
        """The URL of one database on this server."""
        return f"postgresql://{USER}:{self._state.password}@{LOOPBACK}:{self._state.port('postgres')}/{name}"

    def start(self) -> None:
        """Returns when the server takes connections. Does nothing to one that runs."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the server without waiting for it; the first time, make its data."""
        if self.process:
            return
        if not (self._state.database_folder and self._data.exists()):
            self._make_data()
        self._check_version()
        self._clear_stale_pid()
        settings = {**_SETTINGS, "port": str(self._state.port("postgres"))}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        process = launch(
            [self._tools().postgres / "postgres", "-D", self._data, *options],
            environment=self._environment(),
            folder=self._data,
            output=self._log,
            user=_owner(),
        )
        self._state.record("database", process)

    def wait(self, seconds: float = 120) -> None:
        """Returns when the server says in its pid file that it is ready, crash recovery included."""
        end = time.monotonic() + seconds
        while not self._is_ready():
            if not self.process:
                raise StackProblem(f"PostgreSQL ended while it was starting; it says why in {self._log}.")
            if time.monotonic() > end:
                raise StackProblem(f"PostgreSQL was not ready within {seconds:g} s; see {self._log}.")
            time.sleep(0.02)

    def stop(self, immediate: bool = False) -> None:
        """Shut the server down: end the connections and checkpoint. `immediate` is a crash: it does not checkpoint."""
        if self.process:
            self.process.stop(*([] if immediate else [(signal.SIGINT, 60.0)]), (signal.SIGQUIT, 10.0))
        self._state.forget("database")

    def create(self, name: str, template: str | None = None) -> str:
        """Make a database, empty or a copy of `template`, and return its URL."""
        self.sql(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return self.url_of(name)

    def exists(self, name: str) -> bool:
        return name in self.sql("SELECT datname FROM pg_database").split()

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints for one statement, without headings. Raises StackProblem with the server's complaint."""
        psql = str(self._tools().postgres / "psql")
        server = ["-h", LOOPBACK, "-p", str(self._state.port("postgres")), "-U", USER, "-d", database]
        environment = {**self._environment(), "PGPASSWORD": self._state.password}
        answer = run([psql, "-XAtq", "-v", "ON_ERROR_STOP=1", *server, "-c", statement], environment=environment)
        if answer.returncode:
            raise StackProblem(f"psql: {answer.stderr.strip()}")
        return answer.stdout

    def wipe(self) -> None:
        """Drop all data of a stopped server."""
        if self._state.database_folder:
            shutil.rmtree(self._state.database_folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return Path(self._state.database_folder or self._folder) / "data"

    def _make_data(self) -> None:
        folder = self._choose_folder()
        owner = _owner()
        folder.mkdir(parents=True, exist_ok=True)
        if owner:
            os.chown(folder, owner.uid, owner.gid)
        self._state.database_folder = str(folder)
        self._state.save()
        draft = folder / "data.new"  # renamed at the end, so data of that name is whole
        for leftover in (draft, self._data):
            shutil.rmtree(leftover, ignore_errors=True)
        password = folder / "password"
        password.touch(0o600)
        password.write_text(self._state.password)
        if owner:
            os.chown(password, owner.uid, owner.gid)
        options = ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        answer = run(
            [self._tools().postgres / "initdb", "-D", draft, "-U", USER, "--pwfile", password, *options],
            environment=self._environment(),
            folder=folder,
            user=owner,
        )
        password.unlink()
        if answer.returncode:
            raise StackProblem(f"PostgreSQL could not make its data in {folder}: {answer.stderr.strip()}")
        draft.rename(self._data)

    def _choose_folder(self) -> Path:
        """The stack's own folder, unless we are root and PostgreSQL's user could not get there."""
        if not _owner() or all(parent.stat().st_mode & 0o001 for parent in self._folder.parents if parent.exists()):
            return self._folder
        _SHARED_FOLDER.mkdir(mode=0o755, exist_ok=True)
        return _SHARED_FOLDER / self._state.name

    def _check_version(self) -> None:
        """New programs cannot read an old major version's data."""
        of_data = (self._data / "PG_VERSION").read_text().strip()
        answer = run([self._tools().postgres / "postgres", "--version"], environment=self._environment())
        of_programs = answer.stdout.split()[2].partition(".")[0]
        if of_data != of_programs:
            raise StackProblem(
                f"{self._data} was made by PostgreSQL {of_data}, and {of_programs} is installed now: "
                "`python -m deploy.local down --wipe` drops the data, then `up` starts afresh."
            )

    def _clear_stale_pid(self) -> None:
        """After a reboot PostgreSQL's pid may belong to another program; PostgreSQL would take that for itself."""
        recorded = self._state.processes.get("database")
        if recorded and recorded.pid_was_reused:
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        process = self.process
        return process is not None and len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    def _environment(self) -> dict[str, str]:
        """Nothing of the caller's PG* variables."""
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C", "LC_ALL": "C"}


def _owner() -> User | None:
    """As root: the user and group PostgreSQL runs as, since it refuses to run as root. Otherwise None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(entry.pw_uid, entry.pw_gid)
    raise StackProblem(
        "PostgreSQL refuses to run as root and there is no user `postgres`: create one, or run this as another user."
    )
