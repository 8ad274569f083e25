"""The web console in this process, with a database of its own and a browser that runs no scripts."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from httpx import Response
from starlette.types import ASGIApp

from services.ops.console.app import create_app
from services.ops.console.parts import Parts
from services.ops.exporter import Exporter
from services.ops.replay import Replayer
from shared.database.replays import Replays
from shared.database.users import Role, Users
from shared.domain.messages import Message
from shared.domain.password import Cost, hash_password
from shared.domain.retry import RetryPolicy
from shared.providers.offered import Offered
from shared.providers.workflow import load_workflows
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows

PASSWORD = "correct horse battery"
#: A hash that takes no time: what a good one costs is not these tests' business.
CHEAP = Cost(log_n=2, r=1, p=1)
ORIGIN = "http://console.test"


class Browser:
    """One person's: keeps cookies, sends Origin, and finds the word of its session on the pages it is shown."""

    def __init__(self, app: ASGIApp, origin: str = ORIGIN) -> None:
        self._app = app
        self._origin = origin
        self.cookies = httpx.Cookies()

    def ask(self, method: str, path: str, **request: Any) -> Response:
        """The answer as it comes: nobody follows a redirect."""

        async def call() -> Response:
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=self._origin, cookies=self.cookies) as client:
                answer = await client.request(method, path, **request)
                self.cookies = client.cookies
                return answer

        return asyncio.run(call())

    def get(self, path: str, **headers: str) -> Response:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, *, csrf: str | None = None, origin: str | None = ORIGIN, **fields: Any) -> Response:
        """csrf -- None: the right one"""
        word = self.csrf() if csrf is None else csrf
        headers = {} if origin is None else {"Origin": origin}
        return self.ask("POST", path, data={"csrf": word} | fields, headers=headers)

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get("/").text)
        return found[1] if found else ""

    def sign_in(self, name: str, password: str = PASSWORD, **fields: str) -> Response:
        return self.ask(
            "POST", "/login", data={"name": name, "password": password} | fields, headers={"Origin": self._origin}
        )


class ConsoleLab(Rows):
    """published -- what the console sent to the broker; `away` -- raised instead of sending"""

    def __init__(self, url: str, folder: Path, *, console_url: str | None = None) -> None:
        super().__init__(url)
        self.published: list[Message] = []
        self.away: Exception | None = None
        self.store = Artifacts(str(folder))
        self.users = Users(self.engine)
        self.exporter = Exporter(self.engine, MEASURED, pools=[POOL], backends=["gpu-1"])
        replayer = Replayer(Replays(self.engine, 3600.0), publish=self._publish, pools=[POOL], metrics=MEASURED)
        self.parts = Parts(
            engine=self.engine,
            store=self.store,
            replayer=replayer,
            offered=Offered(frozenset({POOL, "other-pool"}), {}, load_workflows(Path("deploy/workflows"))),
            seen=lambda: self.exporter.seen,
            pools=[POOL],
            retry=RetryPolicy(max_charged=5, first_seconds=10.0, factor=3.0, cap_seconds=900.0),
            default_deadline_seconds=3600.0,
            url=console_url,
        )
        self.app = create_app(self.parts)

    def browser(self) -> Browser:
        """Of nobody yet."""
        return Browser(self.app)

    def as_(self, role: Role, name: str = "") -> Browser:
        """The browser of a person of this role, who is signed in."""
        name = name or f"a-{role}"
        self.users.add(name, role, hash_password(PASSWORD, CHEAP), "test")
        browser = self.browser()
        assert browser.sign_in(name).status_code == 303
        return browser

    def actions(self) -> list[tuple[str, str, str]]:
        """What people did: who, what, to what; making users left out."""
        rows = self.sql("select by_whom, action, subject from operator_actions where action <> 'user add' order by id")
        return [(row.by_whom, row.action, row.subject) for row in rows]

    def _publish(self, messages: Sequence[Message]) -> None:
        if self.away is not None:
            raise self.away
        self.published += messages
