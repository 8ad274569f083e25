"""In docker-compose.yml no service starts before what it stands on was looked at."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.domain.fit import CONNECTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", sorted({*CONNECTIONS, "producer"}))
def test_every_service_waits_for_the_look_before_the_start(services: dict[str, Any], name: str) -> None:
    assert services[name]["depends_on"] == {"start-check": {"condition": "service_completed_successfully"}}


def test_the_look_comes_once_after_the_schema_and_stands_on_what_the_services_have(services: dict[str, Any]) -> None:
    check = services["start-check"]
    assert check["command"] == ["darkroom", "doctor", "--start"]
    assert check["restart"] == "no"
    assert check["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "rabbitmq": {"condition": "service_healthy"},
    }
    for same in ("environment", "env_file", "volumes"):
        assert check[same] == services["submitter"][same]
