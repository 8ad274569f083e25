"""Where a ComfyUI job is: in the queue, in the history, on disk, or nowhere. Reads only.

Nothing is called gone before two rounds of looking, some seconds apart, and a look at its output files: a request may
still sit in a socket buffer, a finished job reaches the history a moment late, and a restart forgets all but files.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from shared.providers.base import Gone, Job, JobState, Running, Succeeded
from shared.providers.comfyui_answers import (
    Detail,
    Finished,
    JobList,
    Queue,
    read,
    state_of_detail,
    state_of_finished,
    state_of_row,
)
from shared.providers.comfyui_http import BadAnswer, NoAnswer, Server
from shared.providers.workflow import Workflows

#: History entries read after a hint at least, and how many times more when the last look's newest is not among them.
#: One holds its whole graph, 4 kB to some 10 kB, and costs 11 us to read and decode; so a busy server is asked at once
#: for as many as were new to the last look, and for as many as the least beyond it.
_FIRST_LOOK_BACK: Final = 8
_LOOK_BACK_FACTOR: Final = 8
_MOST_ENTRIES: Final = 512
#: What has ended is asked about again at the looks of the next second and at one behind them: its row may not be
#: recorded yet, and whoever completes it may meet an outage.
_ASK_AGAIN_SECONDS: Final = 1.0
#: So many questions for single jobs cost more than _MOST_ENTRIES.
_CHEAPER_TOGETHER: Final = 32
#: The first version whose POST /interrupt heeds `prompt_id`; older ones kill whatever runs.
_INTERRUPTS_BY_ID: Final = (0, 3, 56)


class Looks:
    """Every way to ask one server about jobs. Usable from all threads.

    unknown_state -- told of each answer about a job that we do not understand and read as running
    """

    def __init__(
        self, server: Server, workflows: Workflows, *, settle: float, unknown_state: Callable[[], None]
    ) -> None:
        self._server = server
        self._workflows = workflows
        self._settle = settle
        self._unknown_state = unknown_state
        #: Whether GET /api/jobs exists; None: not asked since the last lost connection.
        self._is_modern: bool | None = None
        self._version: tuple[int, ...] | None = None
        self._ended_last = 0
        self._newest: str | None = None
        self._seen: dict[str, float] = {}  # ended lately, by prompt id: when it was first seen

    def forget_generation(self) -> None:
        self._is_modern = self._version = None

    def states(self, jobs: Sequence[Job]) -> dict[uuid.UUID, JobState]:
        """The state of each job: one bulk call, single reads for the absent, one wait for all that are still absent."""
        found = self._round(jobs)
        absent = [job for job in jobs if job.job_key not in found]
        if absent:
            time.sleep(self._settle)
            found |= self._round(absent)
        for job in absent:
            if job.job_key not in found:
                found[job.job_key] = self._on_disk(job)
        return found

    def settled(self, job: Job) -> JobState:
        """The state of one job whose POST may still be on its way: each of the two looks comes after a wait."""
        time.sleep(self._settle)
        return self.states([job])[job.job_key]

    def ended(self, ours: Callable[[Sequence[str]], Sequence[Job]]) -> dict[uuid.UUID, JobState]:
        """The states of our jobs among those that ended since the last look, whoever else works there; see base.py.

        One look at a time. What a look that raises would have found, the next one finds.
        """
        entries = self._since_last()
        new = _behind(self._newest, list(entries))
        now = time.monotonic()
        asked = dict.fromkeys(new, now) | self._seen
        found: dict[uuid.UUID, JobState] = {}
        singles = _CHEAPER_TOGETHER
        for job in ours(list(asked)) if asked else ():
            entry = entries.get(_id(job))
            state: JobState | None = None
            if entry is not None:
                state = self._state_of_entry(entry, job)
            elif singles:
                singles -= 1
                state = self._ended_before(job)
            if state is not None:
                found[job.job_key] = self._noted(state)
        self._seen = {prompt_id: at for prompt_id, at in asked.items() if now - at < _ASK_AGAIN_SECONDS}
        self._ended_last = len(new) if self._newest in entries else len(found)
        self._newest = new[-1] if new else self._newest
        return found

    def _since_last(self) -> Mapping[str, Any]:
        """The history from a little before what was its newest entry at the last look, as far as it can be read.

        What a new process does not see of it comes due.
        """
        most = min(_MOST_ENTRIES, self._ended_last + _FIRST_LOOK_BACK)
        self._ended_last = 0  # a read that fails is followed by a small one
        furthest = _MOST_ENTRIES if self._newest is not None else _LOOK_BACK_FACTOR * _FIRST_LOOK_BACK
        entries = self._latest(most)
        while self._newest not in entries and len(entries) >= most and most < furthest:
            most = min(furthest, most * _LOOK_BACK_FACTOR)
            try:
                entries = self._latest(most)
            except NoAnswer:  # people's entries may hold hundreds of kilobytes each
                return entries
        return entries

    def _ended_before(self, job: Job) -> JobState | None:
        """Of one that ended before what was read now."""
        try:
            return self._history(job)
        except BadAnswer:
            return Running(unknown=True)  # its neighbours must not wait for it

    def row(self, prompt_id: str) -> Running | None:
        """Whether it waits or runs right now; None when it does neither."""
        return self._active().get(prompt_id)

    def queue(self) -> Queue:
        return read(Queue, self._server.get("/queue", "poll"), "GET /queue")

    def can_cancel(self) -> bool:
        """Whether POST /api/jobs/{id}/cancel may exist."""
        return self._modern()

    def can_interrupt_by_id(self) -> bool:
        """False also when the version cannot be read: killing somebody else's job is worse than letting ours run."""
        if self._version is None:
            answer = self._server.get("/system_stats", "poll")
            match answer.body:
                case {"system": {"comfyui_version": str(version)}} if answer.status == 200:
                    self._version = version_of(version)
        return self._version is not None and self._version >= _INTERRUPTS_BY_ID

    def _round(self, jobs: Sequence[Job]) -> dict[uuid.UUID, JobState]:
        """One look at each; those that are nowhere are left out."""
        if not jobs:
            return {}
        found: dict[uuid.UUID, JobState] = {}
        active = self._active() if len(jobs) > 1 or not self._modern() else {}
        ended = self._ended_of([job for job in jobs if _id(job) not in active])
        for job in jobs:
            try:
                state = active.get(_id(job)) or ended.get(job.job_key) or self._single(job)
            except BadAnswer:
                if len(jobs) == 1:
                    raise
                state = Running(unknown=True)  # its neighbours must not wait for it
            if state is not None:
                found[job.job_key] = self._noted(state)
        return found

    def _noted(self, state: JobState) -> JobState:
        if isinstance(state, Running) and state.unknown:
            self._unknown_state()
        return state

    def _ended_of(self, jobs: Sequence[Job]) -> dict[uuid.UUID, JobState]:
        """Those among the last entries of the history; older ones are asked for one by one."""
        if len(jobs) < 2:
            return {}
        try:
            entries = self._latest(min(_MOST_ENTRIES, len(jobs) + _FIRST_LOOK_BACK))
            if sum(_id(job) not in entries for job in jobs) > _CHEAPER_TOGETHER:
                entries = self._latest(_MOST_ENTRIES)
        except BadAnswer:
            return {}
        return {job.job_key: self._state_of_entry(entries[_id(job)], job) for job in jobs if _id(job) in entries}

    def _latest(self, most: int) -> Mapping[str, Any]:
        """The last entries of the history, by prompt id. Each holds its graph, so never ask without a limit."""
        answer = self._server.get("/history", "poll", {"max_items": str(most)})
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise BadAnswer(f"GET /history: HTTP {answer.status}, not an answer of ComfyUI")
        return answer.body

    def _state_of_entry(self, entry: Any, job: Job) -> JobState:
        """What a history entry says. One that we do not understand is running, as in `_round`."""
        try:
            finished = Finished.model_validate(entry)
        except ValidationError:
            return Running(unknown=True)
        return state_of_finished(finished.outputs, finished.status, self._workflows.expected_counts(job))

    def _active(self) -> dict[str, Running]:
        """Everything queued or running, by prompt id. A poisoned entry makes /api/jobs fail; /queue still works."""
        if self._modern():
            answer = self._server.get("/api/jobs", "poll", {"status": "pending,in_progress"})
            if answer.status == 200:
                rows = ((row.id, state_of_row(row.status)) for row in read(JobList, answer, "GET /api/jobs").jobs)
                return {prompt_id: state for prompt_id, state in rows if state is not None}
            self._note_absence(answer.status)
        return dict(self.queue().states())

    def _single(self, job: Job) -> JobState | None:
        """Modern reads queue and history in one call. Legacy: the queue was read first, so a finish is not missed."""
        if not self._modern():
            return self._history(job)
        answer = self._server.get(f"/api/jobs/{quote(_id(job), safe='')}", "poll")
        if answer.status == 404 and isinstance(answer.body, dict) and "error" in answer.body:
            return None
        if answer.status == 200:
            return state_of_detail(read(Detail, answer, "GET /api/jobs/..."), self._workflows.expected_counts(job))
        self._note_absence(answer.status)
        return self.queue().states().get(_id(job)) or self._history(job)

    def _history(self, job: Job) -> JobState | None:
        """GET /history/{id}: {} for everything that has not finished, never 404."""
        answer = self._server.get(f"/history/{quote(_id(job), safe='')}", "poll")
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise BadAnswer(f"GET /history/...: HTTP {answer.status}, not an answer of ComfyUI")
        entry = answer.body.get(_id(job))
        if entry is None:
            return None
        finished = read(Finished, replace(answer, body=entry), "GET /history/...")
        return state_of_finished(finished.outputs, finished.status, self._workflows.expected_counts(job))

    def _on_disk(self, job: Job) -> JobState:
        """Succeeded when every picture lies in the folder of this attempt: a restart forgot the job, not its work."""
        files = self._workflows.expected_files(job)
        names = [{"filename": file.filename, "subfolder": file.subfolder, "type": "output"} for file in files]
        if names and all(self._server.exists(name) for name in names):
            return Succeeded(names)
        return Gone()

    def _modern(self) -> bool:
        if self._is_modern is None:
            answer = self._server.get("/api/jobs", "poll", {"limit": "1"})
            if answer.status not in (200, 400, 404, 500):
                raise BadAnswer(f"GET /api/jobs: HTTP {answer.status}")
            self._is_modern = answer.status != 404
        return self._is_modern

    def _note_absence(self, status: int) -> None:
        """After an /api/jobs* that gave no answer: 404 means that the server is another version now, 500 poison."""
        if status == 404:
            self._is_modern = False
        elif status != 500:
            raise BadAnswer(f"GET /api/jobs: HTTP {status}")


def _id(job: Job) -> str:
    """An adopted job has an id that is not its key."""
    return job.provider_job_id or str(job.job_key)


def _behind(newest: str | None, prompt_ids: list[str]) -> list[str]:
    """Those that came after it; all when it is not among them. Pure."""
    return prompt_ids[prompt_ids.index(newest) + 1 :] if newest in prompt_ids else prompt_ids


def version_of(text: str) -> tuple[int, ...] | None:
    """v0.3.64 as (0, 3, 64); None for what is no version. Pure."""
    parts = text.removeprefix("v").split(".")[:3]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None
