"""Who gets into the console: signing in and out, roles, forms of our own pages alone, headers of every answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.users import Role
from tests.integration.console_lab import ConsoleLab


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path)
    yield lab
    lab.close()


def test_whoever_is_not_signed_in_is_sent_to_the_login_page_and_comes_back(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    browser = lab.browser()

    sent = browser.get("/?a=b%26c")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/login?next=%2F%3Fa%3Db%2526c")

    assert 'value="/?a=b%26c"' in browser.get(sent.headers["Location"]).text
    signed = browser.sign_in("ann", next="/?a=b%26c")
    assert (signed.status_code, signed.headers["Location"]) == (303, "/?a=b%26c")
    assert browser.get("/").status_code == 200


def test_the_overview_says_that_all_is_well(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    lab.exporter.turn()

    page = lab.as_(Role.VIEWER).get("/")

    assert page.status_code == 200
    assert "All is well" in page.text
