"""What the five have in common: who may call, what a POST makes, where pictures are, when they are gone."""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from PIL import Image

from ..wire import Request, Response
from .jobs import Job, Jobs

_SIDE: Final = 96


class Strikes(Protocol):
    """What an API asks of the faults."""

    @property
    def seconds_per_image(self) -> float: ...

    def strikes(self, name: str, method: str, path: str, **wanted: object) -> dict[str, Any] | None: ...

    def strikes_prompt(self, name: str, text: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Setting:
    """Of one API.

    origin -- the address callers reach this server at, without a slash at its end
    kept   -- seconds for which the result of an ended job can be had
    """

    origin: str
    kept: float


class Api(ABC):
    """One provider below its own prefix."""

    name: str
    #: Answers as (status, body): without a key, too fast, no money left, words refused.
    no_key: tuple[int, Any]
    too_fast: tuple[int, Any]
    no_money: tuple[int, Any]
    moderated: tuple[int, Any]
    too_fast_headers: Mapping[str, str] = {}

    def __init__(self, jobs: Jobs, faults: Strikes, setting: Setting) -> None:
        self.jobs = jobs
        self._faults = faults
        self._setting = setting

    @property
    def origin(self) -> str:
        return f"{self._setting.origin}/{self.name}"

    def handle(self, request: Request, path: str) -> tuple[str, Response]:
        """The route for the log, and the answer. path -- without the prefix"""
        if path.startswith("/files/"):
            return f"/{self.name}/files/*", self._file(path.removeprefix("/files/").removesuffix(".png"))
        if self.key_of(request) is None:
            return f"/{self.name}{path}", Response.json(self.no_key[1], self.no_key[0])
        route, response = self.answer(request, path)
        return f"/{self.name}{route}", response

    @abstractmethod
    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        """Of a caller with a key. The route has * for what differs from job to job."""

    def key_of(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key if scheme in ("Bearer", "Key") and key else None

    def refusal(self, request: Request, text: str) -> Response | None:
        """Why nothing is started now; None when it may be."""
        route = f"/{self.name}{request.path.removeprefix(f'/{self.name}')}"
        if self._faults.strikes("no_money", "POST", route):
            return Response.json(self.no_money[1], self.no_money[0])
        if self._faults.strikes("rate_limited", "POST", route) or self.jobs.is_full():
            answer = Response.json(self.too_fast[1], self.too_fast[0])
            answer.headers.update(self.too_fast_headers)
            return answer
        if self._faults.strikes_prompt("moderated", text):
            return Response.json(self.moderated[1], self.moderated[0])
        return None

    def start(self, model: str, body: Any, seed: int) -> Job:
        text = json.dumps(body)
        rule = self._faults.strikes_prompt("outcome", text)
        slow = self._faults.strikes_prompt("slow_job", text)
        seconds = slow["seconds"] if slow else self._faults.seconds_per_image
        outcome = rule["kind"] if rule else "success"
        return self.jobs.start(self.id_of(str(uuid.uuid4())), model, body, seed=seed, seconds=seconds, outcome=outcome)

    def id_of(self, random: str) -> str:
        """This API's way to write a job's id."""
        return random

    def state(self, job: Job) -> str:
        return job.state(time.monotonic())

    def is_gone(self, job: Job) -> bool:
        """Whether it ended so long ago that nothing is kept of it, or a fault has lost it."""
        return (job.outcome == "lost" and self.state(job) == "ended") or (
            time.monotonic() > job.ends + self._setting.kept
        )

    def address(self, job: Job) -> str:
        """Where its picture can be had, without a key."""
        return f"{self.origin}/files/{job.id}.png"

    def encoded(self, job: Job) -> str:
        return base64.b64encode(picture(job.seed)).decode()

    def _file(self, id_: str) -> Response:
        job = self.jobs.find(id_)
        if job is None or self.is_gone(job) or self._faults.strikes("expired", "GET", f"/{self.name}/files/{id_}.png"):
            return Response(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
        self.jobs.counts["downloads"] += 1
        return Response(200, picture(job.seed), "image/png")


def picture(seed: int) -> bytes:
    """A PNG of its own for each seed."""
    colour = (seed & 0xFF, seed >> 8 & 0xFF, seed >> 16 & 0xFF)
    image = Image.linear_gradient("L").resize((_SIDE, _SIDE))
    file = io.BytesIO()
    Image.merge("RGB", [image.point(lambda value, c=c: (value + c) % 256) for c in colour]).save(file, "PNG")
    return file.getvalue()


def object_of(request: Request) -> dict[str, Any] | None:
    """The JSON object of the body; None when it is none."""
    try:
        body = request.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def seed_in(value: Any) -> int:
    """The number called seed, wherever it stands; 0 without one."""
    if isinstance(value, dict):
        found = value.get("seed")
        if isinstance(found, int):
            return found
        return next((seed for each in value.values() if (seed := seed_in(each))), 0)
    if isinstance(value, list):
        return next((seed for each in value if (seed := seed_in(each))), 0)
    return 0
