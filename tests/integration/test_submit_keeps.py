"""Pictures of a synchronous provider: nobody can ask for them again, so whoever has them keeps the row meanwhile."""

from collections.abc import Iterator
from typing import Any

import pytest

from services.submitter import keep
from shared.domain.errors import ProviderAway, StorageAway
from shared.domain.task import Status
from shared.providers.base import Succeeded
from tests.integration.submit_lab import Lab, names


@pytest.fixture
def lab(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(keep, "_AGAIN_SECONDS", 0.01)
    lab = Lab(database_url)
    lab.provider.answer = Succeeded(outputs=[{}])
    yield lab
    lab.close()


@pytest.mark.parametrize("away", ["provider", "store"])
def test_each_try_to_keep_a_picture_has_the_row_for_a_whole_lease(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    task, put = lab.pending(), lab.store.put
    left: list[float] = []

    def look() -> None:
        """How long the row is still ours, before so much of that passes that it nearly is not."""
        [row] = lab.sql("select extract(epoch from free_at - now())::float8 as left from tasks")
        left.append(row.left)
        lab.provider.meanwhile["fetch"] = look
        lab.sql("update tasks set free_at = now() + interval '1 second'")

    def put_once_it_is_there(*given: Any) -> Any:
        if len(left) < 2:
            raise StorageAway("no answer")
        return put(*given)

    lab.provider.meanwhile["fetch"] = look
    if away == "provider":
        lab.provider.plan("fetch", ProviderAway("no answer"), None)
    else:
        monkeypatch.setattr(lab.store, "put", put_once_it_is_there)

    verdict, row = lab.ended(task)

    assert (row.status, lab.provider.count("submit")) == (Status.COMPLETED, 1)
    assert names(verdict) == ["order.completed"]
    assert [seconds > 50 for seconds in left] == [True, True]
