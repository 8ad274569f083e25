"""A synchronous provider's pictures, kept in the same breath: nobody can ask for them again."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Final

from services.submitter.ends import Ends
from services.submitter.insist import Insist
from shared.database.moves import Change
from shared.database.tasks import Tasks
from shared.domain.errors import ProviderAway, ProviderRejected, StorageAway
from shared.domain.fit import MARGIN_SECONDS
from shared.domain.messages import Artifact, event
from shared.domain.outcome import Done, FollowUp, Verdict
from shared.domain.task import Reason, Status, Task
from shared.pictures import BrokenPicture
from shared.providers.base import Failed, Job, Provider, Succeeded
from shared.storage import Artifacts

log = logging.getLogger(__name__)

#: Between two tries to fetch or store pictures that a synchronous provider has made: nobody can ask it for them again.
_AGAIN_SECONDS: Final = 2.0


class Keep:
    """For all threads."""

    def __init__(self, tasks: Tasks, artifacts: Artifacts, ends: Ends, insist: Insist, lease_seconds: float) -> None:
        self._tasks = tasks
        self._artifacts = artifacts
        self._ends = ends
        self._insist = insist
        self._lease = lease_seconds

    def keep(self, task: Task, provider: Provider, made: Succeeded) -> Verdict:
        """Store the pictures and complete the row.

        Tried for one lease, and each try has the row for a whole one: the last of them may take its time.
        """
        ends = time.monotonic() + self._lease - MARGIN_SECONDS
        while True:
            if not self._insist(lambda: self._tasks.own_for(task, self._lease)):
                return self._ends.not_sent(task)
            try:
                kept = self._stored(task, provider.fetch(Job.of(task), made.outputs))
            except (ProviderAway, StorageAway) as error:
                log.warning("picture not kept yet", extra={"backend": task.backend, "why": str(error)})
                if time.monotonic() + _AGAIN_SECONDS > ends:
                    if isinstance(error, StorageAway):
                        return self._ends.fail(task, Reason.STORE_FAILED, str(error))
                    return self._ends.badly(task, Failed(reason=Reason.NO_OUTPUTS, why=str(error), retryable=True))
                if self._insist.stopping.wait(_AGAIN_SECONDS):
                    raise
            except (BrokenPicture, FileNotFoundError) as error:
                return self._ends.badly(task, Failed(reason=Reason.NO_OUTPUTS, why=str(error), retryable=True))
            except ProviderRejected as error:  # a picture that we do not take, of a job that was made
                return self._ends.badly(task, Failed(reason=error.reason, why=str(error), retryable=False))
            else:
                return self._complete(task, made, kept)

    def _stored(self, task: Task, pictures: Iterable[BinaryIO]) -> list[Artifact]:
        kept = []
        for index, picture in enumerate(pictures):
            with picture:
                kept.append(self._artifacts.put(task.id, task.attempt, index, picture))
        return kept

    def _complete(self, task: Task, made: Succeeded, kept: Sequence[Artifact]) -> Verdict:
        change = Change(task=task, to=Status.COMPLETED, artifacts=kept, attempt_outcome="completed", cost=made.cost)
        completed = self._insist(lambda: self._tasks.move([change])).get(task.id)
        if completed is None:
            now = self._insist(lambda: self._tasks.refresh(task))
            if now.status is not Status.COMPLETED:
                return self._ends.not_sent(task)
            completed = now  # our own commit worked
        said = {"from": task.status, "to": completed.status, "backend": task.backend, "attempt": task.attempt}
        log.info("task moved", extra={**said, "duration_ms": task.lasted_ms(completed), "pictures": len(kept)})
        then = [event(completed, "completed", list(kept))]
        return Done(then=then, follow_up_of=[FollowUp(completed.id, completed.version)])
