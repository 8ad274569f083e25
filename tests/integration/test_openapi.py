"""The OpenAPI document is true: whatever is sent, the answer is one that it names, in the form it names."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks

from deploy.local import Stack
from shared.storage import Artifacts
from tests.integration.producer_lab import producers
from tests.integration.rows_lab import Lab
from tests.servers import new_database

TOKEN = "token-of-the-openapi-test"
READER = "token-of-its-reader"
OPERATIONS = (
    "placeOrder",
    "listOrders",
    "readOrder",
    "cancelOrder",
    "getPicture",
    "headPicture",
    "followOrder",
    "listWorkflows",
)
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
]


class Interface:
    """A running producer: its document, and rows that requests are made to hit."""

    def __init__(self, document: Any, lab: Lab) -> None:
        self.document = document
        self._ended = [lab.completed().id, lab.failed().id]
        self._any = [*self._ended, lab.pending().id]

    def aim(self, case: schemathesis.Case) -> None:
        """Half of the task ids that were made up become those of rows."""
        try:
            made_up = uuid.UUID(str(case.path_parameters.get("task_id")))
        except ValueError:
            return
        if case.operation.definition.raw["operationId"] == "followOrder":
            # Of an order without a row, and of one that goes on, a stream says nothing for seconds.
            case.path_parameters["task_id"] = str(self._ended[made_up.int % len(self._ended)])
        elif made_up.int % 2:
            case.path_parameters["task_id"] = str(self._any[made_up.int % len(self._any)])


@pytest.fixture(scope="module")
def interface(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interface]:
    folder: Path = tmp_path_factory.mktemp("openapi")
    lab = Lab(new_database(stack))
    lab.artifacts = Artifacts(str(folder / "pictures"))
    with producers(folder) as start:
        settings = {"DARKROOM_ARTIFACTS_URL": str(folder / "pictures"), "DARKROOM_HTTP_TOKENS": TOKEN}
        settings["DARKROOM_HTTP_READ_TOKENS"] = READER
        producer = start(lab.url, stack.amqp_url, **settings)
        yield Interface(schemathesis.openapi.from_url(f"{producer.url}/openapi.json"), lab)
    lab.close()


def test_every_operation_of_the_document_is_tried(interface: Interface) -> None:
    found = [found.ok().definition.raw for found in interface.document.get_all_operations()]
    assert sorted(operation["operationId"] for operation in found) == sorted(OPERATIONS)
    for operation in found:
        assert operation["summary"]
        assert operation["description"]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_no_answer_is_undocumented(interface: Interface, operation_id: str, mode: GenerationMode) -> None:
    """positive: what the document allows; negative: what it does not."""
    if (operation_id, mode) == ("listWorkflows", GenerationMode.NEGATIVE):
        return  # it takes nothing that could be wrong
    operation = interface.document.find_operation_by_id(operation_id)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        interface.aim(case)
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS, timeout=20)

    ask()


@pytest.mark.parametrize("operation_id", OPERATIONS)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer of-another-house"}, {"Authorization": TOKEN}], ids=["no", "wrong", "bare"]
)
def test_without_a_token_every_request_is_refused_alike(
    interface: Interface, operation_id: str, headers: dict[str, str]
) -> None:
    """Whatever else is wrong with it: nothing is learned of orders, nor of what the interface would take."""
    operation = interface.document.find_operation_by_id(operation_id)

    cases = operation.as_strategy()
    if operation_id != "listWorkflows":  # it takes nothing that could be wrong
        cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @given(case=cases)
    @settings(max_examples=5, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        interface.aim(case)
        case.headers = {name: value for name, value in (case.headers or {}).items() if name != "Authorization"}
        answer = case.call_and_validate(headers=headers, checks=CHECKS, timeout=20)
        assert answer.status_code in {401, 404, 405}  # an id that holds a slash is another address

    ask()


@pytest.mark.parametrize("operation_id", ["placeOrder", "cancelOrder"])
def test_with_a_token_for_reading_every_change_is_refused_alike(interface: Interface, operation_id: str) -> None:
    operation = interface.document.find_operation_by_id(operation_id)

    @given(case=operation.as_strategy())
    @settings(max_examples=5, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        interface.aim(case)
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {READER}"}, checks=CHECKS, timeout=20)
        assert answer.status_code in {403, 404, 405}

    ask()
