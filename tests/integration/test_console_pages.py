"""The console's pages: what they say, how they are found, and foreign text that stays text."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.users import Role
from tests.integration.console_lab import ConsoleLab
from tests.integration.console_pages import read
from tests.integration.hostile_rows import HOSTILE, SHOWN, a_hostile_order


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path)
    yield lab
    lab.close()


def test_foreign_text_stays_text_on_every_page(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.EDITOR)

    paths = ["/", "/orders", f"/orders/{task.id}", "/backends", "/audit"]
    paths += ["/letters", "/letters/list", "/letters/groups/f", "/letters/1", "/plans", "/plans/1", "/plans/2"]
    for path in paths:
        answer = browser.get(path)
        page = read(answer.text)
        assert answer.status_code == 200, path
        assert SHOWN in page.text, path
        assert not page.all("x-evil"), path
        assert "onx" not in page.attributes, path
        assert all(link.startswith(("/", "#")) for link in page.links), path
        for link in page.links:
            assert browser.get(link).status_code in (200, 303, 404), (path, link)


def test_whatever_somebody_types_into_a_filter_comes_back_as_text(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER)

    for path in ("/orders", "/audit"):
        for name in ("q", "pool", "subject", "by", "action"):
            answer = browser.ask("GET", path, params={name: HOSTILE})
            assert answer.status_code == 200
            assert not read(answer.text).all("x-evil"), (path, name)


def test_a_picture_is_served_as_one_and_as_nothing_else(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.VIEWER)

    answer = browser.get(f"/orders/{task.id}/pictures/1/0")

    assert answer.content == lab.store.read(f"{task.id}/1/0.png")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert browser.get(f"/orders/{task.id}/pictures/1/1").status_code == 404
    assert browser.get(f"/orders/{task.id}/pictures/1/{2**40}").status_code == 404
