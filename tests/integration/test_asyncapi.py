"""docs/messages/asyncapi.json is an AsyncAPI 3.0 document, says the specification's own JSON Schema."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from deploy.contract.asyncapi import document
from tests.programs import npm_install


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("asyncapi")
    npm_install(folder, "@asyncapi/specs@6.11.1")
    schema = folder / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    return Draft7Validator(json.loads(schema.read_text()))


def test_the_document_is_valid(validator: Any) -> None:
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document())] == []


@pytest.mark.parametrize(
    "path", [Path("info"), Path("channels/orders/bindings/amqp/is"), Path("operations/sendEvent/action")]
)
def test_a_document_with_a_mistake_is_not(validator: Any, path: Path) -> None:
    broken = document()
    place: Any = broken
    for step in path.parts[:-1]:
        place = place[step]
    place[path.name] = "wrong"
    assert not validator.is_valid(broken)
