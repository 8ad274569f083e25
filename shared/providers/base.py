"""What a provider can do for us, and how it answers: submit, check, fetch."""

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, Self, runtime_checkable

from shared.domain.task import Accepted, Cost, Reason, Sent, Task, seed_for

__all__ = [
    "Accepted",
    "Failed",
    "FetchesTogether",
    "GoOn",
    "Gone",
    "Job",
    "JobState",
    "Prepared",
    "Provider",
    "Repeat",
    "Running",
    "SubmitsTogether",
    "Succeeded",
    "Unclear",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt of one task, as a provider sees it."""

    task_id: uuid.UUID
    attempt: int
    job_key: uuid.UUID
    seed: int
    workflow: str | None
    inputs: Mapping[str, Any] = field(repr=False)
    provider_job_id: str | None = None
    #: What the provider gave with the job to ask about it, such as addresses; empty when it gave nothing.
    handle: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Seconds since the row came into its status: for a processing one, since the job was accepted.
    age_seconds: float = math.inf
    #: What was sent for this attempt before; None when that was not looked up.
    sent: Sent | None = None

    @classmethod
    def of(cls, task: Task, sent: Sent | None = None) -> Self:
        """The attempt a submitting or later row is at. Raises ValueError for a row that was never taken."""
        if task.job_key is None:
            raise ValueError(f"task {task.id} has no attempt under way")
        return cls(
            task_id=task.id,
            attempt=task.attempt,
            job_key=task.job_key,
            seed=seed_for(task.job_key),
            workflow=task.workflow,
            inputs=task.inputs,
            provider_job_id=task.provider_job_id or (sent.provider_job_id if sent is not None else None),
            handle=task.job_handle,
            age_seconds=(task.now - task.changed_at).total_seconds(),
            sent=sent,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything the one POST needs, made before it. `body_hash` is SHA-256 (hex) of what will be sent."""

    job: Job
    body: Mapping[str, Any] = field(repr=False)
    body_hash: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """Whether the provider has the job cannot be told.

    searched -- what was asked, for a person to read
    ask_in   -- seconds after which asking once more may tell; None: it never will
    resend   -- it is sent again, as if there were none
    """

    searched: str
    ask_in: float | None = None
    resend: bool = False


@dataclass(frozen=True, slots=True)
class Repeat:
    """The job may be there. The same POST under the same key makes no second one; a POST of another attempt would.

    searched   -- as of `Unclear`, for when the repeat does not tell
    may_double -- it may make a second one, which the provider's table says is worth its bill
    """

    searched: str
    may_double: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """Queued or running.

    waiting -- known not to have started
    unknown -- the provider said something we do not know; that is read as running
    """

    waiting: bool = False
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The work is done; `outputs` is what `fetch` needs, in the order of the pictures.

    finished_at -- the provider's own finish stamp, Unix seconds, None when it gives none
    cost        -- what the job has cost, None when the provider does not say
    """

    outputs: Sequence[Mapping[str, Any]] = field(repr=False)
    finished_at: float | None = None
    cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The job is known to have ended badly.

    retryable    -- another attempt may work (lost, out of memory, broken backend)
    once         -- at most one more attempt makes sense (execution error of the graph itself)
    elsewhere    -- preferably, or for `once` if there is one, on another server
    attempt_outcome -- the word kept with the attempt where the reason is too coarse; None: the reason
    """

    reason: Reason
    why: str
    retryable: bool
    once: bool = False
    elsewhere: bool = False
    attempt_outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """Neither queued, running nor finished there, looked at twice, and its output files do not exist."""


JobState = Running | Succeeded | Failed | Gone


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job a provider tells of when it is asked for all of them. is_over -- neither queued nor running"""

    provider_job_id: str
    is_over: bool


class Provider(Protocol):
    """One backend. Every method may be called from several threads at once.

    No exception of `requests` leaves an implementation; see shared/domain/errors.py for what each one allows.
    """

    #: Seconds that one `submit` may take at most, its own looking after a doubt included; the lease is longer.
    submit_limit_seconds: float
    #: For how long it keeps what a job made; None: for longer than we are ever away.
    result_ttl_seconds: float | None

    def problems(self, workflow: str | None, inputs: Mapping[str, Any]) -> list[str]:
        """What is wrong with such an order, one sentence each; empty: `prepare` will take it. Pure."""

    def prepare(self, job: Job) -> Prepared:
        """Fetch, check and upload the inputs and make the body. Creates no job; safe to repeat.

        Raises ProviderRejected (INVALID_WORKFLOW or bounds), InputUnavailable, InputLater, ProviderBusy.
        """

    def submit(self, prepared: Prepared) -> Accepted | Succeeded | Failed:
        """Send the one POST. A synchronous provider answers with the pictures, or with a job that ended badly.

        Raises ProviderBusy, AccountRefused, ProviderRejected, OutcomeUnknown.
        """

    def recover(self, job: Job) -> Accepted | Gone | Repeat | Unclear:
        """What became of a POST whose answer nobody has; `job.sent` says what is known of it.

        Accepted -- the job is there; Gone -- it was never made. Raises ProviderAway.
        """

    def check(self, jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        """The state of each job, by job_key: one bulk call, single reads for the absent. Raises ProviderAway."""

    def ended(self, ours: Callable[[Sequence[str]], Sequence[Job]]) -> Mapping[uuid.UUID, JobState]:
        """The states of jobs that ended lately, by job_key, however many are running. Raises ProviderAway.

        ours -- given provider job ids, the jobs among them that somebody still waits for
        """

    def fetch(self, job: Job, outputs: Sequence[Mapping[str, Any]]) -> Iterator[BinaryIO]:
        """The pictures, streamed into spooled files.

        Raises ProviderAway, FileNotFoundError, ProviderRejected (a picture larger than we take).
        """

    def cancel(self, job: Job) -> bool:
        """Cancel by id, queued or running. True: it is not queued or running any more. Raises ProviderAway."""

    def is_alive(self) -> bool | None:
        """Whether the server answers at all; None: no question short of an order would tell. Never raises."""


#: The rest of a `submit` whose POST has ended, to be called once; it answers and raises as `submit` does.
GoOn = Callable[[], Accepted | Succeeded | Failed]


@runtime_checkable
class SubmitsTogether(Provider, Protocol):
    """A provider that many POSTs can be sent to from one thread: each costs less than one from a thread of its own."""

    def is_plain(self, job: Job) -> bool:
        """Whether `prepare` of this job asks nobody, and so takes no time. Pure."""

    def submit_together(self, prepared: Sequence[Prepared]) -> Iterator[list[tuple[int, Accepted | GoOn]]]:
        """Send the one POST of each, all at once; by place, as they end, what has been accepted, and what takes longer.

        Raises nothing that `submit` raises: that comes from the GoOn.
        """


@runtime_checkable
class FetchesTogether(Provider, Protocol):
    """A provider whose pictures one thread can fetch side by side."""

    def fetch_together(
        self, outputs: Sequence[Sequence[Mapping[str, Any]]]
    ) -> Iterator[list[tuple[int, Sequence[BinaryIO] | Exception]]]:
        """`fetch` of each: by place its pictures, or what it would raise, as they come."""
