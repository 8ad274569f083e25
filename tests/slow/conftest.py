"""Long tests: `make test-slow` runs them, `make test` leaves them out. Each may last ten minutes."""

import pytest

_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.path.relative_to(item.config.rootpath).parts and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))
