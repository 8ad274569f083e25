"""An API that takes orders and loses its answers gets no more of them than it takes to see that it does."""

from collections.abc import Iterator

import pytest

from shared.database.doubts import IN_A_ROW
from shared.domain.task import Status, Task
from tests.factories import at_once
from tests.integration.api_lab import SHIPPED
from tests.integration.doubts_lab import ApiLab, hung_up, openai
from tests.integration.scripted_server import Server, answer
from tests.integration.submit_lab import Lab


@pytest.fixture
def lab(database_url: str, server: Server) -> Iterator[ApiLab]:
    lab = ApiLab(database_url, server)
    yield lab
    lab.close()


def statuses(lab: Lab, tasks: list[Task]) -> list[str]:
    return [lab.now(task).status for task in tasks]


def closed(lab: ApiLab, server: Server) -> list[Task]:
    """Orders that wait at a provider which has lost its answers; those that it got are with a person."""
    server.on("POST /jobs", hung_up)
    tasks = [lab.order() for _ in range(IN_A_ROW + 4)]
    for _ in range(3 * len(tasks)):
        lab.handle()
    assert lab.health() == "silent"
    return [task for task in tasks if lab.now(task).status is Status.PENDING]


def probe(lab: ApiLab) -> None:
    """Its moment has come, and there are permits for more than the one order."""
    lab.sql("update backends set probe_at = now()")
    lab.handle(4)
    lab.handle(4)


def unknown(lab: ApiLab) -> int:
    return len(lab.sql("select from tasks where reason = 'outcome_unknown'"))


def test_a_few_lost_answers_in_a_row_close_the_provider_and_all_other_orders_wait(lab: ApiLab, server: Server) -> None:
    waiting = closed(lab, server)

    assert (lab.posts(), unknown(lab), len(waiting)) == (IN_A_ROW, IN_A_ROW, 4)
    assert [len(lab.attempts(task)) for task in waiting] == [0] * 4, "no try was begun for them"
    assert {lab.now(task).charged for task in waiting} == {0}
    backend = lab.backend()
    assert (backend.takes_work, backend.state, backend.wants_permits) == (False, "away", False)
    assert f"{IN_A_ROW} orders in a row without a usable answer" in (backend.health_detail or "")


def test_a_probe_that_is_answered_opens_the_provider_for_all(lab: ApiLab, server: Server) -> None:
    waiting = closed(lab, server)
    server.on("POST /jobs", *[answer(200, {"id": f"j{n}"}) for n in range(4)])
    lab.sql("update backends set probe_at = now()")
    assert lab.backend().wants_permits

    lab.handle(4)
    assert sorted(statuses(lab, waiting)) == ["pending"] * 3 + ["processing"], "one order tries it"
    assert (lab.health(), lab.backend().health_detail) == ("up", None)

    lab.handle(4)
    assert statuses(lab, waiting) == ["processing"] * 4


def test_a_probe_that_is_lost_is_the_only_new_doubt_and_the_next_one_comes_later(lab: ApiLab, server: Server) -> None:
    waiting = closed(lab, server)
    for number in (1, 2):
        probe(lab)
        assert (lab.health(), lab.posts(), unknown(lab)) == ("silent", IN_A_ROW + number, IN_A_ROW + number)
    assert sorted(statuses(lab, waiting)) == ["failed"] * 2 + ["pending"] * 2
    (row,) = lab.sql("select extract(epoch from probe_at - now())::int as wait from backends")
    assert 115 <= row.wait <= 120


def test_after_a_probe_was_answered_it_takes_as_many_doubts_again(lab: ApiLab, server: Server) -> None:
    closed(lab, server)
    server.on("POST /jobs", answer(200, {"id": "j1"}), hung_up)
    lab.sql("update backends set probe_at = now()")
    health = []
    for _ in range(1 + IN_A_ROW):
        lab.handle()
        health.append(lab.health())
        lab.handle()  # what was lost is taken over, and goes to a person
    assert health == ["up"] * IN_A_ROW + ["silent"]


@pytest.mark.parametrize("good", [answer(200, {"id": "j1"}), answer(451, {})], ids=["accepted", "rejected"])
def test_doubts_with_answers_between_them_never_close_it(lab: ApiLab, server: Server, good: bytes) -> None:
    lab.backends(gpu_1=50)
    for number in range(IN_A_ROW * 2):
        turn = good.replace(b"j1", b"j%d" % number)
        server.on("POST /jobs", hung_up, hung_up, turn)
        for _ in range(3):
            lab.order()
            lab.handle()
            lab.handle()
        assert lab.health() == "up"
    assert unknown(lab) == IN_A_ROW * 4


def test_pictures_in_the_answer_count_as_one(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["openai_images"])
    server.on("POST /images/generations", *[hung_up, hung_up, openai()] * IN_A_ROW)
    for _ in range(IN_A_ROW * 3):
        lab.pending(inputs={"model": "m", "prompt": "p"})
        lab.handle()
        lab.handle()
    assert (lab.health(), unknown(lab)) == ("up", IN_A_ROW * 2)


def test_doubts_of_several_workers_are_counted_together(lab: ApiLab) -> None:
    """The row of the backend counts, so of three workers with a doubt each one closes it."""
    answers = at_once([lambda: lab.slots.doubt("gpu-1", "reset")] * IN_A_ROW)
    assert (sorted(answers), lab.health()) == ([False] * (IN_A_ROW - 1) + [True], "silent")


def test_a_silent_provider_that_then_refuses_the_account_says_so(lab: ApiLab, server: Server) -> None:
    closed(lab, server)
    server.on("POST /jobs", answer(402, {}))
    probe(lab)
    assert lab.health() == "refused"


def test_an_operator_can_open_a_silent_provider_and_the_count_begins_again(lab: ApiLab, server: Server) -> None:
    closed(lab, server)
    assert lab.slots.resume("gpu-1", "ana")
    assert lab.backend().takes_work
    assert not lab.slots.doubt("gpu-1", "reset")
    assert lab.health() == "up"
