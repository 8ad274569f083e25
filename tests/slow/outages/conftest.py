"""Outages: real servers, real workers, and after every test the audit of tests/e2e/promises.py."""

from collections.abc import Iterator

import pytest

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.conftest import _audited, build, pytest_runtest_makereport
from tests.e2e.outage import two_of_each, under_way
from tests.e2e.system import System

__all__ = ["_audited", "build", "pytest_runtest_makereport"]


@pytest.fixture(scope="module")
def system(_module_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """On servers that the tests stop and kill; other modules have a system of their own."""
    with two_of_each(_module_stack, tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture
def orders(system: System) -> list[Order]:
    return under_way(system)
