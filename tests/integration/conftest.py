"""What tests of several modules here ask for."""

from collections.abc import Iterator

import pytest

from tests.integration.scripted_server import Server, scripted_server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own that does as it is told."""
    with scripted_server() as server:
        yield server
