"""Every documented answer of every provider is read as what it is: tables, interpreter and samples agree."""

from pathlib import Path

import pytest

from shared.providers.samples import Judged, judge, sample_file
from shared.providers.table import Table
from shared.providers.table_files import load_tables, read_tables

OURS = Path(__file__).parent / "provider_samples"
#: A provider that nobody has written a line of code for.
GATEWAY = """
[provider.gateway]
shape = "submit_poll"
base_url = "https://gw.example/v1"
auth = { header = "Authorization", value = "Bearer ${GATEWAY_KEY}" }
error_code = ["/error/code", "/error/type"]
error_message = "/error/message"
[provider.gateway.inputs]
model = { type = "string" }
prompt = { type = "string" }
size = { type = "string", optional = true }
[provider.gateway.submit]
request = "POST /images/generations/async"
body = { model = "$model", prompt = "$prompt", size = "$size?" }
job_id = "/task_id"
status = "/status"
[provider.gateway.poll]
request = "GET /images/tasks/{job_id}"
status = "/status"
map = { pending = "queued", processing = "running", completed = "succeeded", failed = "failed" }
[provider.gateway.result]
images = [{ at = "/result/data/*/url", kind = "url" }]
[[provider.gateway.errors]]
code = ["moderation_blocked"]
class = "content_rejected"
"""


def _all() -> list[Judged]:
    judged = []
    tables: dict[str, tuple[Table, Path | None]] = {n: (t, sample_file(n)) for n, t in load_tables().items()}
    tables["gateway"] = (read_tables(GATEWAY, "gateway.toml")["gateway"], OURS / "gateway_async.json")
    for name, (table, file) in tables.items():
        assert file is not None, name
        judged += judge(name, table, file)
    return judged


ALL = _all()


def test_there_are_99_cases_and_only_callbacks_are_not_asked() -> None:
    assert len(ALL) == 99
    assert {case.kind for case in ALL if case.skipped} == {"webhook"}
    assert sum(bool(case.skipped) for case in ALL) == 3


@pytest.mark.parametrize("case", [c for c in ALL if not c.skipped], ids=lambda c: f"{c.provider}-{c.case}")
def test_the_verdict_is_the_documented_one(case: Judged) -> None:
    assert dict(case.got) == dict(case.expected)
    assert case.expected or case.kind == "cancel", "a case that compares nothing"
