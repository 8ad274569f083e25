"""A submitter on one test's database, with an API of a provider table in place of the fake provider."""

from typing import Any

from shared.domain.task import Task
from shared.providers.table import Table
from tests.integration.api_lab import a_picture, in_base64, plain, provider
from tests.integration.scripted_server import Request, Server, answer
from tests.integration.submit_lab import Lab

INPUTS = {"prompt": "a lighthouse"}


class ApiLab(Lab):
    """The same submitter with a table's provider instead of the fake one."""

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url, lease_seconds=900)  # longer than any table's longest call
        self.server = server
        self.serve(plain())

    def serve(self, table: Table) -> None:
        self.providers["gpu-1"] = provider(table, self.server.url, name="gpu-1")

    def order(self, **fields: Any) -> Task:
        return self.pending(inputs=INPUTS, **fields)

    def posts(self) -> int:
        return sum(call.startswith("POST ") for call in self.server.calls)

    def let_lease_end(self, task: Task) -> None:
        self.age(task, free_at=1)

    def attempt(self, task: Task) -> Any:
        return self.attempts(task)[-1]

    def backend(self) -> Any:
        return self.slots.backends()[0]


def hung_up(_: Request) -> bytes:
    return b""


def openai() -> bytes:
    return answer(200, {"data": [{"b64_json": in_base64(a_picture())}], "usage": {"total_tokens": 9}})
