"""One port, five APIs, each below its own name; statistics and faults as those of the simulated ComfyUI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ..faults import Faults
from ..faults import Setting as Fault
from ..faulty import FaultyServer
from ..records import Records
from ..wire import Request, Response
from .api import Api, Setting
from .dashscope import DashScope
from .fal import Fal
from .jobs import Jobs
from .openai import OpenAI
from .replicate import Replicate
from .runpod import RunPod

APIS: Final[tuple[type[Api], ...]] = (OpenAI, DashScope, Fal, Replicate, RunPod)
#: What of the records has a meaning here.
_TOLD: Final = frozenset({"now", "started_at", "calls", "statuses", "log"})
_MAX_BODY: Final = 64 * 1024 * 1024

_MATCHED: Final[Fault] = {"match": "", "times": None, "probability": 1.0}
_ANYWHERE: Final[Fault] = {"paths": ["*"], "methods": None, "times": None, "probability": 1.0}
API_SHAPES: Final[dict[str, Fault]] = {
    "rate_limited": _ANYWHERE,
    "no_money": _ANYWHERE,
    "expired": _ANYWHERE,
    "moderated": _MATCHED,
    "outcome": {**_MATCHED, "kind": "failed"},
    "slow_job": {**_MATCHED, "seconds": 5.0},
    "say": {**_ANYWHERE, "status": 200, "headers": {}, "body": None, "accept": False},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, checked."""

    host: str
    port: int
    seconds_per_image: float
    kept_seconds: float
    max_in_flight: int | None
    starts_per_second: int | None
    origin: str | None
    seed: int | None


class ApiServer(FaultyServer):
    """All five."""

    def __init__(self, options: Options) -> None:
        faults = Faults({"seconds_per_image": options.seconds_per_image}, options.seed, API_SHAPES)
        super().__init__(options.host, options.port, faults, Records())
        self.max_body = _MAX_BODY
        setting = Setting(options.origin or f"http://{options.host}:{self.port}", options.kept_seconds)
        self._apis = {
            kind.name: kind(Jobs(options.max_in_flight, options.starts_per_second), faults, setting) for kind in APIS
        }

    def route(self, path: str) -> str:
        return path

    def carry_out(self, request: Request) -> tuple[str, Response]:
        name, _, rest = request.path.removeprefix("/").partition("/")
        api = self._apis.get(name)
        said = self._faults.strikes("say", request.method, request.path)
        if said is None:
            if api is None:
                return request.path, Response.json({"error": f"no API is called {name!r}"}, 404)
            return api.handle(request, f"/{rest}")
        route, carried_out = request.path, None
        if said["accept"] and api is not None:
            route, carried_out = api.handle(request, f"/{rest}")
        body = said["body"] if isinstance(said["body"], str) else json.dumps(said["body"])
        headers = dict(said["headers"])
        kind = headers.pop("Content-Type", "application/json")
        response = Response(int(said["status"]), body.encode(), kind, headers)
        response.prompt_id = carried_out.prompt_id if carried_out is not None else None
        return route, response

    def statistics(self, request: Request) -> dict[str, Any]:
        described = self._records.describe(request.query.get("log") != "0", with_executions=False)
        told = {name: value for name, value in described.items() if name in _TOLD}
        return told | {"apis": {name: api.jobs.describe() for name, api in self._apis.items()}}
