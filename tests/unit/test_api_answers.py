"""What else the HTTP interface says: the status of an order, who may ask, every problem, and its own documents."""

import json
import uuid
from datetime import timedelta

import pytest

from services.producer.auth import is_loopback
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Artifact, Order
from shared.domain.task import Status, task_id_for
from tests.unit.api_lab import NOW, RED, Api, SlowRows, a_task, problem_of


@pytest.fixture
def api() -> Api:
    return Api()


def test_the_status_of_an_order_names_its_pictures_and_its_metadata(api: Api) -> None:
    task = a_task(status=Status.COMPLETED, version=4, attempt=1, order_id="o-9", changed_at=NOW + timedelta(seconds=9))
    picture = {"index": 0, "key": "k/1/0.png", "sha256": "ab", "bytes": 10, "media_type": "image/png"}
    picture |= {"width": 5, "height": 6}
    api.rows = SlowRows(task)
    api.rows.pictures = {task.id: [Artifact.model_validate(picture)]}
    answer = api.ask("GET", f"/v1/orders/{task.id}")
    assert answer.status_code == 200
    assert answer.json() == {
        "task_id": str(task.id),
        "status": "completed",
        "version": 4,
        "attempt": 1,
        "pool": "comfyui",
        "workflow": "paint",
        "priority": "normal",
        "order_id": "o-9",
        "idempotency_key": "k-1",
        "reason": None,
        "detail": None,
        "queue_position": None,
        "created_at": "2026-01-02T03:04:05Z",
        "changed_at": "2026-01-02T03:04:14Z",
        "finished_at": "2026-01-02T03:04:14Z",
        "not_before": None,
        "due_at": "2026-01-02T03:04:05Z",
        "deadline_at": "2026-01-03T03:04:05Z",
        "artifacts": [picture | {"url": f"/v1/orders/{task.id}/artifacts/0"}],
        "metadata": {"shop": 7},
    }


def test_a_row_whose_order_could_not_be_read_still_has_a_status(api: Api) -> None:
    task = a_task(body=None, status=Status.FAILED, reason="invalid_message", stage="orders")
    api.rows = SlowRows(task)
    body = api.ask("GET", f"/v1/orders/{task.id}").json()
    assert (body["status"], body["reason"], body["workflow"]) == ("failed", "invalid_message", None)


def test_before_the_row_exists_the_status_is_404_not_claimed_yet(api: Api) -> None:
    problem_of(api.ask("GET", f"/v1/orders/{uuid.uuid4()}"), 404, "not_claimed_yet")


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "/v1/orders/{id}"),
        ("POST", "/v1/orders/{id}/cancel"),
        ("GET", "/v1/orders/{id}/artifacts/0"),
        ("GET", "/v1/orders?idempotency_key=k-9"),
    ],
)
def test_an_order_that_is_purged_is_gone_and_not_unknown(api: Api, method: str, address: str) -> None:
    api.rows.rows.clear()
    api.rows.tombstones[task_id_for("k-9")] = Status.COMPLETED
    problem = problem_of(api.ask(method, address.format(id=task_id_for("k-9"))), 410, "purged")
    assert problem["task_id"] == str(task_id_for("k-9"))


def test_a_status_without_a_database_is_503(api: Api) -> None:
    def outage() -> None:
        raise DatabaseAway("connection refused")

    api.rows.outage = outage
    answer = api.ask("GET", f"/v1/orders/{uuid.uuid4()}")
    problem_of(answer, 503, "database_away")
    assert int(answer.headers["retry-after"]) > 0


def test_an_id_that_is_none_is_named(api: Api) -> None:
    body = problem_of(api.ask("GET", "/v1/orders/nothing"), 422, "invalid_request")
    assert [error["field"] for error in body["errors"]] == ["task_id"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"Host": "127.0.0.1:8080"}, 202),
        ({"Host": "localhost"}, 202),
        ({"Host": "[::1]:8080", "Origin": "http://localhost:3000"}, 202),
        ({"Host": "rebound.example:8080"}, 403),
        ({"Host": "127.0.0.1.nip.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_without_tokens_no_page_from_elsewhere_places_or_reads_orders(
    api: Api, given: dict[str, str], status: int
) -> None:
    assert api.place(RED, headers=given).status_code == status
    api.tokens = ["a-token-of-ours-1"]
    allowed = {"Authorization": "Bearer a-token-of-ours-1"}
    assert api.place(RED, headers=given | allowed).status_code == 202


def test_without_the_right_token_nothing_is_done_and_nothing_is_learned(api: Api) -> None:
    api.tokens = ["0123456789abcdef", "fedcba9876543210"]
    for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer schlüssel".encode()}):
        answer = api.place(RED, headers=given)
        problem_of(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        problem_of(api.ask("GET", "/v1/orders/no-id", headers=given), 401, "unauthorized")
    assert api.publisher.published == []
    for token in api.tokens:
        assert api.place(RED, headers={"Authorization": f"bearer {token}"}).status_code == 202


def test_a_token_for_reading_looks_and_changes_nothing(api: Api) -> None:
    api.tokens, api.read_tokens = ["0123456789abcdef"], ["fedcba9876543210"]
    task = a_task()
    api.rows.rows[task.id] = task
    reader = {"Authorization": "Bearer fedcba9876543210"}
    for path in ("/v1/orders", f"/v1/orders/{task.id}", "/v1/workflows"):
        assert api.ask("GET", path, headers=reader).status_code == 200
    problem_of(api.ask("GET", f"/v1/orders/{task.id}/artifacts/0", headers=reader), 404, "no_picture")
    problem_of(api.place(RED, headers=reader), 403, "forbidden")
    problem_of(api.place(b"no JSON", headers=reader), 403, "forbidden")
    problem_of(api.ask("POST", f"/v1/orders/{task.id}/cancel", headers=reader), 403, "forbidden")
    assert (api.publisher.published, api.rows.cancelled) == ([], [])
    problem_of(api.ask("GET", "/v1/orders", headers={"Authorization": "Bearer fedcba987654321"}), 401, "unauthorized")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_addresses_that_cannot_lead_elsewhere_are_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_wrong_addresses_and_methods_are_problems_too(api: Api) -> None:
    problem_of(api.ask("GET", "/v2/orders"), 404, "not_found")
    answer = api.ask("DELETE", "/v1/orders")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_a_bug_of_ours_shows_no_traceback(api: Api) -> None:
    def bug() -> None:
        raise ZeroDivisionError("secret")

    api.rows.outage = bug
    answer = api.ask("GET", f"/v1/orders/{uuid.uuid4()}")
    problem_of(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_the_openapi_document_names_every_answer_and_every_field_of_an_order(api: Api) -> None:
    document = api.ask("GET", "/openapi.json").json()
    place = document["paths"]["/v1/orders"]["post"]
    assert set(place["responses"]) == {"202", "400", "401", "403", "408", "409", "413", "422", "429", "503"}
    schema = place["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(Order.model_fields)
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(document["components"]["schemas"])


def test_the_page_for_readers_has_every_operation_and_runs_no_script(api: Api) -> None:
    api.tokens = ["0123456789abcdef"]
    answer = api.ask("GET", "/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    for path, operations in api.ask("GET", "/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in answer.text
            assert operation["summary"] in answer.text
    for example in ("shop-4711-1", "key_reused", "event: processing", "refunded"):
        assert example in answer.text
    for field in Order.model_fields:
        assert f"<code>{field}</code>" in answer.text
    assert "Successful Response" not in answer.text


def test_everything_in_the_openapi_document_is_described(api: Api) -> None:
    for operations in api.ask("GET", "/openapi.json").json()["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                assert parameter["description"]
            for body in operation.get("requestBody", {}).get("content", {}).values():
                for name, field in body["schema"]["properties"].items():
                    assert field.get("description"), name
