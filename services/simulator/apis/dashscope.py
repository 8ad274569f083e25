"""DashScope's asynchronous tasks.

Source: Alibaba Model Studio, asynchronous task management and Wan V2 reference; dashscope 2.0.2.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from ..wire import Request, Response
from .api import Api, object_of, seed_in
from .jobs import Job

_SUBMIT: Final = re.compile(r"/api/v1/services/aigc/(text2image|image2image|image-generation)/[\w-]+")
_TASK: Final = re.compile(r"/api/v1/tasks/([^/]+)(/cancel)?")


def _error(status: int, code: str, message: str) -> tuple[int, Any]:
    return status, {"code": code, "message": message, "request_id": "4909100c-7b5a-9f92-bfe5-000000000001"}


class DashScope(Api):
    name = "dashscope"
    no_key = _error(401, "InvalidApiKey", "Invalid API-key provided.")
    too_fast = _error(429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")
    no_money = _error(400, "Arrearage", "Access denied, please make sure your account is in good standing.")
    moderated = _error(400, "DataInspectionFailed", "Input data may contain inappropriate content.")

    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        if request.method == "POST" and _SUBMIT.fullmatch(path):
            return path, self._submit(request)
        if request.method == "GET" and path == "/api/v1/tasks/":
            return path, self._list(request)
        if (found := _TASK.fullmatch(path)) is not None:
            job = self.jobs.find(found[1])
            if found[2] is not None and request.method == "POST":
                return "/api/v1/tasks/*/cancel", self._cancel(job)
            return "/api/v1/tasks/*", Response.json(self._task(found[1], job))
        return path, Response.json(_error(404, "NotFound", "no such path")[1], 404)

    def _submit(self, request: Request) -> Response:
        if request.headers.get("x-dashscope-async") != "enable":
            return Response.json(
                _error(403, "AccessDenied", "current user api does not support synchronous calls.")[1], 403
            )
        body = object_of(request)
        if body is None or not isinstance(body.get("input"), dict) or not body.get("model"):
            return Response.json(_error(400, "InvalidParameter", "input and model are required")[1], 400)
        if (refused := self.refusal(request, str(body))) is not None:
            return refused
        job = self.start(body["model"], body, seed_in(body))
        answer = Response.json({"output": {"task_status": "PENDING", "task_id": job.id}, "request_id": job.id})
        answer.prompt_id = job.id
        return answer

    def _task(self, id_: str, job: Job | None) -> dict[str, Any]:
        if job is None or self.is_gone(job):
            return {"request_id": id_, "output": {"task_id": id_, "task_status": "UNKNOWN"}}
        output: dict[str, Any] = {"task_id": job.id, "submit_time": f"{job.at:%Y-%m-%d %H:%M:%S}.000"}
        answer: dict[str, Any] = {"request_id": job.id, "output": output}
        match self.state(job), job.outcome:
            case "cancelled", _:
                output["task_status"] = "CANCELED"
            case "waiting", _:
                output["task_status"] = "PENDING"
            case "running", _:
                output["task_status"] = "RUNNING"
            case _, "unknown_state":
                output["task_status"] = "REVIEWING"
            case _, "failed":
                output |= {
                    "task_status": "FAILED",
                    "code": "InternalError.Timeout",
                    "message": "An internal timeout error",
                }
            case _, "moderated":
                message = "Output data may contain inappropriate content."
                output |= {"task_status": "FAILED", "code": "DataInspectionFailed", "message": message}
            case _, "no_picture":
                output |= {"task_status": "SUCCEEDED", "results": []}
            case _:
                output |= {"task_status": "SUCCEEDED", "results": [{"url": self.address(job)}]}
                answer["usage"] = {"image_count": 1}
        return answer

    def _cancel(self, job: Job | None) -> Response:
        if job is None or self.state(job) != "waiting":  # documented: only a waiting task can be cancelled
            return Response.json(_error(400, "UnsupportedOperation", "the task cannot be cancelled")[1], 400)
        self.jobs.cancel(job)
        return Response.json({"request_id": job.id})

    def _list(self, request: Request) -> Response:
        def moment(name: str) -> datetime:
            return datetime.strptime(request.query[name], "%Y%m%d%H%M%S").replace(tzinfo=UTC)

        try:
            found = self.jobs.between(moment("start_time"), moment("end_time"))
        except (KeyError, ValueError):
            return Response.json(_error(400, "InvalidParameter", "start_time and end_time are required")[1], 400)
        rows = [
            {"task_id": job.id, "status": self._task(job.id, job)["output"]["task_status"], "model_name": job.model}
            for job in found
            if job.model == request.query.get("model_name", job.model)
        ]
        return Response.json({"request_id": "r", "data": rows, "page_no": 1, "page_size": 100, "total": len(rows)})
