"""The simulators the conformance suite talks to: one process per kind for the whole run, made new for each test."""

from collections.abc import Iterator

import pytest

from deploy.local import Stack
from tests.conformance.simulated import Simulated, simulated
from tests.conformance.simulated_apis import SimulatedApis, quick_apis
from tests.servers import new_database


@pytest.fixture(scope="session")
def _modern() -> Iterator[Simulated]:
    with simulated() as server:
        yield server


@pytest.fixture(scope="session")
def _legacy() -> Iterator[Simulated]:
    with simulated("--generation", "legacy") as server:
        yield server


@pytest.fixture(scope="session")
def _small() -> Iterator[Simulated]:
    with simulated("--max-upload-size", "1") as server:
        yield server


@pytest.fixture
def modern(_modern: Simulated) -> Simulated:
    """A server of today's generation."""
    _modern.start_over()
    return _modern


@pytest.fixture
def legacy(_legacy: Simulated) -> Simulated:
    """A server without /api/jobs."""
    _legacy.start_over()
    return _legacy


@pytest.fixture
def small(_small: Simulated) -> Simulated:
    """A modern server that takes bodies up to 1 MB."""
    _small.start_over()
    return _small


@pytest.fixture(params=["modern", "legacy"])
def either(request: pytest.FixtureRequest) -> Simulated:
    """One of both generations, for facts that hold on both."""
    server: Simulated = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def _apis() -> Iterator[SimulatedApis]:
    with quick_apis() as running:
        yield running


@pytest.fixture
def apis(_apis: SimulatedApis) -> SimulatedApis:
    """The five image APIs, without faults."""
    _apis.faults(clear=True)
    return _apis


@pytest.fixture(scope="module")
def one_database(stack: Stack) -> str:
    """A migrated database that the module's tests share; each empties it first."""
    return new_database(stack)
