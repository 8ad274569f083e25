"""Long tests: `make test-slow` runs them, `make test` leaves them out. Each may last ten minutes."""

import pytest

_SECONDS = 600
#: These begin, so that the other process has all the rest meanwhile.
_LONGEST = ("test_drill.py", "test_machine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.path.relative_to(item.config.rootpath).parts and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))
    items.sort(key=lambda item: item.path.name not in _LONGEST)
