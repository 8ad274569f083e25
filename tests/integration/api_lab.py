"""An API provider made of a table and a scripted server on loopback."""

import base64
import io
import json
import uuid
from collections.abc import Mapping
from typing import Any

from PIL import Image

from shared.domain.task import Sent, job_key_for, seed_for
from shared.providers.base import Job
from shared.providers.comfyui import ignore
from shared.providers.http_api import HttpApi
from shared.providers.inputs import Pictures
from shared.providers.table import Table, host_and_port
from shared.providers.table_files import load_tables, read_tables
from shared.providers.workflow import Workflows

SHIPPED = load_tables()
KEYS = {
    "OPENAI_API_KEY": "sk-secret-1",
    "DASHSCOPE_API_KEY": "sk-secret-2",
    "FAL_KEY": "sk-secret-3",
    "REPLICATE_API_TOKEN": "sk-secret-4",
    "RUNPOD_API_KEY": "sk-secret-5",
    "RUNPOD_ENDPOINT_ID": "abc123",
    "KEY": "sk-secret-6",
    "GATEWAY_KEY": "sk-secret-7",
}

#: A provider of each kind of recovery is this one with other lines.
PLAIN = """
[provider.plain]
shape = "submit_poll"
base_url = "https://plain.example"
auth = {{ header = "X-Key", value = "${{KEY}}" }}
timeouts = {{ connect_s = 1, submit_read_s = 0.5, poll_read_s = 0.5, settle_s = {settle} }}
{more}
[provider.plain.inputs]
prompt = {{ type = "string" }}
[provider.plain.submit]
request = "POST /jobs"
job_id = "/id"
body = {{ prompt = "$prompt", seed = "$order_seed", key = "$job_key" }}
[provider.plain.poll]
request = "GET /jobs/{{job_id}}"
status = "/status"
map = {{ waiting = "queued", busy = "running", done = "succeeded", broken = "failed" }}
[provider.plain.result]
images = [{{ at = "/images/*", kind = "base64" }}, {{ at = "/urls/*", kind = "url" }}]
[provider.plain.cost]
unit = "cents"
at_submit = "/price"
at_end = "/charged"
{tables}
"""


def plain(more: str = "", tables: str = "", settle: float = 60) -> Table:
    """more -- lines of the provider itself; tables -- further [provider.plain.…] tables"""
    text = PLAIN.format(more=more, tables=tables, settle=settle)
    return read_tables(text, "plain.toml")["plain"]


def provider(
    table: Table,
    url: str = "",
    *,
    name: str = "api",
    workflows: Workflows | None = None,
    callback_url: str | None = None,
    **results: Any,
) -> HttpApi:
    """results -- how the pictures that it made are fetched, beside the default"""
    return HttpApi(
        name,
        table.for_use(KEYS, url=url),
        workflows=workflows or Workflows({}),
        inputs=Pictures(allow_private=True),
        results=Pictures(private_hosts=[host_and_port(url or table.base_url)], **results),
        observe=ignore,
        unknown_state=lambda: None,
        callback_url=callback_url,
    )


def a_job(inputs: Mapping[str, Any] | None = None, *, sent: Sent | None = None, **fields: Any) -> Job:
    task_id = uuid.uuid4()
    key = job_key_for(task_id, 1)
    values: dict[str, Any] = {
        "task_id": task_id,
        "attempt": 1,
        "job_key": key,
        "seed": seed_for(key),
        "workflow": None,
        "inputs": inputs or {"prompt": "a lighthouse"},
        "sent": sent,
    }
    return Job(**values | fields)


def a_picture(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def body_of(request: Any) -> Any:
    return json.loads(request.body)
