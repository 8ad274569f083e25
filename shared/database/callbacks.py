"""A provider says that a job has ended: the row is looked at now. Nothing else is believed, and no row moves."""

import uuid
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction

_FIND: Final = sa.text("""
select a.task_id, a.attempt from attempts a join backends b on b.name = a.backend
where a.job_key = :job_key and b.adapter = :adapter
""")

_DUE: Final = sa.text("""
update tasks set due_at = now()
where id = :task_id and attempt = :attempt and status = 'processing' and due_at > now()
""")

#: Whoever takes the row over finds the job by it; what somebody recorded with the answer of the POST stays.
_NAME: Final = sa.text("""
update attempts set provider_job_id = :job_id
where task_id = :task_id and attempt = :attempt and provider_job_id is null
""")


class Callbacks:
    """What callbacks may do to the tables."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def called(self, provider: str, job_key: uuid.UUID, job_id: str | None) -> bool:
        """Have the job's row looked at now, if it waits for one; False: no such job was sent to this provider.

        job_id -- its name at the provider, from a call that is surely the provider's; kept where nobody knew it
        """

        def work(c: sa.Connection) -> bool:
            found = c.execute(_FIND, {"job_key": job_key, "adapter": f"http:{provider}"}).one_or_none()
            if found is None:
                return False
            attempt = dict(found._mapping)
            c.execute(_DUE, attempt)
            if job_id is not None:
                c.execute(_NAME, attempt | {"job_id": job_id})
            return True

        return in_transaction(self._engine, work)
