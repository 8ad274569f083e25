"""Tests of docker-compose.yml: `make compose-test`. `make test` leaves them out, since they need a Docker engine."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.project import Project, engine_problem

_PROJECT = pytest.StashKey[Project]()


def pytest_sessionstart() -> None:
    if problem := engine_problem():
        raise pytest.UsageError(problem)


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """Three submitters, two pollers, one of everything else. All of it, volumes too, is gone after the module."""
    project = Project()
    request.config.stash[_PROJECT] = project
    try:
        project.up(submitters=3, pollers=2)
        yield project
    finally:
        project.wipe()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    project = item.config.stash.get(_PROJECT, None)
    if report.failed and report.when == "call" and project is not None:
        report.sections.append(("containers", project.logs()))
    return report
