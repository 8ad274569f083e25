"""Work that kills: real workers under a supervisor, and after every test the audit of tests/e2e/promises.py."""

from tests.e2e.conftest import _audited, build, pytest_runtest_makereport

__all__ = ["_audited", "build", "pytest_runtest_makereport"]
