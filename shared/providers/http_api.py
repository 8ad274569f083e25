"""Any image API that a table describes, as a provider. One POST per attempt, unless the provider can tell them apart.

What is said in code here is what no table can say; what differs between providers stands in shared/providers/catalog.
"""

import base64
import binascii
import hashlib
import io
import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlsplit

import urllib3

from shared.domain.errors import (
    AccountRefused,
    InputLater,
    InputUnavailable,
    OutcomeUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.task import Reason
from shared.observe.crash import CrashPoint, crash_point
from shared.providers import templates
from shared.providers.answers import Reading, read
from shared.providers.base import Accepted, Failed, Gone, Job, JobState, Prepared, Repeat, Running, Succeeded, Unclear
from shared.providers.comfyui_http import Observe
from shared.providers.http_calls import Calls, NoAnswer, NoConnection, Silence
from shared.providers.inputs import NotThere, Pictures
from shared.providers.picture import re_encode
from shared.providers.recovery import recover as recover_job
from shared.providers.recovery import seed_of
from shared.providers.table import ErrorClass, JobStatus, Phase, Recovery, Table
from shared.providers.workflow import Workflows

#: Jobs asked about at the same time, per provider and process.
_POLLERS: Final = 8
#: How long everybody stays away from a provider that cannot be reached, seconds; spread, so that not all come back at
#: the same moment.
_AWAY_SECONDS: Final = (5.0, 15.0)
#: Answers of a proxy that waited in vain for the one behind it, which may be at work all the same.
_GIVEN_UP: Final = frozenset({504, 524})
#: Pixels of a WebP result that is turned into PNG.
_MAX_PIXELS: Final = 8192 * 8192


class HttpApi:
    """Implements shared.providers.base.Provider.

    table     -- ready for use: its variables are put in
    inputs    -- fetches what orders name
    results   -- fetches what the provider made: from the open internet, or from the provider's own address
    callback_url -- where it calls when a job has ended, but for the job's key; None: nowhere
    """

    def __init__(
        self,
        name: str,
        table: Table,
        *,
        workflows: Workflows,
        inputs: Pictures,
        results: Pictures,
        observe: Observe,
        unknown_state: Callable[[], None],
        callback_url: str | None = None,
    ) -> None:
        self.name = name
        self._callback_url = callback_url
        self.table = table
        self._workflows = workflows
        self._inputs = inputs
        self._results = results
        self._unknown_state = unknown_state
        self._calls = Calls(table.timeouts.connect_s, observe, table.auth.value)
        self._threads = ThreadPoolExecutor(_POLLERS, thread_name_prefix=f"poll-{name}")
        self.result_ttl_seconds = table.result_ttl_s
        self.submit_limit_seconds = table.submit_limit_seconds

    def problems(self, workflow: str | None, inputs: Mapping[str, Any]) -> list[str]:
        if self.table.workflow:
            return self._workflows.problems(workflow, inputs)
        return self.table.problems(inputs)

    # -- before the POST

    def prepare(self, job: Job) -> Prepared:
        """Fetch the pictures and make the whole request. Its bytes are the same each time, as some keys demand."""
        table = self.table
        if wrong := self.problems(job.workflow, job.inputs):
            raise ProviderRejected("; ".join(wrong), reason=Reason.INVALID_WORKFLOW)
        values: dict[str, Any] = {"order_seed": seed_of(job), "job_key": str(job.job_key)}
        files: dict[str, list[bytes]] = {}
        if table.workflow:
            values |= self._graph(job)
        else:
            for name, spec in table.inputs.items():
                value = job.inputs.get(name, spec.default)
                if value is None:
                    continue
                if spec.type == "images" and spec.send != "url":
                    files[name] = [self._inputs.get(reference).png for reference in value]
                    value = [_data_url(png) for png in files[name]] if spec.send == "data_url" else files[name]
                values[name] = value
        has_images = any(spec.type == "images" and name in values for name, spec in table.inputs.items())
        sending = (table.submit.with_images if has_images else None) or table.submit
        body = templates.filled(sending.body, values)
        url = self._url(sending.request, {k: v for k, v in values.items() if isinstance(v, str)})
        url, body = self._called_back(job, url, body)
        if sending.encode == "json":
            content, content_type = _canonical(body), "application/json"
        else:
            content, content_type = _multipart(body, boundary=job.job_key.hex)
        headers = {**table.submit.headers, "Content-Type": content_type}
        if table.key is not None:
            headers[table.key.header] = str(job.job_key)
        method = sending.request.partition(" ")[0]
        request = {"method": method, "url": url, "headers": headers, "content": content}
        return Prepared(job=job, body=request, body_hash=hashlib.sha256(content).hexdigest())

    def _called_back(self, job: Job, url: str, body: Any) -> tuple[str, Any]:
        """The same request, which also says where to call when the job has ended."""
        callback = self.table.callback
        if callback is None or self._callback_url is None:
            return url, body
        address = f"{self._callback_url}/{job.job_key}"
        if callback.query is not None:
            return f"{url}{'&' if '?' in url else '?'}{callback.query}={quote(address, safe='')}", body
        return url, {**body, **templates.filled(callback.body, {"callback_url": address})}

    def _graph(self, job: Job) -> dict[str, Any]:
        """A workflow template's graph, and its pictures beside it under the names that the graph uses."""
        workflow = self._workflows.for_job(job)
        pictures = {name: self._inputs.get(job.inputs[name]) for name in workflow.image_inputs}
        names = {name: f"{picture.sha256}.png" for name, picture in pictures.items()}
        images = [{"name": names[name], "image": _data_url(picture.png)} for name, picture in pictures.items()]
        values: dict[str, Any] = {"graph": self._workflows.render(job, names)}
        return values | ({"graph_images": images} if images else {})

    # -- the POST

    def submit(self, prepared: Prepared) -> Accepted | Succeeded | Failed:
        request = prepared.body
        crash_point(CrashPoint.POSTING)
        try:
            answer = self._calls.once(
                request["method"],
                request["url"],
                "submit",
                read=self.table.timeouts.submit_read_s,
                headers=self._with_key(request["url"], request["headers"]),
                content=request["content"],
            )
        except NoConnection as error:
            raise ProviderBusy(str(error), retry_after_seconds=random.uniform(*_AWAY_SECONDS)) from error
        except NoAnswer as error:
            raise self._doubt(str(error), is_held=isinstance(error, Silence)) from error
        crash_point(CrashPoint.POSTED)
        return self._submitted(read(self.table, "submit", answer), is_held=answer.status in _GIVEN_UP)

    def _submitted(self, reading: Reading, *, is_held: bool = False) -> Accepted | Succeeded | Failed:
        match reading.error:
            case ErrorClass.RATE_LIMITED | ErrorClass.NOT_SENT:
                wait = reading.retry_after or self.table.rate_limit_wait_s * random.uniform(0.8, 1.2)
                is_too_fast = reading.error is ErrorClass.RATE_LIMITED
                raise ProviderBusy(reading.why, retry_after_seconds=wait, is_too_fast=is_too_fast)
            case ErrorClass.ACCOUNT:
                raise AccountRefused(reading.why)
            case ErrorClass.PERMANENT:
                raise ProviderRejected(reading.why)
            case ErrorClass.CONTENT_REJECTED:
                raise ProviderRejected(reading.why, reason=Reason.CONTENT_REJECTED)
            case ErrorClass.AMBIGUOUS | ErrorClass.LOST:
                raise self._doubt(reading.why, is_held=is_held)
            case ErrorClass.RETRYABLE:
                return Failed(reason=Reason.NO_OUTPUTS, why=reading.why, retryable=True)
            case None:
                pass
        if reading.status is JobStatus.SUCCEEDED and reading.outputs:
            return Succeeded(reading.outputs, cost=reading.cost)
        return Accepted(reading.job_id or "", reading.saved, reading.cost)

    def _doubt(self, why: str, *, is_held: bool) -> OutcomeUnknown:
        """A job that was made needs a moment to show.

        is_held -- somebody on the way may deliver the request yet, so where an absence has it sent again, nobody looks
                   before the lease is over
        """
        recovery, listing = self.table.recovery, self.table.listing
        if recovery in (Recovery.NONE, Recovery.LIST_WEAK):
            return OutcomeUnknown(why, ask_in=0.0)
        proves = recovery is Recovery.OWN_ID or (listing is not None and listing.proves)
        return OutcomeUnknown(why, ask_in=None if is_held and proves else self.table.timeouts.settle_s)

    # -- after a doubt

    def recover(self, job: Job) -> Accepted | Gone | Repeat | Unclear:
        found = recover_job(self, job)
        crash_point(CrashPoint.JOB_LOOKED_UP)
        return found

    # -- questions

    def check(self, jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        """One call per job, several at a time. Raises ProviderAway when none was answered."""
        asked: dict[uuid.UUID, Future[JobState | None]] = {
            job.job_key: self._threads.submit(self.state_of, job) for job in jobs
        }
        states: dict[uuid.UUID, JobState] = {}
        away: ProviderAway | None = None
        for key, future in asked.items():
            try:
                state = future.result()
            except ProviderAway as error:
                away = error
            else:
                states |= {key: state} if state is not None else {}
        if away is not None and not states:
            raise away
        crash_point(CrashPoint.STATES_READ)
        return states

    def state_of(self, job: Job) -> JobState | None:
        """None: the answer said nothing about the job. Raises ProviderAway."""
        poll = self.table.poll
        if poll is None:
            return None
        reading = self._ask(job, poll.request, "poll")
        if reading.status is JobStatus.FETCH and self.table.fetch is not None:
            reading = self._ask(job, self.table.fetch.request, "fetch")
        if reading.is_unmapped:
            self._unknown_state()
        return self._state(reading, job)

    def _state(self, reading: Reading, job: Job) -> JobState | None:
        match reading.status:
            case None | JobStatus.FETCH:
                return None
            case JobStatus.QUEUED:
                return Running(waiting=True)
            case JobStatus.RUNNING:
                return Running(unknown=reading.is_unmapped)
            case JobStatus.SUCCEEDED:
                return Succeeded(reading.outputs, cost=reading.cost)
            case JobStatus.LOST:
                # Right after a submit the place where jobs are asked for may not know of it yet.
                return Gone() if job.age_seconds > self.table.timeouts.settle_s else Running(waiting=True)
            case JobStatus.CANCELLED:
                return Failed(reason=Reason.LOST, why=reading.why, retryable=True)
            case JobStatus.FAILED:
                return _failed(reading)

    def ended(self, ours: Callable[[Sequence[str]], Sequence[Job]]) -> Mapping[uuid.UUID, JobState]:  # noqa: ARG002  # protocol
        """An API tells nobody that its queue got shorter, so there is nothing to look for."""
        return {}

    def _ask(self, job: Job, requests_: Sequence[str], phase: Phase) -> Reading:
        method, url = self._address(job, requests_)
        answer = self._calls.ask(
            method, url, phase, read=self.table.timeouts.poll_read_s, headers=self._with_key(url, {})
        )  # fmt: skip
        return read(self.table, phase, answer)

    # -- pictures

    def fetch(self, job: Job, outputs: Sequence[Mapping[str, Any]]) -> Iterator[BinaryIO]:  # noqa: ARG002  # protocol
        """The pictures in order; none of these calls carries our key, and none ends at a private address."""
        for output in outputs:
            content = _decoded(output["value"]) if output["kind"] == "base64" else self._download(output["value"])
            crash_point(CrashPoint.PICTURE_FETCHED)
            yield io.BytesIO(_as_png_or_jpeg(content))

    def _download(self, url: str) -> bytes:
        try:
            return self._results.download(url)
        except NotThere as error:
            raise FileNotFoundError(f"a picture is gone: {error}") from error
        except InputUnavailable as error:
            raise ProviderRejected(f"a picture is not one that we take: {error}", reason=Reason.NO_OUTPUTS) from error
        except InputLater as error:
            raise ProviderAway(f"a picture was not fetched: {error}") from error

    # -- cancelling

    def cancel(self, job: Job) -> bool:
        """Ask once. An API that does not take it back lets the job run, and is paid for it: no slot waits for that."""
        cancel = self.table.cancel
        if cancel is None or not (job.provider_job_id or self.table.recovery is Recovery.OWN_ID):
            return True
        method, url = self._address(job, cancel.request)
        answer = self._calls.ask(
            method, url, "cancel", read=self.table.timeouts.poll_read_s, headers=self._with_key(url, {})
        )  # fmt: skip
        if answer.status == 429 or answer.status >= 500 or answer.status in (401, 402, 403):
            raise ProviderAway(f"cancel: HTTP {answer.status}")
        crash_point(CrashPoint.JOB_CANCELLED)
        return True

    def is_alive(self) -> None:
        """An API has no question that costs nothing and proves something; a provider away is noticed by its calls."""

    # -- addresses

    def _address(self, job: Job, requests_: Sequence[str]) -> tuple[str, str]:
        """Method and URL of the first request whose braces can all be filled. Raises ProviderAway."""
        values = {name: value for name, value in job.inputs.items() if isinstance(value, str)}
        values |= {"job_key": str(job.job_key), **job.handle}
        if job.provider_job_id or self.table.recovery is Recovery.OWN_ID:
            values["job_id"] = job.provider_job_id or str(job.job_key)
        for request in requests_:
            if templates.places_in(request) <= values.keys():
                return request.partition(" ")[0], self._url(request, values)
        raise ProviderAway("the job has no id or address to ask about it")

    def _url(self, request: str, values: Mapping[str, str]) -> str:
        """An address as the provider gave it, or a path at the provider."""
        target = request.partition(" ")[2]
        if target.startswith("{"):
            return values[target.strip("{}")]
        try:
            path = templates.path_of(target, values)
        except ValueError as error:
            raise ProviderRejected(str(error)) from error
        return path if path.startswith("https://") else self.table.base_url + path

    def _with_key(self, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers with our key, which goes to the provider's own hosts alone. Raises ProviderAway."""
        if not self._is_trusted(url):
            raise ProviderAway(f"{urlsplit(url).hostname} is not one of the provider's trusted_hosts: it gets no key")
        return {**headers, self.table.auth.header: self.table.auth.value}

    def _is_trusted(self, url: str) -> bool:
        parts = urlsplit(url)
        return self._is_own(url) or (
            parts.scheme == "https" and parts.hostname in self.table.trusted_hosts and "@" not in parts.netloc
        )

    def _is_own(self, url: str) -> bool:
        own, parts = urlsplit(self.table.base_url), urlsplit(url)
        return (parts.scheme, parts.netloc) == (own.scheme, own.netloc)

    def listed(self, url: str) -> Any:
        """The answer of a list of jobs. Raises ProviderAway."""
        answer = self._calls.ask(
            "GET", url, "poll", read=self.table.timeouts.poll_read_s, headers=self._with_key(url, {})
        )  # fmt: skip
        if answer.status != 200 or answer.body is None:
            raise ProviderAway(f"the list of jobs: HTTP {answer.status}")
        return answer.body

    def list_url(self, values: Mapping[str, str]) -> str:
        assert self.table.listing is not None  # noqa: S101 - asked for by a recovery that needs one
        return self._url(self.table.listing.request, values)


def _failed(reading: Reading) -> Failed:
    match reading.error:
        case ErrorClass.CONTENT_REJECTED:
            return Failed(reason=Reason.CONTENT_REJECTED, why=reading.why, retryable=False)
        case ErrorClass.PERMANENT:
            return Failed(reason=Reason.REJECTED, why=reading.why, retryable=False)
        case _:
            return Failed(reason=Reason.EXECUTION_FAILED, why=reading.why, retryable=True, elsewhere=True)


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def _multipart(body: Mapping[str, Any], *, boundary: str) -> tuple[bytes, str]:
    """Lists become repeated fields, bytes become PNG files."""
    fields: list[tuple[str, Any]] = []
    for name, value in body.items():
        for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
            if isinstance(item, bytes):
                fields.append((name, (f"{number}.png", item, "image/png")))
            else:
                text = item if isinstance(item, str) else json.dumps(item)
                fields.append((name, text))
    content, content_type = urllib3.encode_multipart_formdata(fields, boundary=boundary)
    return content, content_type


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _decoded(text: str) -> bytes:
    """Raises FileNotFoundError for what is no base64: the picture is not there."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FileNotFoundError("a picture is no base64") from error


def _as_png_or_jpeg(content: bytes) -> bytes:
    """WebP becomes PNG, since that is what we keep; everything else stays as it came."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return content
    try:
        return re_encode(content, max_pixels=_MAX_PIXELS).png
    except InputUnavailable as error:
        raise FileNotFoundError(f"a picture cannot be read: {error}") from error
