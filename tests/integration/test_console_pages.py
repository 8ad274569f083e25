"""The console's pages: what they say, how they are found, and foreign text that stays text."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.users import Role
from shared.domain.task import Reason, Status
from tests.factories import POOL, a_claim
from tests.integration.console_lab import ConsoleLab
from tests.integration.console_pages import read
from tests.integration.hostile_rows import HOSTILE, SHOWN, a_hostile_order


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path)
    yield lab
    lab.close()


def test_foreign_text_stays_text_on_every_page(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.EDITOR)

    paths = ["/", "/orders", f"/orders/{task.id}", "/backends", "/audit"]
    paths += ["/letters", "/letters/list", "/letters/groups/f", "/letters/1", "/plans", "/plans/1", "/plans/2"]
    for path in paths:
        answer = browser.get(path)
        page = read(answer.text)
        assert answer.status_code == 200, path
        assert SHOWN in page.text, path
        assert not page.all("x-evil"), path
        assert "onx" not in page.attributes, path
        assert all(link.startswith(("/", "#")) for link in page.links), path
        for link in page.links:
            assert browser.get(link).status_code in (200, 303, 404), (path, link)


def test_whatever_somebody_types_into_a_filter_comes_back_as_text(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER)

    for path in ("/orders", "/audit"):
        for name in ("q", "pool", "subject", "by", "action"):
            answer = browser.ask("GET", path, params={name: HOSTILE})
            assert answer.status_code == 200
            assert not read(answer.text).all("x-evil"), (path, name)


@pytest.mark.parametrize(
    "path",
    [
        "/orders?q=a%00b",
        "/letters?reason=%00",
        "/letters/groups/%00",
        "/letters/list?since=0001-01-01T00:00%2B14:00",
        "/letters/list?until=99999999d",
        "/audit?since=9999-12-31T23:59-14:00",
        f"/orders?before=0001-01-01T00:00%2B23:59~{uuid.UUID(int=1)}",
    ],
)
def test_what_no_database_can_hold_is_refused_with_a_reason(lab: ConsoleLab, path: str) -> None:
    answer = lab.as_(Role.VIEWER).get(path)

    assert answer.status_code == 422
    assert read(answer.text).all("nav")


def test_a_picture_is_served_as_one_and_as_nothing_else(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.VIEWER)

    answer = browser.get(f"/orders/{task.id}/pictures/1/0")

    assert answer.content == lab.store.read(f"{task.id}/1/0.png")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert browser.get(f"/orders/{task.id}/pictures/1/1").status_code == 404
    assert browser.get(f"/orders/{task.id}/pictures/1/{2**40}").status_code == 404


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_is_found_by_every_name_it_has(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    task = lab.processing(idempotency_key="shop-1-a", order_id="shop-1")
    lab.pending(idempotency_key="shop-2-a", order_id="shop-2")
    lab.tasks.claim([a_claim(idempotency_key="shop-1-b", order_id="shop-1")])
    browser = lab.as_(Role.VIEWER)

    for name in (task.id, task.job_key, "shop-1-a", "shop-1", "shop-1-b", f"  {str(task.id).upper()} "):
        answer = browser.ask("GET", "/orders", params={"q": name})
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/orders/{task.id}"), name
    assert "No order has this name" in browser.get("/orders?q=shop").text


def test_an_order_id_of_several_tasks_lists_them_the_newest_first(lab: ConsoleLab) -> None:
    first = lab.failed(order_id="shop-1")
    second = lab.pending(order_id="shop-1")

    page = read(lab.as_(Role.VIEWER).get("/orders?q=shop-1").text)

    assert [link for link in page.links if link.startswith("/orders/")] == [
        f"/orders/{second.id}",
        f"/orders/{first.id}",
    ]


def test_pages_of_a_list_hold_every_order_once_though_others_come_in_between(lab: ConsoleLab) -> None:
    placed = {str(row.task.id) for row in lab.tasks.claim([a_claim() for _ in range(120)])}
    browser = lab.as_(Role.VIEWER)
    seen: list[str] = []
    to = f"/orders?status=pending&pool={POOL}"
    while to:
        page = read(browser.get(to).text)
        seen += [link.removeprefix("/orders/") for link in page.links if link.startswith("/orders/")]
        lab.pending()
        to = next((a["href"] for a in page.all("a") if a.get("rel") == "next"), "")

    assert len(seen) == len(placed)
    assert set(seen) == placed


def test_lists_are_narrowed_by_status_and_pool_and_say_when_nothing_is_left(lab: ConsoleLab) -> None:
    here, elsewhere = lab.pending(), lab.pending(pool="other-pool")
    failed = lab.failed()
    browser = lab.as_(Role.VIEWER)

    def orders(path: str) -> set[str]:
        return {link.removeprefix("/orders/") for link in read(browser.get(path).text).links if "/orders/" in link}

    assert orders("/orders") == {str(here.id), str(elsewhere.id), str(failed.id)}
    assert orders("/orders?pool=other-pool") == {str(elsewhere.id)}
    assert orders(f"/orders?pool={POOL}&status=failed") == {str(failed.id)}
    assert orders("/orders?status=failed&status=pending") == {str(here.id), str(elsewhere.id), str(failed.id)}
    assert "No order is like this" in browser.get("/orders?pool=nobodys").text
    for wrong in ("status=done", "before=x", "before=2026-01-01T00:00:00~7"):
        assert browser.get(f"/orders?{wrong}").status_code == 422, wrong


def test_the_story_of_an_order_is_told_whole(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    task = lab.processing(idempotency_key="shop-1-a", order_id="shop-1")
    lab.tasks.claim([a_claim(idempotency_key="shop-1-b", order_id="shop-1")])
    task = lab.moved(task, Status.FAILED, reason=Reason.LOST, detail="it vanished", attempt_outcome="lost")

    text = " ".join(read(lab.as_(Role.VIEWER).get(f"/orders/{task.id}").text).text.split())

    for words in (
        "pending → submitting on gpu-1",
        "processing → failed on gpu-1 (lost)",
        f"accepted as {task.job_key}",
        "shop-1-b kept with this task: same order id",
        "it vanished",
        f'"trace_id": "{task.trace_id}"',
        '"workflow": "demo"',
    ):
        assert words in text, words


def test_an_endless_story_is_cut_in_the_middle(lab: ConsoleLab) -> None:
    task = lab.pending()
    lab.sql("alter table task_moves disable trigger user")
    lab.sql(
        "insert into task_moves (task_id, version, at, from_status, to_status, actor, attempt)"
        " select :id, n, now(), 'submitting', 'pending', 'test', 1 from generate_series(10, 2009) n",
        id=task.id,
    )
    lab.sql(
        "insert into backends (name, pool, adapter, url, capacity, max_run_seconds)"
        " values ('gpu-1', 'comfyui', 'comfyui', 'http://127.0.0.1:1', 1, 60)"
    )
    lab.sql(
        "insert into attempts (task_id, attempt, backend, job_key, seed)"
        " select :id, n, 'gpu-1', gen_random_uuid(), n from generate_series(1, 1000) n",
        id=task.id,
    )

    page = read(lab.as_(Role.VIEWER).get(f"/orders/{task.id}").text)

    assert "more: darkroom order trace" in page.text
    assert "950 more between the first and the last: darkroom order trace" in page.text
    assert len(page.all("li")) < 250
    assert len(page.all("tr")) < 60


def test_what_an_order_says_is_shown_without_its_secrets(lab: ConsoleLab) -> None:
    task = lab.pending(inputs={"image": "https://a:pw@shop.example/p.png?sig=topsecret", "prompt": "a red door"})

    page = lab.as_(Role.VIEWER).get(f"/orders/{task.id}").text

    assert "a red door" in page
    assert "topsecret" not in page
    assert "a:pw" not in page


def test_commands_in_an_empty_state_are_code(lab: ConsoleLab) -> None:
    for path, command in (("/", "darkroom submit"), ("/orders", "darkroom submit")):
        page = lab.as_(Role.VIEWER, path.strip("/") or "ann").get(path).text
        assert f"<code>{command}</code>" in page, path
        assert "`" not in page, path


def test_there_is_no_page_for_an_order_that_is_none(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.OPERATOR)

    assert browser.get("/orders/00000000-0000-4000-8000-000000000000").status_code == 404
    assert browser.get("/orders/nothing").status_code == 404
    assert browser.post("/orders/00000000-0000-4000-8000-000000000000/cancel").status_code == 404


def test_forms_stand_only_where_they_can_do_something(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=2)
    operator = lab.as_(Role.OPERATOR)
    running = lab.processing()
    done = lab.moved(lab.processing(), Status.COMPLETED)

    def forms(path: str) -> list[str]:
        return [action.rpartition("/")[2] for action in read(operator.get(path).text).posts[1:]]

    assert forms(f"/orders/{running.id}") == ["cancel"]
    assert forms(f"/orders/{done.id}") == []
    doubted = lab.moved(running, Status.FAILED, reason=Reason.OUTCOME_UNKNOWN)
    assert forms(f"/orders/{doubted.id}") == ["submit-again", "give-up", "adopt"]
    assert forms("/backends") == ["pause"]
    lab.slots.pause("gpu-1", "ann", "why", None)
    assert forms("/backends") == ["resume", "pause"]


# --- overview, audit --------------------------------------------------------------------------------------------------


def test_the_overview_names_what_is_wrong_and_since_when(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=2, gpu_2=1, gpu_3=1)
    browser = lab.as_(Role.VIEWER)
    assert "Nothing is known yet" in browser.get("/").text
    lab.exporter.turn()
    assert "All is well" in browser.get("/").text

    lab.slots.set_health("gpu-2", "down", "refused")
    lab.slots.pause("gpu-3", "ann", "new driver", None)
    alone = lab.age(lab.pending(), changed_at=7200)
    lab.sql("update tasks set pinned_backend = 'gpu-3'")
    lab.sql(
        "insert into dead_letters (identity, stage, reason, detail, fingerprint, headers, at)"
        " values ('i', 'orders', 'invalid_message', 'd', 'f', '{}', now() - interval '3 hours')"
    )
    lab.exporter.turn()
    text = " ".join(read(browser.get("/").text).text.split())

    assert "4 things ask for you" in text
    assert "1 order waits for gpu-3 alone, which takes no work" in text
    assert "gpu-3 alone; blocked: it is paused (new driver)" in browser.get(f"/orders/{alone.id}").text
    assert "gpu-2 does not answer for" in text
    assert "gpu-3 is paused: new driver" in text
    assert "1 dead letter waits for a decision for 3 h" in text
    assert "2 h" in text.partition("Pools")[2]


def test_the_overview_counts_what_ended_in_the_last_hour(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=3)
    lab.moved(lab.processing(), Status.COMPLETED)
    lab.failed()

    text = " ".join(read(lab.as_(Role.VIEWER).get("/").text).text.split())

    assert "completed 1 ✕ failed 1 ⊘ cancelled 0" in text


def test_the_audit_is_narrowed_by_person_action_subject_and_time(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    lab.slots.pause("gpu-1", "ann", "new driver", None)
    lab.slots.resume("gpu-1", "ann")
    lab.sql(
        "insert into operator_actions (at, by_whom, action, subject, detail)"
        " values ('2026-01-01T12:00Z', 'bob', 'backend pause', 'gpu-2', '{}')"
    )
    browser = lab.as_(Role.VIEWER)

    def deeds(query: str) -> list[str]:
        page = read(browser.get(f"/audit?{query}").text)
        return [link.partition("by=")[2] for link in page.links if link.startswith("/audit?by=")]

    assert deeds("subject=gpu-1") == ["ann", "ann"]
    assert deeds("by=bob") == ["bob"]
    assert deeds("action=backend+pause") == ["bob", "ann"]
    assert deeds("by=ann&action=backend+resume") == ["ann"]
    assert deeds("since=2026-01-01T00:00&until=2026-01-02T00:00") == ["bob"]
    assert deeds("by=nobody") == []
    assert "Nobody did anything like this" in browser.get("/audit?by=nobody").text
    assert browser.get("/audit?since=yesterday").status_code == 422
    assert browser.get("/audit?before=x").status_code == 422


def test_pages_of_the_audit_hold_every_action_once(lab: ConsoleLab) -> None:
    lab.sql(
        "insert into operator_actions (by_whom, action, subject, detail)"
        " select 'ann', 'order cancel', 's-' || n, '{}' from generate_series(1, 250) n"
    )
    browser = lab.as_(Role.VIEWER)
    seen: list[str] = []
    to = "/audit?by=ann"
    while to:
        page = read(browser.get(to).text)
        seen += re.findall(r"s-\d+", page.text)
        to = next((a["href"] for a in page.all("a") if a.get("rel") == "next"), "")

    assert seen == [f"s-{number}" for number in range(250, 0, -1)]


def test_the_overview_leads_to_the_orders_that_nobody_looks_at(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    lab.age(lab.processing(), due_at=60)
    lab.exporter.turn()

    page = read(lab.as_(Role.VIEWER).get("/").text)

    assert "1 × running orders that no poller looked at when it should have" in page.text
    assert "/orders?status=processing" in page.links
