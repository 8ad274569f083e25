"""One ComfyUI server as a provider. Never two prompts for one attempt, unless a lost answer is proven lost.

`prompt_id` is the job key, so whoever knows the task can ask for its job. ComfyUI does not refuse a repeated id: it
queues and runs it again. Every doubt is therefore settled by looking (queue, history, output files) before anything
is sent again, and a POST that nobody answered is left alone until its lease is over (docs/decisions/0016). Measured
facts about the server: version 0.33.0 is `modern` here, 0.3.64 is `legacy`.
"""

import hashlib
import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from shared.domain.errors import (
    InputLater,
    InputUnavailable,
    OutcomeUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.task import Reason
from shared.observe.crash import CrashPoint, crash_point
from shared.providers.base import Accepted, Gone, GoOn, Job, JobState, Prepared, Running, Unclear
from shared.providers.comfyui_answers import PromptAccepted, misses_picture, read, refusal
from shared.providers.comfyui_http import Answer, BadAnswer, NoAnswer, NoConnection, Observe, Server, Silence, Timings
from shared.providers.comfyui_looks import Looks
from shared.providers.comfyui_pictures import fetched, fetched_together
from shared.providers.inputs import Picture, Pictures
from shared.providers.workflow import OUR_FOLDER, Workflows

#: Largest picture taken from a server.
MAX_PICTURE_BYTES: Final = 64 * 2**20
#: Names of pictures a server is known to hold. Losing one costs an upload of bytes it already has.
_UPLOADS_REMEMBERED: Final = 1024
#: Whom a server tells of each step of our jobs: no socket has this id. Without one it tells all of them
#: (ws_no_client_id.jsonl), and the watcher needs no more than `status`, which all get anyway (ws_bystander.jsonl). A
#: string always: any other kind would end the server.
_CLIENT_ID: Final = "darkroom"
#: Statuses that a wrong address or a proxy in front gives: nothing was created, and no order is at fault.
_NOT_COMFYUI: Final = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 421})
#: A proxy has waited as long as it would; the server may still carry out what it was sent.
_PROXY_WAITED: Final = frozenset({504, 524})


def ignore(operation: str, result: str, seconds: float) -> None:  # the shape of Observe
    """Observes nothing."""


class ComfyUI:
    """Implements shared.providers.base.Provider, SubmitsTogether and FetchesTogether."""

    def __init__(
        self,
        name: str,
        url: str,
        workflows: Workflows,
        pictures: Pictures,
        *,
        timings: Timings | None = None,
        observe: Observe = ignore,
        unknown_state: Callable[[], None] = lambda: None,
        max_picture_bytes: int = MAX_PICTURE_BYTES,
    ) -> None:
        self.name = name
        self._workflows = workflows
        self._pictures = pictures
        self._timings = timings or Timings()
        self._max_picture_bytes = max_picture_bytes
        self._server = Server(url, self._timings, observe, on_lost=self._forget_generation)
        self._looks = Looks(self._server, workflows, settle=self._timings.settle, unknown_state=unknown_state)
        self._uploaded = _Uploads()
        self.submit_limit_seconds = self._submit_limit()
        self.result_ttl_seconds: float | None = None  # its files stay until somebody deletes them

    # -- before the POST

    def problems(self, workflow: str | None, inputs: Mapping[str, Any]) -> list[str]:
        return self._workflows.problems(workflow, inputs)

    def prepare(self, job: Job) -> Prepared:
        """Fetch, check and upload the input pictures and render the graph.

        extra_data is an object, as anything else can break GET /api/jobs for everybody.
        """
        workflow = self._workflows.for_job(job)
        names = {name: self._upload(self._pictures.get(job.inputs[name])) for name in workflow.image_inputs}
        body = {
            "prompt": self._workflows.render(job, names),
            "prompt_id": str(job.job_key),
            "client_id": _CLIENT_ID,
            "extra_data": {},
        }
        return Prepared(job=job, body=body, body_hash=hashlib.sha256(_canonical(body)).hexdigest())

    def _upload(self, picture: Picture) -> str:
        """`subfolder/name` under which the server holds exactly these bytes; uploaded unless it is known to."""
        known = self._uploaded.get(picture.sha256)
        if known is not None:
            return known
        try:
            answer = self._server.upload(
                f"{picture.sha256}.png", picture.png, {"subfolder": OUR_FOLDER, "type": "input", "overwrite": "false"}
            )
        except NoConnection as error:
            raise ProviderBusy(str(error), is_down=True) from error
        except NoAnswer as error:
            raise ProviderBusy(str(error)) from error
        if answer.status in (400, 413):
            raise ProviderRejected(f"the server refused the input picture: HTTP {answer.status} {answer.text[:200]}")
        self._raise_if_closed(answer, "POST /upload/image")
        crash_point(CrashPoint.INPUT_UPLOADED)
        name, folder = _uploaded_as(answer)
        reference = f"{folder}/{name}" if folder else name
        self._uploaded.remember(picture.sha256, reference)
        return reference

    # -- the POST

    def submit(self, prepared: Prepared) -> Accepted:
        """Send the one POST; after a doubt look twice, and only after a proven absence send it once more.

        Source: ComfyUI POST /prompt. After a lost answer the prompt ran in 212 of 212 cases when the whole body was
        sent, and in 0 of 150 when it was cut off: after a broken connection what is not there will not come. A 500 does
        not mean that nothing was queued.
        """
        return self._submit(prepared, self._ends(), partial(self._sent, prepared))

    def is_plain(self, job: Job) -> bool:
        """Nobody is asked for the pictures of a job that takes none."""
        workflow = self._workflows.get(job.workflow)
        return workflow is not None and not workflow.image_inputs

    def submit_together(self, prepared: Sequence[Prepared]) -> Iterator[list[tuple[int, Accepted | GoOn]]]:
        ends = self._ends()
        for _ in prepared:
            _posting()
        for ended in self._server.post_each_once("/prompt", "submit", [_canonical(each.body) for each in prepared]):
            for _ in ended:
                _posted()
            yield [
                (place, _plainly_accepted(found, prepared[place]) or partial(self._go_on, prepared[place], ends, found))
                for place, found in ended
            ]

    def _go_on(self, prepared: Prepared, ends: float, found: Answer | ProviderAway) -> Accepted:
        """What `submit` does once its first POST has ended."""

        def first() -> Answer:
            if isinstance(found, ProviderAway):
                raise found
            return found

        return self._submit(prepared, ends, first)

    def _ends(self) -> float:
        return time.monotonic() + self.submit_limit_seconds - self._timings.settle

    def _submit(self, prepared: Prepared, ends: float, first: Callable[[], Answer]) -> Accepted:
        """first -- the answer to the first POST, or what is raised instead"""
        with self._server.until(ends):
            try:
                return self._read(prepared, first)
            except _PictureGone as gone:
                prepared = self._prepare_again(prepared, gone, ends)
            except NoAnswer as lost:
                return self._settle(prepared, ends, lost)
            try:
                return self._post(prepared)
            except _PictureGone as gone:
                raise ProviderRejected(str(gone)) from gone
            except NoAnswer as lost:
                return self._settle(prepared, ends, lost)

    def _settle(self, prepared: Prepared, ends: float, lost: NoAnswer) -> Accepted:
        """Found: accepted. Proven absent for good: posted once more. Anything else: OutcomeUnknown."""
        if self._is_there(prepared.job, lost):
            return Accepted(str(prepared.job.job_key))
        if isinstance(lost, Silence):
            raise OutcomeUnknown(f"{lost}, and it is not there yet", may_arrive=True)
        if time.monotonic() + self._timings.post > ends:
            raise OutcomeUnknown("no time is left for a second POST within the lease")
        try:
            return self._post(prepared)
        except _PictureGone as gone:
            raise ProviderRejected(str(gone)) from gone
        except NoAnswer as error:
            if self._is_there(prepared.job, error):
                return Accepted(str(prepared.job.job_key))
            raise OutcomeUnknown(
                f"no usable answer to two POSTs: {error}",
                was_answered=isinstance(lost, BadAnswer) and isinstance(error, BadAnswer),
                may_arrive=isinstance(error, Silence),
            ) from error

    def _is_there(self, job: Job, lost: NoAnswer) -> bool:
        """Whether the server has the job, or its pictures. Raises OutcomeUnknown when it cannot be asked."""
        try:
            return not isinstance(self._looks.settled(job), Gone)
        except ProviderAway as error:
            why = f"the answer was lost, and then: {error}"
            raise OutcomeUnknown(why, may_arrive=isinstance(lost, Silence)) from error

    def _post(self, prepared: Prepared) -> Accepted:
        """One POST /prompt. Raises ProviderBusy, ProviderRejected, _PictureGone; NoAnswer when it may have worked."""
        return self._read(prepared, partial(self._sent, prepared))

    def _sent(self, prepared: Prepared) -> Answer:
        _posting()
        answer = self._server.post_once("/prompt", "submit", _canonical(prepared.body))
        _posted()
        return answer

    def _read(self, prepared: Prepared, post: Callable[[], Answer]) -> Accepted:
        """What the answer to a POST means; raises as `_post` does."""
        key = str(prepared.job.job_key)
        try:
            answer = post()
        except NoConnection as error:
            raise ProviderBusy(str(error), is_down=True) from error
        if answer.status == 400 and misses_picture(answer):
            raise _PictureGone(refusal(answer))
        if answer.status in (400, 413):
            raise ProviderRejected(refusal(answer))
        asks_to_wait = answer.status == 429 or (answer.status == 503 and answer.retry_after is not None)
        if answer.status in _NOT_COMFYUI or asks_to_wait:
            self._raise_if_closed(answer, "POST /prompt")
        if answer.status in _PROXY_WAITED:
            raise Silence(f"POST /prompt: HTTP {answer.status}")
        accepted = read(PromptAccepted, answer, "POST /prompt")
        if accepted.prompt_id != key:
            self._undo(accepted.prompt_id)
            raise ProviderRejected(
                f"the server gave the job an id of its own ({accepted.prompt_id[:64]}): it is older than 0.3.45"
            )
        if accepted.node_errors:
            self._undo(key)
            raise ProviderRejected(f"accepted only in part, so cancelled: {refusal(answer)}")
        return Accepted(key)

    def _raise_if_closed(self, answer: Answer, what: str) -> None:
        """ProviderBusy unless the answer is a 200: for calls that created nothing then."""
        if answer.status != 200:
            raise ProviderBusy(
                f"{what}: HTTP {answer.status}",
                retry_after_seconds=answer.retry_after,
                is_down=answer.status in _NOT_COMFYUI,
            )

    def _prepare_again(self, prepared: Prepared, gone: "_PictureGone", ends: float) -> Prepared:
        """The server lost an input picture: upload it anew. A 400 proves that nothing was created."""
        self._uploaded.clear()
        if time.monotonic() + self._reupload_limit() > ends:
            raise ProviderBusy(str(gone)) from gone
        try:
            return self.prepare(prepared.job)
        except InputLater as error:
            raise ProviderBusy(str(error)) from error
        except InputUnavailable as error:
            raise ProviderRejected(str(error), reason=Reason.INPUT_UNAVAILABLE) from error

    def _undo(self, prompt_id: str) -> None:
        """Cancel what a POST created against our will. Raises OutcomeUnknown when that cannot be seen to work."""
        try:
            self._cancel(prompt_id)
        except ProviderAway as error:
            raise OutcomeUnknown(f"job {prompt_id[:64]} should not run and could not be cancelled: {error}") from error

    # -- questions

    def find(self, job: Job) -> JobState:
        """Gone only when the job is proven absent. Raises ProviderAway."""
        found = self._looks.states([job])[job.job_key]
        crash_point(CrashPoint.JOB_LOOKED_UP)
        return found

    def recover(self, job: Job) -> Accepted | Gone | Unclear:
        """A job is called gone by looking; of a POST that ended in silence even a lease later only with a doubt."""
        state = self.find(job)
        if not isinstance(state, Gone):
            return Accepted(job.provider_job_id or str(job.job_key))
        if job.sent is not None and job.sent.looks:
            return Unclear("a POST that nobody answered has not arrived within its lease", resend=True)
        return state

    def check(self, jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        states = self._looks.states(jobs)
        crash_point(CrashPoint.STATES_READ)
        return states

    def ended(self, ours: Callable[[Sequence[str]], Sequence[Job]]) -> Mapping[uuid.UUID, JobState]:
        states = self._looks.ended(ours)
        if states:
            crash_point(CrashPoint.ENDED_READ)
        return states

    def queue_remaining(self) -> int:
        """Jobs running and waiting, ours and others'. Raises ProviderAway."""
        answer = self._server.get("/prompt", "health")
        match answer.body:
            case {"exec_info": {"queue_remaining": int(count)}} if answer.status == 200:
                return count
        raise BadAnswer(f"GET /prompt: HTTP {answer.status}, no queue_remaining")

    def is_alive(self) -> bool:
        try:
            self.queue_remaining()
        except ProviderAway:
            return False
        return True

    # -- pictures

    def fetch(self, job: Job, outputs: Sequence[Mapping[str, Any]]) -> Iterator[BinaryIO]:  # noqa: ARG002  # protocol
        """The pictures in order, each at its start; the caller closes them.

        Raises FileNotFoundError when one is gone, and ProviderRejected (NO_OUTPUTS) when one is above the size cap.
        """
        return fetched(self._server, outputs, self._max_picture_bytes)

    def fetch_together(
        self, outputs: Sequence[Sequence[Mapping[str, Any]]]
    ) -> Iterator[list[tuple[int, Sequence[BinaryIO] | Exception]]]:
        return fetched_together(self._server, outputs, self._max_picture_bytes)

    # -- cancelling

    def cancel(self, job: Job) -> bool:
        gone = self._cancel(job.provider_job_id or str(job.job_key))
        if gone:
            crash_point(CrashPoint.JOB_CANCELLED)
        return gone

    def _cancel(self, prompt_id: str) -> bool:
        """Ask for it, then watch it leave for a short while: an interrupt takes effect between nodes or steps.

        A job seen to start meanwhile is interrupted too, once: on legacy a repeated interrupt could hit the next one.
        """
        ends = time.monotonic() + self._timings.cancel_wait
        asked_as: Running | None = None
        while True:
            state = self._looks.row(prompt_id)
            if state is None:
                return True
            if state != asked_as:
                self._ask_to_stop(prompt_id, state)
                asked_as = state
            elif time.monotonic() > ends:
                return False
            else:
                time.sleep(self._timings.cancel_poll)

    def _ask_to_stop(self, prompt_id: str, state: Running) -> None:
        """Always by id: without one, /interrupt hits whatever runs, somebody else's job included."""
        if self._looks.can_cancel():
            answer = self._server.post(f"/api/jobs/{quote(prompt_id, safe='', errors='replace')}/cancel", "cancel")
            if answer.status == 200:
                return
            if answer.status not in (404, 405):  # those: 0.5 to 0.24 list jobs but cannot cancel them
                raise BadAnswer(f"POST /api/jobs/.../cancel: HTTP {answer.status}")
        if state.waiting:
            self._command("/queue", {"delete": [prompt_id]})
        elif self._looks.can_interrupt_by_id():
            self._command("/interrupt", {"prompt_id": prompt_id})

    def _command(self, path: str, value: Mapping[str, Any]) -> None:
        answer = self._server.post(path, "cancel", value)
        if answer.status != 200:
            raise BadAnswer(f"POST {path}: HTTP {answer.status}")

    # -- limits

    def _forget_generation(self) -> None:
        self._looks.forget_generation()

    def _submit_limit(self) -> float:
        """Time for a POST, two looks, the repeated POST and two looks; every call inside is cut to what is left."""
        return self._reupload_limit() + 2 * self._timings.post + 4 * (self._timings.settle + self._timings.look)

    def _reupload_limit(self) -> float:
        """A refused POST whose pictures are fetched and uploaded again; nothing without image inputs."""
        one = self._pictures.limit_seconds + self._timings.connect + self._timings.upload_read
        count = self._workflows.most_image_inputs
        return count * one + self._timings.post if count else 0.0


class _PictureGone(Exception):
    """400: an input picture is not in the server's folder. Nothing was created."""


class _Uploads:
    """Which content the server holds under which name; the oldest is forgotten first. For all threads."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str) -> str | None:
        with self._lock:
            return self._names.get(sha256)

    def remember(self, sha256: str, name: str) -> None:
        with self._lock:
            self._names[sha256] = name
            if len(self._names) > _UPLOADS_REMEMBERED:
                self._names.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._names.clear()


def _uploaded_as(answer: Answer) -> tuple[str, str]:
    match answer.body:
        case {"name": str(name), "subfolder": str(folder)} if name and ".." not in f"{folder}/{name}":
            return name, folder
    raise ProviderBusy("POST /upload/image: not an answer of ComfyUI")


def _posting() -> None:
    crash_point(CrashPoint.POSTING)


def _posted() -> None:
    crash_point(CrashPoint.POSTED)


def _plainly_accepted(found: Answer | ProviderAway, prepared: Prepared) -> Accepted | None:
    """None: there is more to be said about this answer."""
    key = str(prepared.job.job_key)
    if not isinstance(found, Answer) or found.status != 200:
        return None
    match found.body:
        case {"prompt_id": str(name), **rest} if name == key and rest.get("node_errors", {}) == {}:
            return Accepted(key)
    return None


def _canonical(body: Mapping[str, Any]) -> bytes:
    """The bytes that are sent, and hashed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
