"""Who gets into the console: signing in and out, roles, forms of our own pages alone, headers of every answer."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database import users
from shared.database.users import MAX_OF_ADDRESS, MAX_OF_BOTH, Role, Users
from shared.domain.errors import DatabaseAway
from shared.domain.password import hash_password
from tests.factories import at_once
from tests.integration.console_lab import CHEAP, PASSWORD, Browser, ConsoleLab
from tests.integration.console_pages import read, routes_of

#: Of routes that name a row; there is none like this.
NOWHERE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path)
    yield lab
    lab.close()


def paths(lab: ConsoleLab, method: str) -> list[str]:
    """Every page that takes this method, but for the login page."""

    found = [route.path for route in routes_of(lab.app.app) if method in route.methods and route.path != "/login"]
    assert len(found) > 4
    return [re.sub(r"\{[^}]*\}", "1", re.sub(r"\{[^}]*task_id[^}]*\}", NOWHERE, path)) for path in found]


# --- signing in and out -----------------------------------------------------------------------------------------------


def test_whoever_is_not_signed_in_is_sent_to_the_login_page_and_comes_back(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    browser = lab.browser()

    sent = browser.get("/?a=b%26c")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/login?next=%2F%3Fa%3Db%2526c")

    assert 'value="/?a=b%26c"' in browser.get(sent.headers["Location"]).text
    signed = browser.sign_in("ann", next="/?a=b%26c")
    assert (signed.status_code, signed.headers["Location"]) == (303, "/?a=b%26c")
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil", "/\t/x"])
def test_signing_in_leads_to_pages_of_ours_alone(lab: ConsoleLab, elsewhere: str) -> None:
    lab.as_(Role.VIEWER, "ann")

    assert lab.browser().sign_in("ann", next=elsewhere).headers["Location"] == "/"


def test_without_users_the_login_page_says_how_to_make_one(lab: ConsoleLab) -> None:
    page = read(lab.browser().get("/login").text)

    assert "darkroom user add NAME --role editor" in page.text
    assert not page.all("form")


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")

    wrong = lab.browser().sign_in("ann", "not the password")
    unknown = lab.browser().sign_in("bob", "not the password")

    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.replace('value="ann"', "") == unknown.text.replace('value="bob"', "")
    assert "set-cookie" not in wrong.headers


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_behind_tls_of_plain_http(
    lab: ConsoleLab, tmp_path: Path
) -> None:
    lab.as_(Role.VIEWER, "ann")
    behind_tls = ConsoleLab(lab.url, tmp_path, console_url="https://ops.example")

    plain = lab.browser().sign_in("ann").headers["Set-Cookie"]
    secure = Browser(behind_tls.app, "https://ops.example").sign_in("ann").headers["Set-Cookie"]
    behind_tls.close()

    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(plain.split("; "))
    assert "Secure" not in plain.split("; ")
    assert "Secure" in secure.split("; ")


def test_the_table_holds_neither_a_password_nor_a_token(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER, "ann")

    kept = str(lab.sql("select * from users")) + str(lab.sql("select token_hash from sessions")[0].token_hash.tobytes())

    assert PASSWORD not in kept
    assert browser.cookies["darkroom_session"] not in kept


def test_signing_out_ends_the_session_itself_and_not_only_the_cookie(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER)
    stolen = lab.browser()
    stolen.cookies = browser.cookies.__class__(browser.cookies)
    assert stolen.get("/").status_code == 200

    assert browser.post("/logout").status_code == 303

    assert stolen.get("/").status_code == 303


def test_a_session_ends_by_itself(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER)

    lab.sql("update sessions set ends_at = now()")

    assert browser.get("/").status_code == 303


def test_a_part_of_a_page_that_is_asked_for_without_a_session_sends_the_whole_page_to_the_login(
    lab: ConsoleLab,
) -> None:
    answer = lab.browser().get("/orders?status=failed", **{"HX-Request": "true"})

    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/login?next=%2Forders%3Fstatus%3Dfailed"


def test_a_new_password_or_none_signs_a_person_out_and_a_new_role_counts_at_once(lab: ConsoleLab) -> None:
    ann, bob, cem = (lab.as_(Role.OPERATOR, name) for name in ("ann", "bob", "cem"))

    lab.users.set_password("ann", hash_password("another password", CHEAP), "root")
    lab.users.remove("bob", "root")
    lab.users.set_role("cem", Role.VIEWER, "root")

    assert ann.get("/").status_code == bob.get("/").status_code == 303
    assert ann.sign_in("ann", "another password").status_code == 303
    assert bob.sign_in("bob").status_code == 401
    assert cem.get("/").status_code == 200
    assert cem.post("/backends/resume", name="gpu-1").status_code == 403


def test_a_password_changed_while_it_was_compared_opens_nothing(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    stored = lab.users.password_hash("ann")
    assert stored is not None

    lab.users.set_password("ann", hash_password("another password", CHEAP), "root")

    assert lab.users.begin("ann", stored, "127.0.0.1") is None


# --- too many tries ---------------------------------------------------------------------------------------------------


def test_after_five_failed_logins_even_the_right_password_is_refused_for_a_while(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    browser = lab.browser()
    for _ in range(MAX_OF_BOTH):
        assert browser.sign_in("ann", "wrong").status_code == 401

    assert browser.sign_in("ann").status_code == 429
    assert browser.sign_in("ann").status_code == 429

    lab.sql("update login_attempts set at = at - interval '15 minutes'")
    assert browser.sign_in("ann").status_code == 303


def test_a_new_password_opens_the_door_at_once_as_the_page_says(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    browser = lab.browser()
    for _ in range(MAX_OF_BOTH + 1):
        closed = browser.sign_in("ann", "wrong")
    assert "have somebody run <code>darkroom user password</code>" in closed.text

    lab.users.set_password("ann", hash_password("another password", CHEAP), "root")

    assert browser.sign_in("ann", "another password").status_code == 303


def test_a_login_that_succeeds_takes_back_the_failed_ones(lab: ConsoleLab) -> None:
    lab.as_(Role.VIEWER, "ann")
    browser = lab.browser()
    for _ in range(2):
        for _ in range(MAX_OF_BOTH - 1):
            browser.sign_in("ann", "wrong")
        assert browser.sign_in("ann").status_code == 303


def test_one_address_cannot_try_name_after_name(lab: ConsoleLab) -> None:
    tried = [lab.users.may_try(f"user-{number}", "10.0.0.1") for number in range(MAX_OF_ADDRESS + 2)]

    assert tried == [True] * MAX_OF_ADDRESS + [False] * 2
    assert lab.users.may_try("user-0", "10.0.0.2")


def test_tries_at_the_same_moment_share_one_limit(lab: ConsoleLab) -> None:
    people = [Users(lab.engine) for _ in range(12)]

    tried = at_once([lambda user=user: user.may_try("ann", "10.0.0.1") for user in people])  # type: ignore[misc]

    assert sum(tried) <= MAX_OF_BOTH


def test_old_tries_do_not_stay_in_the_table(lab: ConsoleLab) -> None:
    lab.users.may_try("ann", "10.0.0.1")
    lab.sql("update login_attempts set at = at - interval '1 hour'")

    lab.users.may_try("bob", "10.0.0.1")

    assert [row.user_name for row in lab.sql("select user_name from login_attempts")] == ["bob"]


# --- forms ------------------------------------------------------------------------------------------------------------


def test_every_form_is_refused_to_a_viewer_and_no_page_shows_one_a_button(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    task = lab.processing()
    viewer = lab.as_(Role.VIEWER)

    for path in paths(lab, "POST"):
        if path != "/logout":
            assert viewer.post(path, name="gpu-1", reason="x", why="x").status_code == 403, path
    for path in ("/", "/orders", f"/orders/{task.id}", "/backends", "/audit"):
        assert read(viewer.get(path).text).posts == ["/logout"], path

    assert lab.now(task).status == "processing"
    assert lab.actions() == []


def test_every_form_is_refused_without_the_word_of_its_session(lab: ConsoleLab) -> None:
    editor, other = lab.as_(Role.EDITOR), lab.as_(Role.EDITOR, "other")

    for path in paths(lab, "POST"):
        for word in ("", "0" * 64, other.csrf(), "\u00e9"):
            assert editor.post(path, csrf=word, name="gpu-1", reason="x").status_code == 403, (path, word)
    assert lab.actions() == []
    assert editor.get("/").status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://console.test", "http://console.test:1"]
)
def test_every_form_is_refused_to_a_page_from_elsewhere(lab: ConsoleLab, origin: str | None) -> None:
    editor = lab.as_(Role.EDITOR)

    for path in paths(lab, "POST"):
        assert editor.post(path, origin=origin, name="gpu-1", reason="x").status_code == 403, path
    headers = {} if origin is None else {"Origin": origin}
    login = editor.ask("POST", "/login", data={"name": "an-editor", "password": PASSWORD}, headers=headers)
    assert login.status_code == 403
    assert lab.actions() == []


def test_behind_a_proxy_the_address_that_the_browser_shows_is_ours(lab: ConsoleLab, tmp_path: Path) -> None:
    lab.as_(Role.VIEWER, "ann")
    proxied = ConsoleLab(lab.url, tmp_path, console_url="https://ops.example/")
    login = {"name": "ann", "password": PASSWORD}

    ours = proxied.browser().ask("POST", "/login", data=login, headers={"Origin": "https://ops.example"})
    theirs = proxied.browser().ask("POST", "/login", data=login, headers={"Origin": "https://evil.example"})
    proxied.close()

    assert (ours.status_code, theirs.status_code) == (303, 403)


def test_a_form_that_is_too_large_or_no_form_at_all_is_refused(lab: ConsoleLab) -> None:
    editor = lab.as_(Role.EDITOR)
    word, origin = editor.csrf(), {"Origin": "http://console.test"}

    assert editor.post("/backends/pause", name="x" * 600_000).status_code == 413
    assert editor.ask("POST", "/backends/pause", json={"csrf": word}, headers=origin).status_code == 415
    many = "&".join(f"f{number}=1" for number in range(20_001)).encode()
    typed = origin | {"Content-Type": "application/x-www-form-urlencoded"}
    assert editor.ask("POST", "/backends/pause", content=many, headers=typed).status_code == 400
    assert editor.ask("POST", "/backends/pause", content=b"csrf=%ff", headers=typed).status_code == 400
    assert editor.post("/backends/pause", name="gpu-1", reason="a\0b").status_code == 422


# --- every answer -----------------------------------------------------------------------------------------------------


def test_every_page_needs_a_session(lab: ConsoleLab) -> None:
    for path in paths(lab, "GET"):
        assert lab.browser().get(path).status_code == 303, path


def test_every_answer_forbids_what_no_page_of_ours_does(lab: ConsoleLab, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = lab.as_(Role.VIEWER)
    answers = [browser.get(path) for path in ("/", "/login", "/static/console.css", "/static/nothing", "/nothing")]
    answers += [lab.browser().get("/"), browser.post("/login"), browser.ask("PUT", "/")]

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(users.Users, "session", fail)
    answers.append(browser.get("/"))

    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 303, 401, 405, 500]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
            assert rule in policy.split("; "), answer.url
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        kept = "/static/console.css" in str(answer.url)
        assert answer.headers["Cache-Control"] == ("public, max-age=31536000, immutable" if kept else "no-store")
    assert "ZeroDivisionError" not in answers[-1].text


def test_no_page_carries_script_or_style_of_its_own_or_names_another_host(lab: ConsoleLab) -> None:
    lab.backends(gpu_1=1)
    task = lab.processing()
    lab.exporter.turn()
    browser = lab.as_(Role.EDITOR)

    for path in ("/", "/orders", f"/orders/{task.id}", "/backends", "/audit", "/login", "/nothing"):
        page = read(browser.get(path).text)
        assert not page.all("style"), path
        assert all(script.get("src", "").startswith("/static/") for script in page.all("script")), path
        assert not [name for name in page.attributes if name.startswith("on") or name == "style"], path
        for _, attributes in page.elements:
            for name in ("href", "src", "action", "hx-get", "hx-post"):
                assert attributes.get(name, "/").startswith(("/", "#")), (path, attributes)


def test_while_the_database_is_away_the_page_says_so(lab: ConsoleLab, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = lab.as_(Role.VIEWER)

    def away(*_: object) -> None:
        raise DatabaseAway("gone")

    monkeypatch.setattr(users.Users, "session", away)

    answer = browser.get("/")
    assert answer.status_code == 503
    assert "is away" in read(answer.text).text


def test_what_was_done_is_said_whatever_it_is_written_in(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.OPERATOR)

    answer = browser.post("/backends/pause", name="\u2764" * 1500, reason="r")

    assert len(answer.headers["Set-Cookie"]) < 4096  # a browser drops a longer one
    assert "There is no backend \u2764" in read(browser.get("/backends").text).text


def test_words_that_were_planted_in_a_cookie_are_not_said(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.OPERATOR)
    lab.backends(gpu_1=1)
    answer = browser.post("/backends/pause", name="gpu-1", reason="r")
    said = answer.cookies["darkroom_said"].strip('"')

    assert "gpu-1 gets no new work" in read(browser.get("/backends").text).text
    assert 'role="status"' not in browser.get("/backends").text

    other = lab.as_(Role.OPERATOR, "other")
    other.cookies.set("darkroom_said", said, domain="console.test", path="/")
    assert 'role="status"' not in other.get("/backends").text
