"""The console as a browser shows it: to strangers' words, to phones, to a keyboard alone, to whoever may not act."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from starlette.responses import HTMLResponse

from deploy.local import Stack
from shared.database.adopt import Refused
from shared.database.plans import Plans
from shared.database.users import Role
from shared.domain.password import hash_password
from shared.domain.task import Status
from tests.browser.conftest import Open
from tests.browser.served import served
from tests.browser.visits import PASSWORD, PHONE, Visit
from tests.integration.console_lab import CHEAP
from tests.integration.hostile_rows import a_hostile_order
from tests.integration.letters_lab import LettersLab
from tests.servers import new_database

#: Runs when a page takes it for more than text, wherever it stands; each of its addresses leaves this host.
_EVIL = (
    "\"'`><script>window.hit=1</script><img src=//evil.example/x onerror=window.hit=2>"
    "<svg onload=window.hit=3><a href=javascript:window.hit=4 autofocus onfocus=window.hit=5 hx-get=//evil.example"
    " hx-trigger=load>{{7*7}}</textarea></title><style>@import'//evil.example'</style>"
)


@pytest.fixture(scope="module")
def lab(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LettersLab]:
    lab = LettersLab(new_database(stack), tmp_path_factory.mktemp("lab"))
    for role in Role:
        lab.console.users.add(role, role, hash_password(PASSWORD, CHEAP), "test")
    for number in range(3):
        lab.dead(detail=f"node {number} broke", order_id=f"order-{number}")
    lab.completed(order_id="order-well")
    lab.unreadable()
    assert not isinstance(Plans(lab.engine).make(lab.ids(), "test"), Refused)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def url(lab: LettersLab) -> Iterator[str]:
    with served(lab.console.app) as url:
        yield url


def _every_page(lab: LettersLab) -> list[str]:
    letters, tasks = lab.ids(state=None), lab.sql("select id from tasks")
    groups = lab.sql("select fingerprint from letter_groups")
    plans = lab.sql("select id from plans")
    return [
        *(
            "/",
            "/orders",
            "/letters",
            "/letters?show=all",
            "/letters/list",
            "/plans",
            "/backends",
            "/audit",
        ),
        *(f"/letters/{letter}" for letter in (letters[0], letters[-1])),
        *(f"/orders/{tasks[place].id}" for place in (0, -1)),
        *(f"/letters/groups/{group.fingerprint}" for group in groups),
        *(f"/plans/{plan.id}" for plan in plans),
    ]


def test_a_viewer_finds_an_order_and_has_nothing_to_press(lab: LettersLab, url: str, opened: Open) -> None:
    visit = opened(url)
    visit.sign_in("viewer", "/letters")
    page = visit.page
    expect(page).to_have_title("Dead letters · darkroom")  # where the person wanted to go before signing in

    page.get_by_role("link", name="node 2 broke").click()
    expect(page.get_by_role("heading", name="3 open: execution_failed")).to_be_visible()
    page.get_by_role("link", name="node 0 broke").last.click()
    page.get_by_role("definition").get_by_role("link").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("order-0")
    for path in _every_page(lab):
        page.goto(path)
        buttons = page.locator("main").get_by_role("button")
        assert set(buttons.all_text_contents()) <= {"Filter", "Show"}, path


def test_a_keyboard_is_enough(lab: LettersLab, url: str, opened: Open) -> None:
    visit = opened(url)
    page = visit.page
    page.goto("/")
    page.keyboard.type("operator")  # the field has the focus
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    expect(page.get_by_text("Skip to the content")).to_be_in_viewport()
    page.keyboard.press("/")
    page.keyboard.type("order-well")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("order-well")

    page.goto("/letters/list?reason=invalid_message")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "checkbox":
            break
    page.keyboard.press("Space")
    expect(page.get_by_role("checkbox")).to_be_checked()
    why = page.get_by_role("textbox", name="Why")
    why.focus()
    page.keyboard.type("cut off on its way")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Archive")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.get_by_role("status")).to_contain_text("1 archived")
    assert len(lab.ids(state="archived")) == 1


def test_a_page_that_cannot_be_kept_up_to_date_says_so_until_it_can(lab: LettersLab, url: str, opened: Open) -> None:
    visit = opened(url)
    visit.sign_in("viewer", "/backends")
    page = visit.page
    expect(page.get_by_role("alert")).to_be_hidden()

    page.route("**/backends", lambda route: route.fulfill(status=503, body="away"))
    expect(page.get_by_role("alert")).to_contain_text("What you see is old")
    page.unroute("**/backends")

    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("row", name="gpu-1")).to_be_visible()
    visit.complaints.clear()  # the browser notes each answer that was none


def test_a_plan_is_made_applied_and_aborted_without_scripts(lab: LettersLab, url: str, opened: Open) -> None:
    visit = opened(url, scripts=False)
    visit.sign_in("operator", "/letters/list?reason=execution_failed")
    page = visit.page
    page.get_by_role("checkbox").last.check()
    page.get_by_role("button", name="Plan a replay").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("1 of 1 letters would go round")
    page.get_by_role("button", name="Apply: send 1 letter").click()
    expect(page.get_by_role("status")).to_contain_text("The plan runs")
    page.get_by_role("button", name="Abort").click()
    expect(page.locator(".head").first).to_contain_text("aborted")


def test_strangers_words_stay_words_wherever_they_stand(stack: Stack, tmp_path: Path, opened: Open) -> None:
    lab = LettersLab(new_database(stack), tmp_path)
    lab.console.users.add("editor", Role.EDITOR, hash_password(PASSWORD, CHEAP), "test")
    a_hostile_order(lab.console, _EVIL)
    try:
        with served(lab.console.app) as url:
            visit = opened(url)
            visit.sign_in("editor")
            for path in _every_page(lab):
                visit.page.goto(path)
                assert visit.page.evaluate("window.hit") is None, path
                assert visit.page.locator("main script, svg[onload], main style, [onerror], [onfocus]").count() == 0
                assert "window.hit=1" in (visit.page.text_content("main") or ""), path
    finally:
        lab.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_scrolls_sideways_on_a_phone(lab: LettersLab, url: str, opened: Open, dark: bool) -> None:
    visit = opened(url, size=PHONE, dark=dark)
    visit.sign_in("editor")
    for path in [*_every_page(lab), f"/letters/{lab.ids()[0]}/edit"]:
        visit.page.goto(path)
        assert not visit.scrolls_sideways(), path
        expect(visit.page.get_by_role("heading", level=1)).to_be_in_viewport()
        ways = visit.page.get_by_role("navigation", name="Main").get_by_role("link").all()
        assert len({way.bounding_box()["y"] for way in ways}) == 1, path  # one line


def test_a_form_of_another_site_is_refused_though_the_browser_sends_the_cookie(
    lab: LettersLab, url: str, browser: Browser
) -> None:
    """Another port of this host is the same site to a browser, so SameSite holds nothing back."""
    (letter,) = lab.ids(fingerprint=_group_of(lab, "execution_failed"))[:1]
    form = (
        f'<form method="post" action="{url}/letters/close"><input name="deed" value="discard">'
        f'<input name="id" value="{letter}"><input name="why" value="x"><button>Win a prize</button></form>'
    )

    async def elsewhere(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # an ASGI application
        await HTMLResponse(form)(scope, receive, send)

    visit = Visit(browser, url)
    visit.sign_in("operator")
    with served(elsewhere) as evil:
        visit.page.goto(evil)
        with visit.page.expect_request(f"{url}/letters/close") as sent:
            visit.page.get_by_role("button").click()
        assert "darkroom_session" in sent.value.all_headers()["cookie"]
        expect(visit.page.get_by_role("heading", level=1)).to_contain_text("Nothing was done")
    visit.close()

    assert letter in lab.ids()


def test_a_page_of_our_own_is_refused_without_its_sessions_word_and_a_viewer_with_it(
    lab: LettersLab, url: str, browser: Browser
) -> None:
    (letter,) = lab.ids(fingerprint=_group_of(lab, "execution_failed"))[:1]
    plans = _count(lab, "plans")
    post = (
        """async ([path, fields]) => (await fetch(path, {method: "POST", body: new URLSearchParams(fields)})).status"""
    )
    fields = {"deed": "discard", "id": str(letter), "why": "x"}
    for name, word in (("operator", None), ("operator", "0" * 64), ("viewer", "right")):
        visit = Visit(browser, url)
        visit.sign_in(name)
        right = visit.page.locator('input[name="csrf"]').first.input_value()
        csrf = {} if word is None else {"csrf": right if word == "right" else word}
        for path in ("/letters/close", "/letters/replay", "/plans"):
            assert visit.page.evaluate(post, [path, fields | csrf]) == 403, (name, path)
        visit.close()

    assert letter in lab.ids()
    assert _count(lab, "plans") == plans
    assert {row.status for row in lab.sql("select status from tasks")} == {Status.FAILED, Status.COMPLETED}


def _count(lab: LettersLab, table: str) -> int:
    return int(lab.sql(f"select count(*) as n from {table}")[0].n)  # noqa: S608 - our own name


def _group_of(lab: LettersLab, reason: str) -> str:
    return str(lab.sql("select fingerprint from letter_groups where reason = :reason", reason=reason)[0].fingerprint)
