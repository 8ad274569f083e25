"""The simulators the conformance suite talks to: one process per kind for the whole run, made new for each test."""

from collections.abc import Iterator

import pytest

from tests.conformance.simulated import Simulated, simulated


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
