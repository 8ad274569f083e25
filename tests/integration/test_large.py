"""The data set of `python -m benchmarks.large`, small: it must be one that this system could have made."""

from collections.abc import Iterator

import pytest

from benchmarks.large import NotEmpty, fill
from deploy.local import Stack
from shared.database.audit import run_audit
from shared.domain.letters import failure_fingerprint
from shared.domain.messages import Order
from shared.domain.task import job_key_for, seed_for
from tests.factories import Rows
from tests.servers import drop_database, new_database

_TASKS = 3000
_LETTERS = 1000
#: Everything that does not depend on the moment of the filling.
_DIGEST = """
select md5(string_agg(line, ';' order by line)) from (
    select concat_ws(',', t.id, t.status, t.backend, t.reason, t.detail, m.version, m.to_status, m.backend) as line
    from tasks t join task_moves m on m.task_id = t.id
    union all select concat_ws(',', d.id, d.task_id, d.detail, d.state, d.closed_by) from dead_letters d) lines
"""
_KEYS_AND_INDEXES = """
select format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) as told from pg_constraint
union all select pg_get_indexdef(indexrelid) from pg_index where indrelid::regclass::text !~ '^pg_'
union all select format('%s %s %s', tgrelid::regclass, tgname, tgenabled) from pg_trigger where not tgisinternal
order by told
"""


class NoPictures:
    """Says of every picture that it is not there."""

    def digest(self, key: str) -> str:
        raise FileNotFoundError(key)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    before = rows.sql(_KEYS_AND_INDEXES)
    fill(database_url, tasks=_TASKS, letters=_LETTERS, seed=1)
    assert rows.sql(_KEYS_AND_INDEXES) == before, "nothing that guards the rows is missing afterwards"
    yield rows
    rows.close()


def test_a_large_data_set_is_one_that_this_system_could_have_made(rows: Rows) -> None:
    findings = run_audit(rows.engine, NoPictures())
    assert {finding.detail.partition(":")[0] for finding in findings} == {"picture 0 is not in the store"}
    (counts,) = rows.sql("select (select count(*) from tasks) as tasks, (select count(*) from dead_letters) as letters")
    assert counts._mapping == {"tasks": _TASKS, "letters": _LETTERS}

    (groups,) = rows.sql("select count(*) as groups, sum(total) as letters from letter_groups")
    assert 35 <= groups.groups <= 45
    assert groups.letters == _LETTERS
    letters = rows.sql("select reason, pool, detail, fingerprint from dead_letters")
    assert all(failure_fingerprint(row.reason, row.pool, row.detail) == row.fingerprint for row in letters)

    for row in rows.sql("""
        select t.id, t.body, t.fingerprint, a.attempt, a.job_key, a.seed
        from tasks t left join attempts a on a.task_id = t.id
    """):
        order = Order.model_validate(row.body)
        assert (order.task_id, order.fingerprint) == (row.id, row.fingerprint)
        if row.attempt is not None:
            job_key = job_key_for(row.id, row.attempt)
            assert (job_key, seed_for(job_key)) == (row.job_key, row.seed)


def test_the_same_seed_makes_the_same_data_set_and_never_on_top_of_another(rows: Rows, stack: Stack) -> None:
    with pytest.raises(NotEmpty):
        fill(rows.url, tasks=_TASKS, letters=_LETTERS, seed=1)
    digests = {}
    for seed in (1, 2):
        url = new_database(stack)
        fill(url, tasks=_TASKS, letters=_LETTERS, seed=seed)
        again = Rows(url)
        digests[seed] = again.sql(_DIGEST)
        again.close()
        drop_database(stack, url)
    assert digests[1] == rows.sql(_DIGEST)
    assert digests[2] != digests[1]
