"""What an operator does at night, in a browser beside workers that run: find, understand, plan, stop, edit."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from deploy.local import Stack
from shared.database.users import Role, Users
from shared.domain.messages import Order
from shared.domain.password import hash_password
from tests.browser.conftest import Open
from tests.browser.visits import PASSWORD
from tests.e2e.gpu import PAID
from tests.e2e.promises import audit
from tests.e2e.system import System, some_orders
from tests.integration.console_lab import CHEAP
from tests.servers import VhostPool, free_port, new_database
from tests.waiting import eventually

#: What the simulated servers are told to fail with: not a reason to try again elsewhere.
_NO_MEMORY = {"exception_type": "torch.OutOfMemoryError", "message": "Allocation on device"}
_WITHIN_MS = 60_000


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def system(stack: Stack, _vhosts: VhostPool, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One try for each order, so that it dies at once; audited when all is over."""
    folder, vhost = tmp_path_factory.mktemp("system"), stack.broker.url_of(_vhosts.take())
    settings = {"RETRY_MAX_ATTEMPTS": 1}
    system = System(folder, new_database(stack), vhost, gpus=2, capacity=4, settings=settings)
    try:
        workers = [system.add(service, wait=False) for service in ("submitter", "poller")]
        workers.append(system.add("ops", wait=False, CONSOLE_PORT=url.rpartition(":")[2]))
        for role in Role:
            Users(system.engine).add(role, role, hash_password(PASSWORD, CHEAP), "test")
        system.wait_ready(workers)
        yield system
        audit(system)
    finally:
        system.stop()


@pytest.fixture
def dead(system: System) -> Iterator[list[Order]]:
    """Orders whose letters are there, and servers that still fail."""
    orders = some_orders(50)
    for gpu in system.gpus:
        gpu.faults(fail_execution=_NO_MEMORY)
    system.place(*orders)
    system.await_status("failed", *orders)
    eventually(lambda: len(_letters(system, orders)) == len(orders), within=20, what="all letters are recorded")
    yield orders
    for gpu in system.gpus:
        gpu.heal()


def test_fifty_letters_are_understood_planned_and_completed_beside_other_orders(
    system: System, url: str, dead: list[Order], opened: Open
) -> None:
    visit = opened(url)
    visit.sign_in("operator")
    page = visit.page
    page.get_by_role("searchbox").first.fill(dead[7].idempotency_key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(dead[7].idempotency_key[:20])
    expect(page.get_by_text("torch.OutOfMemoryError").first).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="processing").first).to_be_visible()

    for gpu in system.gpus:
        gpu.heal()
    _plan(page, "Allocation on device")
    expect(page.get_by_role("heading", level=1)).to_contain_text("50 of 50 letters would go round")
    expect(page.get_by_role("row", name="will run 50 pending again")).to_be_visible()
    assert system.statuses(dead) == {"failed": 50}  # a preview sends nothing
    others = some_orders(10)
    system.place(*others)
    page.get_by_label("Letters per second").fill("100")
    page.get_by_label("Ramp").fill("1, 5, 25")
    page.get_by_role("button", name="Apply: send 50 letters").click()
    expect(page.get_by_text("running", exact=False).first).to_be_visible()
    expect(page.get_by_text("50 of 50 ended")).to_be_visible(timeout=_WITHIN_MS)  # without anybody loading the page
    expect(page.locator(".head").first).to_contain_text("done")

    system.await_status("completed", *dead, *others)
    for order in dead:
        assert [run["outcome"] in PAID for run in system.runs_of(order)].count(True) == 1
    deeds = system.sql("select by_whom, action from operator_actions where subject = 'plan 1' order by id")
    people = [(deed.by_whom, deed.action) for deed in deeds if deed.action != "plan done"]
    assert people == [("operator", "plan make"), ("operator", "plan apply")]


def test_a_plan_whose_letters_fail_again_stops_itself_and_goes_on_when_told(
    system: System, url: str, dead: list[Order], opened: Open
) -> None:
    visit = opened(url)
    visit.sign_in("operator")
    page = visit.page

    _plan(page, "Allocation on device")
    page.get_by_label("Letters per second").fill("50")
    page.get_by_label("Ramp").fill("5, 5, 5")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert")).to_contain_text("It stopped itself", timeout=_WITHIN_MS)
    sent = system.sql(
        "select count(*) as n from plan_items where state <> 'waiting' and plan_id = (select max(id) from plans)"
    )[0].n
    assert sent < 50

    for gpu in system.gpus:
        gpu.heal()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("50 of 50 ended")).to_be_visible(timeout=_WITHIN_MS)
    system.await_status("completed", *_those(system, dead, "completed"))
    assert len(_those(system, dead, "completed")) >= 50 - sent


def test_an_edited_order_is_made_with_the_other_input(
    system: System, url: str, dead: list[Order], opened: Open
) -> None:
    for gpu in system.gpus:
        gpu.heal()
    order = dead[0]
    (letter,) = _letters(system, [order])
    visit = opened(url)
    visit.sign_in("editor", f"/letters/{letter}")
    page = visit.page

    page.get_by_role("link", name="Edit and replay").click()
    page.get_by_label("color").fill("not a colour")
    page.get_by_role("button", name="Replay with these").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was changed")
    visit.complaints.clear()  # the browser notes that it was refused
    page.get_by_label("color").fill("77")
    page.get_by_role("button", name="Replay with these").click()

    expect(page.get_by_role("status")).to_contain_text("Pending again with other color")
    expect(page.locator(".head").first).to_contain_text("completed", timeout=_WITHIN_MS)  # the page follows it
    expect(page.get_by_role("img").first).to_be_visible()
    (row,) = system.await_status("completed", order)
    assert row.body["inputs"]["color"] == 77


def _plan(page: Page, kind: str) -> None:
    """From the overview to the preview of a plan with all letters of a kind."""
    page.get_by_role("link", name="Dead letters", exact=True).click()
    page.get_by_role("link", name=kind).first.click()
    page.get_by_label("of this list, and none that arrives later").check()
    page.get_by_role("button", name="Plan a replay").click()


def _letters(system: System, orders: list[Order]) -> list[int]:
    ids = [str(order.task_id) for order in orders]
    statement = "select id from dead_letters where task_id = any(cast(:ids as uuid[])) and state = 'open' order by id"
    return [row.id for row in system.sql(statement, ids=ids)]


def _those(system: System, orders: list[Order], status: str) -> list[Order]:
    rows = {row.id for row in system.rows(orders) if row.status == status}
    return [order for order in orders if order.task_id in rows]
