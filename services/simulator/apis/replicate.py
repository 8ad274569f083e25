"""Replicate's predictions.

Source: replicate.com/docs (lifecycle, rate limits, data retention).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

from ..wire import Request, Response
from .api import Api, object_of, seed_in
from .jobs import Job

_SUBMIT: Final = re.compile(r"/v1/(?:models/([\w.-]+/[\w.-]+)/)?predictions")
_JOB: Final = re.compile(r"/v1/predictions/([^/]+)(/cancel)?")
_FLAGGED: Final = "The input or output was flagged as sensitive. Please try again with different inputs. (E005)"


def _error(status: int, title: str, detail: str) -> tuple[int, Any]:
    return status, {"title": title, "detail": detail, "status": status}


class Replicate(Api):
    name = "replicate"
    no_key = _error(401, "Unauthenticated", "You did not pass a valid authentication token")
    too_fast = (429, {"detail": "Request was throttled. Your rate limit resets in ~1s."})
    no_money = _error(402, "Insufficient credit", "You have insufficient credit to run this model.")
    moderated = _error(422, "Input validation failed", _FLAGGED)

    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        if (found := _SUBMIT.fullmatch(path)) is not None:
            if request.method == "POST":
                return path, self._submit(request, found[1] or "")
            return path, self._list(request)
        if (found := _JOB.fullmatch(path)) is not None:
            job = self.jobs.find(found[1])
            if job is None:
                return "/v1/predictions/*", Response.json(_error(404, "Not found", "no such prediction")[1], 404)
            if found[2] is not None and request.method == "POST":
                self.jobs.cancel(job)
                return "/v1/predictions/*/cancel", Response.json(self._prediction(job))
            return "/v1/predictions/*", Response.json(self._prediction(job))
        return path, Response.json(_error(404, "Not found", "no such path")[1], 404)

    def id_of(self, random: str) -> str:
        return random.replace("-", "")[:26]

    def _submit(self, request: Request, model: str) -> Response:
        body = object_of(request)
        if body is None or not isinstance(body.get("input"), dict):
            return Response.json(_error(422, "Input validation failed", "- input is required\n")[1], 422)
        if (refused := self.refusal(request, str(body))) is not None:
            return refused
        job = self.start(model, body, seed_in(body))
        answer = Response.json(self._prediction(job), 201)
        answer.prompt_id = job.id
        return answer

    def _prediction(self, job: Job) -> dict[str, Any]:
        state = self.state(job)
        shown: dict[str, Any] = {
            "id": job.id,
            "model": job.model,
            "version": "hidden",
            "input": job.body["input"],
            "logs": "",
            "output": None,
            "data_removed": False,
            "error": None,
            "source": "api",
            "status": {"waiting": "starting", "running": "processing", "cancelled": "canceled"}.get(state, "succeeded"),
            "created_at": f"{job.at:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z",
            "urls": {
                name: f"{self.origin}/v1/predictions/{job.id}{end}"
                for name, end in (("get", ""), ("cancel", "/cancel"))
            },
        }
        if state != "ended":
            return shown
        if self.is_gone(job):
            return shown | {"data_removed": True, "input": {}}
        match job.outcome:
            case "failed":
                return shown | {"status": "failed", "error": "CUDA out of memory."}
            case "moderated":
                return shown | {"status": "failed", "error": _FLAGGED}
            case "unknown_state":
                return shown | {"status": "reviewing"}
            case "no_picture":
                return shown | {"output": []}
            case _:
                return shown | {"output": [self.address(job)], "metrics": {"predict_time": job.seconds}}

    def _list(self, request: Request) -> Response:
        try:
            after, before = (datetime.fromisoformat(request.query[n]) for n in ("created_after", "created_before"))
        except (KeyError, ValueError):
            return Response.json(_error(422, "Input validation failed", "created_after and created_before")[1], 422)
        rows = [self._prediction(job) for job in self.jobs.between(after, before)]
        return Response.json({"next": None, "previous": None, "results": rows})
