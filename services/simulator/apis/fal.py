"""fal's queue: status and result at addresses that come with the job.

Source: docs.fal.ai (queue, inference API, errors, request errors, platform API).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

from ..wire import Request, Response
from .api import Api, object_of, seed_in
from .jobs import Job

_JOB: Final = re.compile(r"/([\w.-]+/[\w.-]+)/requests/([^/]+)(/status|/cancel)?")
_LIST: Final = "/v1/models/requests/by-endpoint"
_FLAGGED: Final = "The content was flagged by a content checker."


class Fal(Api):
    name = "fal"
    no_key = (401, {"detail": "Cannot access application. Authentication is required to access this application."})
    too_fast = (429, {"detail": "Too many requests"})
    too_fast_headers = {"Retry-After": "1"}  # noqa: RUF012 - of the class, never written
    no_money = (403, {"detail": "User is locked. Reason: Exhausted balance. Top up your balance."})
    moderated = (422, {"detail": [{"loc": ["body", "prompt"], "msg": _FLAGGED, "type": "content_policy_violation"}]})

    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        if path == _LIST:
            return path, self._list(request)
        if (found := _JOB.fullmatch(path)) is not None:
            job = self.jobs.find(found[2])
            what = found[3] or ""
            return f"/{found[1]}/requests/*{what}", self._about(request.method, job, what)
        if request.method == "POST" and path.count("/") >= 2:
            return path, self._submit(request, path.removeprefix("/"))
        return path, Response.json({"detail": "Not Found"}, 404)

    def _submit(self, request: Request, model: str) -> Response:
        body = object_of(request)
        if body is None:
            return Response.json(
                {"detail": [{"loc": ["body"], "msg": "not a JSON object", "type": "json_invalid"}]}, 422
            )
        if (refused := self.refusal(request, str(body))) is not None:
            return refused
        job = self.start(model, body, seed_in(body))
        answer = Response.json(
            {"request_id": job.id, "status": "IN_QUEUE", "queue_position": 0, **self._addresses(job)}
        )
        answer.prompt_id = job.id
        return answer

    def _addresses(self, job: Job) -> dict[str, str]:
        owner, name = job.model.split("/")[:2]
        base = f"{self.origin}/{owner}/{name}/requests/{job.id}"
        return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}

    def _about(self, method: str, job: Job | None, what: str) -> Response:
        if job is None or self.is_gone(job):
            return Response.json({"status": "NOT_FOUND"} if what == "/cancel" else {"detail": "Not Found"}, 404)
        if what == "/cancel" and method == "PUT":
            if self.jobs.cancel(job):
                return Response.json({"status": "CANCELLATION_REQUESTED"}, 202)
            return Response.json({"status": "ALREADY_COMPLETED"}, 400)
        state = self.state(job)
        if what == "/status":
            return self._status(job, state)
        if state in ("waiting", "running"):
            return Response.json({"detail": "Request is still in progress"}, 400)
        return self._result(job, state)

    def _status(self, job: Job, state: str) -> Response:
        shown: dict[str, Any] = {"request_id": job.id, "logs": None, **self._addresses(job)}
        if state == "ended" and job.outcome == "unknown_state":
            return Response.json({"status": "REVIEWING", **shown}, 202)
        if state in ("waiting", "running"):
            return Response.json({"status": "IN_QUEUE" if state == "waiting" else "IN_PROGRESS", **shown}, 202)
        if state == "cancelled":
            shown |= {"error": "Request was cancelled", "error_type": "client_cancelled"}
        return Response.json({"status": "COMPLETED", "metrics": {"inference_time": job.seconds}, **shown})

    def _result(self, job: Job, state: str) -> Response:
        if state == "cancelled" or job.outcome == "failed":
            answer = Response.json({"detail": "Runner disconnected", "error_type": "runner_disconnected"}, 503)
            answer.headers["X-Fal-Error-Type"] = "runner_disconnected"
        elif job.outcome == "moderated":
            answer = Response.json(self.moderated[1], self.moderated[0])
        elif job.outcome == "no_picture":
            answer = Response.json({"images": [], "seed": job.seed})
        else:
            image = {"url": self.address(job), "content_type": "image/png"}
            answer = Response.json({"images": [image], "seed": job.seed, "has_nsfw_concepts": [False]})
        answer.headers["x-fal-request-id"] = job.id
        return answer

    def _list(self, request: Request) -> Response:
        """Ordered by their end, so one that waits or runs is not in it."""
        try:
            after, before = (datetime.fromisoformat(request.query[name]) for name in ("start", "end"))
        except (KeyError, ValueError):
            return Response.json({"detail": "start and end are required"}, 422)
        items = [
            {
                "request_id": job.id,
                "endpoint_id": job.model,
                "status_code": 200,
                "sent_at": f"{job.at:%Y-%m-%dT%H:%M:%SZ}",
                "json_input": job.body,
            }
            for job in self.jobs.between(after, before)
            if job.model == request.query.get("endpoint_id") and self.state(job) == "ended"
        ]
        return Response.json({"items": items, "next_cursor": None, "has_more": False})
