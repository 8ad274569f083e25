"""Every path of the imitated server: what a request does to memory and files, and what it is answered.

A handler that raises is answered with a plain 500, as aiohttp does; several malformed requests rely on it.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from . import jobs
from .catalog import NODE_TYPES
from .files import Folders, upload, view
from .options import Options
from .prompts import Memory
from .records import Records
from .validate import Surroundings, problem, validate
from .wire import JSON_TYPE, Request, Response, server_error

_MODEL_FOLDERS: Final = frozenset(
    (
        "checkpoints",
        "configs",
        "loras",
        "vae",
        "text_encoders",
        "diffusion_models",
        "clip_vision",
        "style_models",
        "embeddings",
        "diffusers",
        "vae_approx",
        "controlnet",
        "gligen",
        "upscale_models",
        "custom_nodes",
        "hypernetworks",
        "photomaker",
        "classifiers",
    )
)
_VERSIONS: Final = {"modern": "0.33.0", "legacy": "0.3.64"}

Handler = Callable[["Site", Request, str], Response]


@dataclass(frozen=True)
class Site:
    """What the handlers work on: one server start with its folders and the tester's records."""

    options: Options
    memory: Memory
    folders: Folders
    records: Records

    def features(self) -> dict[str, Any]:
        """GET /features, also sent on /ws to a client that announces its own."""
        if not self.options.is_modern:
            return {"supports_preview_metadata": True, "max_upload_size": self.options.max_body}
        return {
            "supports_preview_metadata": True,
            "supports_model_type_tags": True,
            "max_upload_size": self.options.max_body,
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        }

    def queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.memory.remaining()}}

    def choices(self, node: str) -> list[str]:
        """Installed models (none) and pictures to load."""
        return self.folders.input_names() if node == "LoadImage" else []


def normal_path(path: str) -> str:
    """Without the prefix /api, which every path may carry; /api/jobs exists only with it."""
    return path[4:] if path.startswith("/api/") and not path.startswith("/api/jobs") else path


def handle(site: Site, request: Request) -> tuple[str, Response]:
    """The route that was hit (for the statistics) and the answer. Never raises."""
    path = normal_path(request.path)
    method = "GET" if request.method == "HEAD" else request.method
    route, handler, argument = _find(method, path, site.options.is_modern)
    if _is_foreign(request, site.options.is_modern):
        return route, Response(403)
    if request.is_too_large:
        return route, Response.text(f"Maximum request body size {int(site.options.max_body)} exceeded.", 413)
    if handler is None:
        return route, _no_such_route(method, path, site.options.is_modern)
    try:
        return route, handler(site, request, argument)
    except Exception:  # noqa: BLE001  the measured server answers every exception with the same two lines
        return route, server_error()


def _find(method: str, path: str, is_modern: bool) -> tuple[str, Handler | None, str]:
    handler = _EXACT.get((method, path))
    if handler is not None and (is_modern or not path.startswith("/api/jobs")):
        return path, handler, ""
    for known_method, start, end, handler in _PATTERNS:
        if known_method != method or not path.startswith(start) or not path.endswith(end):
            continue
        argument = path[len(start) : len(path) - len(end)]
        if argument and "/" not in argument and (is_modern or not start.startswith("/api/jobs")):
            return f"{start}*{end}", handler, argument
    return path, None, ""


def _no_such_route(method: str, path: str, is_modern: bool) -> Response:
    """A GET ends at the static files of the frontend (404), any other method at a 405."""
    if method == "GET":
        return Response(404, b"", "application/octet-stream")
    allowed = [each for each in ("GET", "POST") if _find(each, path, is_modern)[1] is not None]
    response = Response.text("405: Method Not Allowed", 405)
    response.headers["Allow"] = ",".join(allowed or ["GET"])
    return response


def _is_foreign(request: Request, is_modern: bool) -> bool:
    """The Origin rule: on loopback, a page of another origin may not call."""
    if is_modern and request.headers.get("sec-fetch-site") == "cross-site":
        return True
    if "host" not in request.headers or "origin" not in request.headers:
        return False
    host = urllib.parse.urlsplit("//" + request.headers["host"].lower())
    origin = urllib.parse.urlsplit(request.headers["origin"].lower())
    if host.hostname is None or not (host.hostname in ("localhost", "::1") or host.hostname.startswith("127.")):
        return False
    named = host.hostname if origin.port is None else host.netloc
    claimed = origin.hostname if host.port is None else origin.netloc
    return bool(named and claimed) and named != claimed


def _post_prompt(site: Site, request: Request, _argument: str) -> Response:
    body = request.json()
    memory = site.memory
    if "number" in body:
        number = float(body["number"])
    else:
        number = -memory.number if "front" in body and body["front"] else memory.number  # noqa: RUF019  may be a list
        memory.number += 1
    if "prompt" not in body:
        return _refuse(site, problem("no_prompt", "No prompt provided", "No prompt provided"), {})
    prompt_id = _prompt_id(body, site.options.is_modern)
    if prompt_id is None:
        details = (
            "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
            "omit it to let the server generate one"
        )
        return _refuse(site, problem("invalid_prompt_id", "prompt_id must be a valid UUID", details), {})
    around = Surroundings(site.options.is_modern, site.choices, lambda name: site.folders.locate(name) is not None)
    verdict = validate(body["prompt"], around, body.get("partial_execution_targets"))
    if verdict.error is not None:
        return _refuse(site, verdict.error, verdict.node_errors)
    extra_data = body.get("extra_data", {})
    if not isinstance(extra_data, dict):
        raise TypeError("extra_data")
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    if site.options.is_modern:
        extra_data["create_time"] = int(time.time() * 1000)
    try:
        memory.put(number, prompt_id, body["prompt"], extra_data, verdict.outputs)
        answer = {"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors}
        response = Response.json(answer)
    except TypeError:  # the heap could not compare two rows, yet the prompt is queued
        response = server_error()
    response.prompt_id = prompt_id
    return response


def _refuse(site: Site, error: dict[str, Any], node_errors: dict[str, Any]) -> Response:
    site.records.counts["prompts_rejected"] += 1
    return Response.json({"error": error, "node_errors": node_errors}, 400)


def _prompt_id(body: dict[str, Any], is_modern: bool) -> str | None:
    """None when the modern server refuses it. Legacy takes anything, and null as the id `None`."""
    if not is_modern:
        return str(body.get("prompt_id", uuid.uuid4()))
    wanted = body.get("prompt_id")
    if wanted is None:
        return str(uuid.uuid4())
    try:
        return wanted if isinstance(wanted, str) and str(uuid.UUID(wanted)) == wanted else None
    except ValueError:
        return None


def _get_prompt(site: Site, _request: Request, _argument: str) -> Response:
    return Response.json(site.queue_info())


def _get_queue(site: Site, _request: Request, _argument: str) -> Response:
    running, pending = site.memory.rows()
    return Response.json({"queue_running": running, "queue_pending": pending})


def _post_queue(site: Site, request: Request, _argument: str) -> Response:
    body = request.json()
    if body.get("clear"):
        site.memory.clear_pending()
    if "delete" in body:
        for prompt_id in body["delete"]:
            site.memory.delete_pending(prompt_id)
    return Response(200)


def _post_interrupt(site: Site, request: Request, _argument: str) -> Response:
    try:
        body = request.json()
    except ValueError:
        body = {}
    site.memory.interrupt(body.get("prompt_id") or None)
    return Response(200)


def _post_free(site: Site, request: Request, _argument: str) -> Response:
    if request.json().get("free_memory", False):
        site.memory.drop_cache = True
    return Response(200)


def _get_history(site: Site, request: Request, _argument: str) -> Response:
    wanted = request.query.get("max_items")
    offset = int(request.query.get("offset", -1))
    entries = site.memory.entries(None if wanted is None else int(wanted), offset)
    return Response(200, b"{%b}" % b", ".join([entry.encoded for entry in entries.values()]), JSON_TYPE)


def _get_history_of(site: Site, _request: Request, prompt_id: str) -> Response:
    entry = site.memory.entry(prompt_id)
    return Response(200, b"{}" if entry is None else b"{%b}" % entry.encoded, JSON_TYPE)


def _post_history(site: Site, request: Request, _argument: str) -> Response:
    body = request.json()
    if body.get("clear"):
        site.memory.forget_all()
    if "delete" in body:
        site.memory.forget(body["delete"])
    return Response(200)


def _get_jobs(site: Site, request: Request, _argument: str) -> Response:
    return jobs.listing(site.memory, request.query)


def _get_job(site: Site, _request: Request, prompt_id: str) -> Response:
    return jobs.detail(site.memory, prompt_id)


def _cancel_job(site: Site, _request: Request, prompt_id: str) -> Response:
    return Response.json({"cancelled": _cancelled(site.memory, prompt_id)})


def _cancel_jobs(site: Site, request: Request, _argument: str) -> Response:
    try:
        wanted = request.json().get("job_ids")
    except (ValueError, AttributeError):
        return Response.json({"error": "Invalid JSON body"}, 400)
    if not isinstance(wanted, list):
        return Response.json({"error": "job_ids must be a list"}, 400)
    invalid = [str(each) for each in wanted if _prompt_id({"prompt_id": each}, is_modern=True) != each]
    if invalid:
        return Response.json({"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}, 400)
    cancelled = [_cancelled(site.memory, each) for each in wanted]  # every one is tried
    return Response.json({"cancelled": any(cancelled)})


def _cancelled(memory: Memory, prompt_id: str) -> bool:
    return memory.delete_pending(prompt_id) or memory.interrupt(prompt_id)


def _post_upload(site: Site, request: Request, _argument: str) -> Response:
    response, is_stored = upload(request, site.folders)
    if response.status == 200:
        site.records.counts["uploads"] += 1
        site.records.counts["uploads_stored"] += is_stored
    return response


def _get_view(site: Site, request: Request, _argument: str) -> Response:
    return view(request, site.folders, site.options.is_modern)


def _get_features(site: Site, _request: Request, _argument: str) -> Response:
    return Response.json(site.features())


def _get_object_info(site: Site, _request: Request, name: str) -> Response:
    wanted = NODE_TYPES.values() if not name else [NODE_TYPES[name]] if name in NODE_TYPES else []
    is_modern = site.options.is_modern
    return Response.json({each.name: each.describe(site.choices, is_modern) for each in wanted})


def _get_models(_site: Site, _request: Request, folder: str) -> Response:
    if not folder:
        return Response.json(sorted(_MODEL_FOLDERS))
    return Response.json([]) if folder in _MODEL_FOLDERS else Response(404)


def _get_system_stats(site: Site, _request: Request, _argument: str) -> Response:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    is_modern = site.options.is_modern
    system: dict[str, Any] = {
        "os": "linux" if is_modern else "posix",
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": _VERSIONS[site.options.generation],
        "required_frontend_version": "1.49.6" if is_modern else "1.27.10",
        "installed_templates_version": None,
        "required_templates_version": "0.11.44" if is_modern else "0.1.95",
    }
    if is_modern:
        system["comfy_package_versions"] = [
            {"name": "comfyui-frontend-package", "installed": None, "required": "1.49.6"},
            {"name": "comfyui-workflow-templates", "installed": None, "required": "0.11.44"},
            {"name": "comfyui-embedded-docs", "installed": None, "required": "0.5.10"},
            {"name": "comfy-kitchen", "installed": "0.2.31", "required": "0.2.31"},
            {"name": "comfy-aimdo", "installed": "0.4.13", "required": "0.4.13"},
        ]
    system |= {"python_version": sys.version, "pytorch_version": "2.13.0+cpu", "embedded_python": False}
    if is_modern:
        system["deploy_environment"] = "local-git"
    system["argv"] = ["main.py", "--cpu"]
    memory = {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}
    return Response.json({"system": system, "devices": [{"name": "cpu", "type": "cpu", "index": None, **memory}]})


_EXACT: Final[dict[tuple[str, str], Handler]] = {
    ("POST", "/prompt"): _post_prompt,
    ("GET", "/prompt"): _get_prompt,
    ("GET", "/queue"): _get_queue,
    ("POST", "/queue"): _post_queue,
    ("POST", "/interrupt"): _post_interrupt,
    ("POST", "/free"): _post_free,
    ("GET", "/history"): _get_history,
    ("POST", "/history"): _post_history,
    ("GET", "/api/jobs"): _get_jobs,
    ("POST", "/api/jobs/cancel"): _cancel_jobs,
    ("POST", "/upload/image"): _post_upload,
    ("GET", "/view"): _get_view,
    ("GET", "/features"): _get_features,
    ("GET", "/object_info"): _get_object_info,
    ("GET", "/models"): _get_models,
    ("GET", "/system_stats"): _get_system_stats,
}
#: Method, start and end of a path with one segment between them.
_PATTERNS: Final[tuple[tuple[str, str, str, Handler], ...]] = (
    ("GET", "/history/", "", _get_history_of),
    ("GET", "/object_info/", "", _get_object_info),
    ("GET", "/models/", "", _get_models),
    ("GET", "/api/jobs/", "", _get_job),
    ("POST", "/api/jobs/", "/cancel", _cancel_job),
)
