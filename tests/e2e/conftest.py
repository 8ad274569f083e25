"""Each module here has a fixture `system`; after every test the audit of promises.py runs over it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.local import Stack
from tests.e2e.promises import audit
from tests.e2e.system import System
from tests.servers import VhostPool, new_database

Build = Callable[..., System]
_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="module")
def build(stack: Stack, _vhosts: VhostPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Makes a System with a fresh database and virtual host; all of it is gone after the module."""
    made: list[System] = []

    def make(**options: Any) -> System:
        folder = tmp_path_factory.mktemp("system")
        system = System(folder, new_database(stack), stack.broker.url_of(_vhosts.take()), **options)
        made.append(system)
        return system

    yield make
    for system in made:
        system.stop()


@pytest.fixture(autouse=True)
def _audited(request: pytest.FixtureRequest, system: System) -> Iterator[None]:
    yield
    if not request.node.stash.get(_FAILED, False):
        audit(system)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.failed:
        item.stash[_FAILED] = True
        system = getattr(item, "funcargs", {}).get("system")
        if system is not None:
            report.sections.append(("workers", system.tails()))
    return report
