"""OpenAI's images, synchronous: the answer to the POST is the picture, after as long as it takes.

Source: openai/openai-openapi openapi.yaml; OpenAI guides on rate limits and error codes.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final

from ..wire import Request, Response
from .api import Api, object_of


def _error(status: int, code: str, message: str, kind: str = "invalid_request_error") -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


_BLOCKED: Final = "Your request was rejected as a result of our safety system."


class OpenAI(Api):
    name = "openai"
    no_key = _error(401, "invalid_api_key", "Incorrect API key provided.")
    too_fast = _error(429, "rate_limit_exceeded", "Rate limit reached for images per minute.", "rate_limit_error")
    too_fast_headers = {"Retry-After": "1"}  # noqa: RUF012 - of the class, never written
    no_money = _error(429, "insufficient_quota", "You exceeded your current quota.", "insufficient_quota")
    moderated = _error(400, "moderation_blocked", _BLOCKED, "image_generation_user_error")

    def answer(self, request: Request, path: str) -> tuple[str, Response]:
        if request.method != "POST" or path not in ("/v1/images/generations", "/v1/images/edits"):
            return path, Response.json(_error(404, "not_found", f"Invalid URL ({request.method} {path})")[1], 404)
        body = self._body(request, path)
        text = str(body)
        if body is None or not body.get("prompt"):
            return path, Response.json(_error(400, "missing_required_parameter", "Missing: 'prompt'.")[1], 400)
        if (refused := self.refusal(request, text)) is not None:
            return path, refused
        # The API takes no seed: equal words are told apart by nothing but the moment they came.
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big") + time.monotonic_ns() % 997
        job = self.start(str(body.get("model", "")), body, seed)
        match job.outcome:
            case "moderated":
                response = Response.json(self.moderated[1], self.moderated[0])
            case "failed" | "lost":
                response = Response.json(
                    _error(500, "server_error", "The server had an error.", "server_error")[1], 500
                )
            case "no_picture":
                response = Response.json({"created": int(job.at.timestamp()), "data": []})
            case _:
                usage = {"input_tokens": 14, "output_tokens": 1056, "total_tokens": 1070}
                data = [{"b64_json": self.encoded(job)}]
                response = Response.json({"created": int(job.at.timestamp()), "data": data, "usage": usage})
        response.held_seconds = job.seconds
        response.prompt_id = job.id
        response.headers["x-request-id"] = f"req_{job.id[:8]}"
        return path, response

    def _body(self, request: Request, path: str) -> dict[str, Any] | None:
        if path.endswith("generations"):
            return object_of(request)
        # multipart: the fields that are text; pictures are taken as sent
        fields: dict[str, Any] = {}
        _, _, boundary = request.headers.get("content-type", "").partition("boundary=")
        for part in request.body.split(b"--" + boundary.strip('"').encode()):
            head, _, value = part.partition(b"\r\n\r\n")
            if b"filename=" in head or b'name="' not in head:
                continue
            fields[head.split(b'name="')[1].split(b'"')[0].decode()] = value.rstrip(b"\r\n").decode()
        return fields
