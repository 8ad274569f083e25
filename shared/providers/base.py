"""What a provider can do for us, and how it answers: submit, check, fetch."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, Self

from shared.domain.task import Reason, Task, seed_for


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

    @classmethod
    def of(cls, task: Task) -> Self:
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
            provider_job_id=task.provider_job_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything the one POST needs, made before it. `body_hash` is SHA-256 (hex) of what will be sent."""

    job: Job
    body: Mapping[str, Any] = field(repr=False)
    body_hash: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the job under this id."""

    provider_job_id: str


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
    """

    outputs: Sequence[Mapping[str, Any]]
    finished_at: float | None = None


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

    def prepare(self, job: Job) -> Prepared:
        """Fetch, check and upload the inputs and make the body. Creates no job; safe to repeat.

        Raises ProviderRejected (INVALID_WORKFLOW or bounds), InputUnavailable, InputLater, ProviderBusy.
        """

    def submit(self, prepared: Prepared) -> Accepted:
        """Send the one POST. Raises ProviderBusy, ProviderRejected, OutcomeUnknown."""

    def find(self, job: Job) -> JobState:
        """Whether the provider knows `job.job_key`: Gone only when it is proven absent. Raises ProviderAway."""

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

    def is_alive(self) -> bool:
        """Whether the server answers at all. Never raises."""
