"""Cancels jobs at their provider, and tells by what comes of it whether the server's worker is dead or alive again."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.errors import ProviderAway
from shared.domain.retry import Bug, tried
from shared.domain.task import Task
from shared.providers.base import Job, Provider

log = logging.getLogger(__name__)


class Cancels:
    """By id only, and as often as it takes.

    frozen_after_seconds -- a job that outlives its cancelling by so long means that its server's worker is dead
    """

    def __init__(
        self, tasks: Tasks, slots: Slots, providers: Mapping[str, Provider], *, frozen_after_seconds: float
    ) -> None:
        self._tasks = tasks
        self._slots = slots
        self._providers = providers
        self._frozen_after = frozen_after_seconds

    def is_settled(self, row: Task) -> bool:
        """Whether a final row owes no cancel any more. Raises nothing but Outage: what cannot be done stays owed."""
        provider = self._providers.get(row.backend or "")
        if provider is None:
            # A backend newer than this process; one that was started later knows it.
            log.warning("cancel still owed: backend not known here", extra={"backend": row.backend})
            return False
        gone = tried(lambda _: self._is_gone(row, provider), lambda _: None)
        if isinstance(gone, Bug):
            log.error("cancel still owed: it met a bug", extra={"backend": row.backend})
            return False
        return gone

    def _is_gone(self, row: Task, provider: Provider) -> bool:
        try:
            return self.cancel(row, provider, (row.now - row.changed_at).total_seconds())
        except ProviderAway as error:
            if self._is_gone_for_good(row.backend):
                log.warning("cancel dropped: its backend was removed and is silent", extra={"backend": row.backend})
                return True
            log.warning("cancel still owed", extra={"backend": row.backend, "why": str(error)})
            return False

    def cancel(self, row: Task, provider: Provider, overdue_seconds: float) -> bool:
        """True: the job is not queued or running any more. Raises ProviderAway.

        overdue_seconds -- for how long it has been somebody's wish that the job ends
        """
        if provider.cancel(self._job(row)):
            self.has_ended(row)
            return True
        if overdue_seconds > self._frozen_after and self._slots.freeze(row.backend or "", row.job_key):
            # Its jobs stay where they are: another server may only have them once this one was restarted.
            log.error("backend frozen: restart it", extra={"backend": row.backend, "job_key": str(row.job_key)})
        return False

    def has_ended(self, row: Task) -> None:
        """If this is the job that froze its server, that is over: a dead worker ends no job."""
        if self._slots.thaw(row.backend or "", row.job_key):
            log.info("backend health changed", extra={"backend": row.backend, "health": "up"})

    def _job(self, row: Task) -> Job:
        """A provider may have named the job after the row had moved on: then only `attempts` has its id."""
        job = Job.of(row)
        return job if job.provider_job_id else replace(job, provider_job_id=self._tasks.accepted_as(row))

    def _is_gone_for_good(self, name: str | None) -> bool:
        """No longer in the backends file, and called unreachable or frozen before it gave us no answer."""
        return any(b.name == name and not b.enabled and b.health != "up" for b in self._slots.backends())
