"""The tables of the README and of docs/metrics.md are what the code says."""

import re
from pathlib import Path

from deploy.reference import PAGE, page
from shared.config import settings_table
from shared.domain.task import Reason
from shared.observe.catalog import CATALOGUE

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_lists_each_setting_and_no_other() -> None:
    _, found = README.read_text().split("<!-- settings -->\n")
    found, _ = found.split("<!-- /settings -->")
    assert found == settings_table()


def test_the_page_of_metrics_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_what_is_said_to_be_measured_instead_is_measured() -> None:
    _, dropped = page().split("## Not kept")
    instead = set(re.findall(r"`(\w+_\w+)(?:\{[^}]*\})?`", dropped))
    assert {name for name in instead if not name.startswith("rabbitmq_")} <= {metric.name for metric in CATALOGUE}


def test_the_readme_says_once_what_to_do_with_each_reason_of_a_dead_letter() -> None:
    table = README.read_text().partition("| reason | what it means | first step |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(Reason)
