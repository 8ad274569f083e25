"""A browser for each module: Debian's Chromium, which `make test` has installed, without a window."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from deploy.local.install import chromium
from tests.browser.visits import LIMIT_MS, Visit

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A second to start. As root, Chromium's sandbox does not run; nothing here visits a foreign page."""
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        program = chromium(lambda _: None)
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens windows; each of them must have behaved well when the test is over."""
    visits: list[Visit] = []

    def open_(url: str, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield open_
    for visit in visits:
        visit.close()
    for visit in visits:
        visit.well_behaved()
