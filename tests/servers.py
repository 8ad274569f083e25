"""Private servers for tests: a stack that goes away with the test run, migrated databases, empty virtual hosts."""

import base64
import dataclasses
import hashlib
import hmac
import itertools
import json
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2

from deploy.local import Broker, Stack, StackProblem
from deploy.local.ports import free_port
from deploy.local.process import Process

__all__ = [
    "VhostPool",
    "drop_database",
    "free_port",
    "memory_alarm",
    "migrate",
    "new_database",
    "new_vhost",
    "sweep",
    "temporary_stack",
]

_PREFIX = "darkroom-tests-"
#: A database is three hundred files. To make them took ext4 0.16 s of CPU time, and takes 0.02 s here; a server that
#: is killed finds all it wrote here as well. Each server needs up to half a GiB.
_MEMORY = Path("/dev/shm")
_ROOM = 3 << 30
_TEMPLATE = "migrated"
_DRAFT = "being_migrated"
#: PostgreSQL 15 and later otherwise write each page into the WAL: 22 ms of CPU time instead of 14.
_COPY_FILES = " STRATEGY FILE_COPY"
_numbers = itertools.count(1)
_asking = threading.Lock()
_connections: "dict[Path, psycopg2.extensions.connection]" = {}


@contextmanager
def temporary_stack() -> Iterator[Stack]:
    """A running stack in a folder of its own; about six seconds to start. Nothing of it stays."""
    directory = owned_directory(_PREFIX, _folders()[0])
    directory.chmod(0o711)  # as root, PostgreSQL runs as another user and has to get in
    stack = Stack(directory)
    try:
        stack.up()
        _make_password_cheap(stack)
        yield stack
    finally:
        _drop(stack)


def sweep() -> None:
    """Stop what earlier test runs left behind because they were killed."""
    for directory in abandoned(_PREFIX):
        with suppress(FileNotFoundError, StackProblem):  # another run is sweeping it at this moment
            _drop(Stack(directory))


def owned_directory(prefix: str, where: Path | None = None) -> Path:
    """A new folder that says whose it is, for `abandoned`. where -- one of `_folders`; None: the usual place."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    owner = Process.of(os.getpid())
    assert owner is not None
    (directory / "owner").write_text(json.dumps(dataclasses.asdict(owner)))
    return directory


def abandoned(prefix: str) -> Iterator[Path]:
    """Folders of ours whose owner has ended without removing them."""
    for directory in (found for folder in _folders(room=0) for found in folder.glob(f"{prefix}*")):
        with suppress(FileNotFoundError, ValueError):  # another run is making or sweeping it at this moment
            is_ours = directory.stat().st_uid == os.geteuid()
            if is_ours and not Process(**json.loads((directory / "owner").read_text())).is_alive:
                yield directory


def _folders(room: int = _ROOM) -> list[Path]:
    """Where servers' folders may be, the quickest first."""
    usual = Path(tempfile.gettempdir())
    is_there = os.access(_MEMORY, os.R_OK | os.W_OK | os.X_OK)
    return [_MEMORY, usual] if is_there and shutil.disk_usage(_MEMORY).free >= room else [usual]


def _drop(stack: Stack) -> None:
    if connection := _connections.pop(stack.directory, None):
        connection.close()
    stack.down(wipe=True)
    shutil.rmtree(stack.directory, ignore_errors=True)


def _make_password_cheap(stack: Stack) -> None:
    """The same password in the same exchange, hashed once and not 4096 times (RFC 5803): for each connection, and a
    test opens several, that took 4.7 ms of the client's CPU time, and takes 0.5.
    """
    password = urlsplit(stack.database.url_of("postgres")).password or ""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client, server = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    salt_, stored, served = (base64.b64encode(x).decode() for x in (salt, hashlib.sha256(client).digest(), server))
    with _maintenance(stack) as (ask, _):
        ask(f"ALTER ROLE CURRENT_USER PASSWORD 'SCRAM-SHA-256$1:{salt_}${stored}:{served}'")


def new_database(stack: Stack, migrated: bool = True) -> str:
    """The URL of a new database, in about 15 ms: a copy of one that was migrated once, or an empty one."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with _maintenance(stack) as (ask, version):
        if migrated and not ask("SELECT 1 FROM pg_database WHERE datname = %s", _TEMPLATE):
            ask(f"DROP DATABASE IF EXISTS {_DRAFT}")  # of a migration that failed
            migrate(stack.create_database(_DRAFT))
            ask(f"ALTER DATABASE {_DRAFT} RENAME TO {_TEMPLATE}")  # its name says that it is whole
        template = f" TEMPLATE {_TEMPLATE}" if migrated else ""
        ask(f"CREATE DATABASE {name}{template}" + (_COPY_FILES if version >= 150000 else ""))
    return stack.database.url_of(name)


def drop_database(stack: Stack, url: str) -> None:
    """Whoever is still connected to it is thrown out."""
    with _maintenance(stack) as (ask, _):
        ask(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@contextmanager
def _maintenance(stack: Stack) -> Iterator[tuple[Callable[..., bool], int]]:
    """Ask the server itself, and learn whether there was a row; its version is 150004 for 15.4.

    One connection per server, as long as it lives: to open one takes as much CPU time as to copy a database.
    """
    with _asking:
        connection = _connections.get(stack.directory)
        if connection is None or not _answers(connection):
            connection = _connections[stack.directory] = psycopg2.connect(stack.database.url_of("postgres"))
            connection.autocommit = True
        with connection.cursor() as cursor:

            def ask(statement: str, *values: str) -> bool:
                cursor.execute(statement, values or None)
                return cursor.description is not None and cursor.fetchone() is not None

            yield ask, connection.server_version


def _answers(connection: "psycopg2.extensions.connection") -> bool:
    """False for one whose server was stopped or killed since."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        connection.close()
        return False
    return True


def migrate(url: str) -> None:
    """Bring a database to the newest schema. No connection may stay open, or it cannot be copied."""
    from shared.database.migrate import upgrade

    upgrade(url)


def new_vhost(stack: Stack) -> str:
    """The name of an empty virtual host, in about 0.7 s; `VhostPool` is faster for many."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    stack.broker.add_vhosts([name])
    return name


@contextmanager
def memory_alarm(stack: Stack) -> Iterator[None]:
    """The broker has too little memory, so it reads nothing from whoever publishes."""
    stack.broker.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        yield
    finally:
        stack.broker.ctl("set_vm_memory_high_watermark", "0.4")


class VhostPool:
    """Empty virtual hosts, made ahead of time in the background.

    One rabbitmqctl call takes 0.6 s of which a virtual host is 10 to 30 ms, so they are made `_CHUNK` at a time and
    always before they are wanted. They are not deleted: a hundred with twelve idle queues each cost 9 % of one core.
    """

    _CHUNK = 25

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._maker: threading.Thread | None = None
        self._problem: StackProblem | None = None

    def take(self) -> str:
        """The name of a virtual host nobody has used."""
        if self._ready.qsize() < self._CHUNK // 2 and not (self._maker and self._maker.is_alive()):
            self._maker = threading.Thread(target=self._make, name="vhosts")
            self._maker.start()
        try:
            return self._ready.get(timeout=60)
        except queue.Empty:
            raise AssertionError(f"no virtual host within 60 s: {self._problem}") from None

    def close(self) -> None:
        """Wait for the background to end, before the broker is stopped."""
        if self._maker:
            self._maker.join()

    def _make(self) -> None:
        names = [f"test-{os.getpid()}-{next(_numbers)}" for _ in range(self._CHUNK)]
        try:
            self._broker.add_vhosts(names)
        except StackProblem as problem:
            self._problem = problem
            return
        for name in names:
            self._ready.put(name)
