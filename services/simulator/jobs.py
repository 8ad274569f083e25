"""GET /api/jobs and /api/jobs/{id}: queue and history told as jobs (modern only).

The rows are read as loosely as the real server reads them: an `extra_pnginfo` that is null, a string or a list raises
AttributeError, which makes the whole listing a 500. That is the measured poison, kept on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .prompts import Memory, Row
from .wire import Response

_STATUSES: Final = ("pending", "in_progress", "completed", "failed", "cancelled")


def detail(memory: Memory, prompt_id: str) -> Response:
    """One job. History wins over the queue, so an id used again shows its old end while it runs."""
    running, pending = memory.rows()
    entry = memory.entry(prompt_id)
    if entry is not None:
        return Response.json(_finished(prompt_id, entry, with_all=True))
    for status, rows in (("in_progress", running), ("pending", pending)):
        for row in rows:
            if row[1] == prompt_id:
                return Response.json(_queued(row, status))
    return Response.json({"error": "Job not found"}, 404)


def listing(memory: Memory, query: Mapping[str, str]) -> Response:
    """The filtered, sorted page of jobs; 400 names a bad parameter."""
    statuses = [each.strip().lower() for each in query.get("status", "").split(",") if each.strip()]
    unknown = [each for each in statuses if each not in _STATUSES]
    if unknown:
        valid = ", ".join(_STATUSES)
        return _refused(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {valid}")
    sort_by, sort_order = query.get("sort_by", "created_at"), query.get("sort_order", "desc")
    if sort_by not in ("created_at", "execution_duration"):
        return _refused("sort_by must be 'created_at' or 'execution_duration'")
    if sort_order not in ("asc", "desc"):
        return _refused("sort_order must be 'asc' or 'desc'")
    limit, offset = _integer(query, "limit"), _integer(query, "offset")
    if isinstance(limit, Response):
        return limit
    if isinstance(offset, Response):
        return offset
    if limit is not None and limit <= 0:
        return _refused("limit must be a positive integer")
    jobs = _jobs(memory, set(statuses or _STATUSES))
    if query.get("workflow_id"):
        jobs = [job for job in jobs if job.get("workflow_id") == query["workflow_id"]]
    jobs.sort(key=_duration if sort_by == "execution_duration" else _created, reverse=sort_order == "desc")
    start = max(0, offset or 0)
    page = jobs[start:] if limit is None else jobs[start : start + limit]
    pagination = {"offset": start, "limit": limit, "total": len(jobs), "has_more": start + len(page) < len(jobs)}
    return Response.json({"jobs": page, "pagination": pagination})


def _jobs(memory: Memory, statuses: set[str]) -> list[dict[str, Any]]:
    running, pending = memory.rows()
    jobs = [_queued(row, "in_progress") for row in running if "in_progress" in statuses]
    jobs += [_queued(row, "pending") for row in pending if "pending" in statuses]
    if statuses & {"completed", "failed", "cancelled"}:
        finished = (_finished(prompt_id, entry) for prompt_id, entry in memory.entries(None, -1).items())
        jobs += [job for job in finished if job["status"] in statuses]
    return jobs


def _created(job: dict[str, Any]) -> int:
    return job.get("create_time") or 0


def _duration(job: dict[str, Any]) -> int:
    return int(job.get("execution_end_time") or 0) - int(job.get("execution_start_time") or 0)


def _refused(sentence: str) -> Response:
    return Response.json({"error": sentence}, 400)


def _integer(query: Mapping[str, str], name: str) -> int | Response | None:
    if name not in query:
        return None
    try:
        return int(query[name])
    except ValueError:
        return _refused(f"{name} must be an integer")


def _workflow_id(extra_data: dict[str, Any]) -> Any:
    return extra_data.get("extra_pnginfo", {}).get("workflow", {}).get("id")


def _pruned(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if value is not None}


def _queued(row: Row, status: str) -> dict[str, Any]:
    number, prompt_id, _graph, extra_data, _outputs = row
    return _pruned(
        {
            "id": prompt_id,
            "status": status,
            "priority": number,
            "create_time": extra_data.get("create_time"),
            "outputs_count": 0,
            "previewable_outputs_count": 0,
            "workflow_id": _workflow_id(extra_data),
        }
    )


def _finished(prompt_id: str, entry: dict[str, Any], with_all: bool = False) -> dict[str, Any]:
    number, _id, graph, extra_data, _outputs = entry["prompt"]
    moments: dict[str, Any] = dict(entry["status"]["messages"])
    status, end, error = "completed", moments.get("execution_success"), None
    if "execution_interrupted" in moments:
        status, end = "cancelled", moments["execution_interrupted"]
    elif "execution_error" in moments:
        status, end = "failed", moments["execution_error"]
        error = end
    pictures = [
        {**picture, "nodeId": node_id, "mediaType": kind}
        for node_id, output in entry["outputs"].items()
        for kind, items in output.items()
        for picture in items
    ]
    kept = [picture for picture in pictures if picture["type"] == "output"] or pictures
    job = {
        "id": prompt_id,
        "status": status,
        "priority": number,
        "create_time": extra_data.get("create_time"),
        "execution_start_time": moments["execution_start"]["timestamp"],
        "execution_end_time": end["timestamp"] if end else None,
        "execution_error": error,
        "outputs_count": len(pictures),
        "previewable_outputs_count": len(pictures),
        "preview_output": kept[0] if kept else None,
        "workflow_id": _workflow_id(extra_data),
    }
    if with_all:
        job["outputs"] = entry["outputs"]
        job["execution_status"] = entry["status"]
        job["workflow"] = {"prompt": graph, "extra_data": extra_data}
    return _pruned(job)
