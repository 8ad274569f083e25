"""Fixtures that start servers. Only tests that ask for one get one, and tests/unit may not ask."""

import gc
import os
import signal
from collections import deque
from collections.abc import Iterator

import pytest

from deploy.local import Stack
from tests.servers import VhostPool, drop_database, new_database, sweep, temporary_stack

#: Databases that stay for a while after their tests.
_KEPT = 10


def pytest_configure() -> None:
    """The caller's settings must not reach the tests."""
    gc.disable()  # until all is collected: nothing of that is garbage, and looking at it takes a third of the time
    for name in [name for name in os.environ if name.startswith("DARKROOM_")]:
        del os.environ[name]


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()  # four thousand tests and what they import stay: no collection need look at them again


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        asked = {"stack", "private_stack"} & set(getattr(item, "fixturenames", ()))
        if asked and "unit" in item.path.relative_to(item.config.rootpath).parts:
            raise pytest.UsageError(f"{item.nodeid} asks for a server; tests/unit has none")


@pytest.fixture(scope="session")
def _servers_end_with_the_run() -> None:
    """SIGTERM ends the run like Ctrl-C does: fixtures are taken down. What a SIGKILL leaves, the next run sweeps."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    sweep()


@pytest.fixture(scope="session")
def stack(_servers_end_with_the_run: None) -> Iterator[Stack]:
    """RabbitMQ and PostgreSQL shared by all tests: never stop or kill these, ask for `private_stack` instead."""
    with temporary_stack() as servers:
        yield servers


@pytest.fixture
def database_url(stack: Stack, _done_with: deque[str]) -> Iterator[str]:
    """A fresh, migrated database of this test's own."""
    url = new_database(stack)
    yield url
    _done_with.append(url)
    if len(_done_with) > _KEPT:
        drop_database(stack, _done_with.popleft())


@pytest.fixture(scope="session")
def _done_with() -> deque[str]:
    """Databases of the last tests: each takes 8 MB of memory, and a thread may outlive its test for a moment."""
    return deque()


@pytest.fixture
def empty_database_url(stack: Stack) -> str:
    """A fresh database without any table, for tests of the migrations."""
    return new_database(stack, migrated=False)


@pytest.fixture(scope="session")
def _vhosts(stack: Stack) -> Iterator[VhostPool]:
    pool = VhostPool(stack.broker)
    yield pool
    pool.close()


@pytest.fixture
def vhost(_vhosts: VhostPool) -> str:
    """The name of an empty virtual host of this test's own, for `stack.broker.queues(vhost=vhost)`."""
    return _vhosts.take()


@pytest.fixture
def amqp_url(stack: Stack, vhost: str) -> str:
    """The URL of this test's virtual host."""
    return stack.broker.url_of(vhost)


@pytest.fixture(scope="module")
def _module_stack(_servers_end_with_the_run: None) -> Iterator[Stack]:
    with temporary_stack() as servers:
        yield servers


@pytest.fixture
def private_stack(_module_stack: Stack) -> Stack:
    """A stack to stop and kill. Each module has one; before each test, whatever the last one stopped is started."""
    _module_stack.up()
    return _module_stack
