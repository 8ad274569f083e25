"""The README's tables are what the code says."""

from pathlib import Path

import pytest

from shared.config import settings_table
from shared.observe.catalog import catalogue_table

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table()), ("metrics", catalogue_table())])
def test_the_readme_lists_each_of_them_and_no_other(name: str, table: str) -> None:
    _, found = README.read_text().split(f"<!-- {name} -->\n")
    found, _ = found.split(f"<!-- /{name} -->")
    assert found == table
