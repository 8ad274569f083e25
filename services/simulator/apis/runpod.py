"""A RunPod serverless endpoint with worker-comfyui.

Source: runpod/docs serverless/endpoints; runpod-workers/worker-comfyui README.md and handler.py.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..wire import Request, Response
from .api import Api, object_of, seed_in
from .jobs import Job

_PATH: Final = re.compile(r"/v2/([\w-]+)/(run|status/([^/]+)|cancel/([^/]+))")


class RunPod(Api):
    name = "runpod"
    no_key = (401, {"error": "unauthorized"})
    too_fast = (429, {"error": "too many requests"})
    no_money = (402, {"error": "insufficient balance"})
    moderated = (400, {"error": "NSFW content detected"})

    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        found = _PATH.fullmatch(path)
        if found is None:
            return path, Response.json({"error": "not found"}, 404)
        if found[2] == "run":
            return path, self._submit(request, found[1])
        job = self.jobs.find(found[3] or found[4])
        route = f"/v2/{found[1]}/{found[2].partition('/')[0]}/*"
        if job is None or self.is_gone(job):
            return route, Response.json({"error": "job not found"}, 404)
        if found[4] is not None:
            self.jobs.cancel(job)
        return route, Response.json(self._status(job))

    def id_of(self, random: str) -> str:
        return f"{random}-u1"

    def _submit(self, request: Request, endpoint: str) -> Response:
        body = object_of(request)
        if body is None or not isinstance(body.get("input"), dict) or "workflow" not in body["input"]:
            return Response.json({"error": "missing input"}, 400)
        if (refused := self.refusal(request, str(body))) is not None:
            return refused
        job = self.start(endpoint, body, seed_in(body) or hash(str(body)) & 0xFFFFFF)
        answer = Response.json({"id": job.id, "status": "IN_QUEUE"})
        answer.prompt_id = job.id
        return answer

    def _status(self, job: Job) -> dict[str, Any]:
        states = {"waiting": "IN_QUEUE", "running": "IN_PROGRESS", "cancelled": "CANCELLED", "ended": "COMPLETED"}
        state = self.state(job)
        shown: dict[str, Any] = {"id": job.id, "status": states[state], "delayTime": 100}
        if state != "ended":
            return shown
        shown["executionTime"] = int(job.seconds * 1000)
        match job.outcome:
            case "failed":
                return shown | {"status": "FAILED", "error": "CUDA out of memory"}
            case "moderated":
                return shown | {"status": "FAILED", "error": "NSFW content detected by node SafetyCheck"}
            case "unknown_state":
                return shown | {"status": "REVIEWING"}
            case "no_picture":
                return shown | {"output": {"status": "success_no_images", "images": []}}
            case _:
                image = {"filename": f"{job.id}_00001_.png", "type": "base64", "data": self.encoded(job)}
                return shown | {"output": {"images": [image]}}
