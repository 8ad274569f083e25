"""The README's tables are what the code says."""

import re
from pathlib import Path

import pytest

from shared.config import settings_table
from shared.domain.task import Reason
from shared.observe.catalog import catalogue_table

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table()), ("metrics", catalogue_table())])
def test_the_readme_lists_each_of_them_and_no_other(name: str, table: str) -> None:
    _, found = README.read_text().split(f"<!-- {name} -->\n")
    found, _ = found.split(f"<!-- /{name} -->")
    assert found == table


def test_the_readme_says_once_what_to_do_with_each_reason_of_a_dead_letter() -> None:
    table = README.read_text().partition("| reason | what it means | first step |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(Reason)
