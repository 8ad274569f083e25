"""docs/outages.md has a row for every test of an outage, and none for a test that is not there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "outages.md").read_text()
COLUMNS = 5


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def outages() -> set[str]:
    files = [ROOT / "tests" / "e2e" / "test_outages.py", *(ROOT / "tests" / "slow" / "outages").glob("test_*.py")]
    return {
        node.name
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_outage_that_is_tested_is_explained_once_and_none_is_made_up() -> None:
    named = [name for row in rows() for name in re.findall(r"`(test_\w+)`", row[-1])]
    assert sorted(named) == sorted(outages())


def test_each_row_says_what_happens_what_users_see_what_recovers_and_which_exceptions_were_counted() -> None:
    assert rows()
    assert [row for row in rows() if len(row) != COLUMNS or not all(row)] == []
