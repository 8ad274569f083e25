"""How long each page of the console takes over a large past, and how long it takes to plan all dead letters.

    python -m benchmarks.large                      # once: a million tasks, 100,000 dead letters
    python -m benchmarks.console [--each 20] [--kinds 6] [--write]

Over the database of DARKROOM_DATABASE_URL, or the one called `large` that benchmarks/large.py fills; plans of all its
letters, a long story and an audit are added to it. Asked over a loopback socket, one page after the other, so the
numbers are those of one person. Every route of the application is asked in each way of benchmarks/console_pages.py,
and besides them what their links lead to. Status 1: a page took longer than 200 ms (its 95th percentile), or is not
measured. A user is made for it and taken away again. --write puts the table into docs/console/speed.md.
"""

import argparse
import gc
import html
import http.client
import math
import os
import platform
import re
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

import sqlalchemy as sa

from benchmarks.console_pages import PAGES, Samples, unmeasured
from benchmarks.console_rows import prepare
from benchmarks.large import DATABASE
from benchmarks.measure import cpu_seconds, percentile
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from services.ops.console.app import Guarded, create_app
from services.ops.console.parts import Parts
from services.ops.console.serving import STATEMENT_SECONDS
from services.ops.exporter import Exporter
from services.ops.replay import Replayer
from shared.config import SettingsError
from shared.database.engine import connect
from shared.database.replays import Replays
from shared.database.users import Role, Users
from shared.domain.password import hash_password
from shared.domain.retry import RetryPolicy
from shared.http_connections import http_server
from shared.observe import metrics
from shared.providers.offered import Offered
from shared.providers.workflow import load_workflows
from shared.storage import Artifacts

_USER: Final = "benchmark"
_LIMIT_MS: Final = 200.0
#: For a form that plans or looks at all letters: a person waits for it once.
_FORM_LIMIT_MS: Final = 10_000.0
#: Not what is downloaded: no page, and as long as the past is.
_LINK: Final = re.compile(r'(?:href|hx-get)="(/[^"#]*)"(?! download)')
_NAME: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,64}|\d+")
_CSRF: Final = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
_DOC: Final = ROOT / "docs/console/speed.md"
_MARK: Final = "<!-- what follows is written by python -m benchmarks.console --write -->"
#: Pages found by links, at most, and how many of them the table names.
_LINKED: Final = 200
_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One address.

    times -- milliseconds of each answer but the first, which warms what the database keeps in memory
    cpu   -- milliseconds of CPU time of one answer, console and database together; what else the machine does is in the
             times and not in here. NaN: the database is elsewhere
    """

    route: str
    name: str
    path: str
    times: Sequence[float]
    cpu: float
    limit: float = _LIMIT_MS

    @property
    def p95(self) -> float:
        return percentile(self.times, 0.95)

    @property
    def line(self) -> str:
        slow = "" if self.p95 <= self.limit else " **too slow**"
        name = f"`{self.route}`" + (f" {self.name}" if self.name else "")
        shown = f"{statistics.median(self.times):.0f} | {self.p95:.0f}{slow} | {max(self.times):.0f} | {self.cpu:.0f}"
        return f"| {name} | {shown} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came of asking one address again and again; times and cpu as in Timed."""

    status: int
    text: str
    times: Sequence[float]
    cpu: float


class Reader:
    """Somebody who is signed in, and asks one page after the other. cpu -- seconds of CPU time spent so far"""

    def __init__(self, host: str, port: int, password: str, cpu: Callable[[], float]) -> None:
        self._cpu = cpu
        self._connection = http.client.HTTPConnection(host, port)
        self._headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{host}:{port}"}
        self._headers |= {"Cookie": self._cookie(password)}

    def timed(self, path: str, each: int) -> Answers:
        """Ask `each` times, and once before."""
        self._connection.close()  # the server may have, while nobody asked
        times: list[float] = []
        spent = 0.0
        for turn in range(each + 1):
            spent = self._cpu() if turn == 1 else spent
            begun = time.perf_counter()
            self._connection.request("GET", path, headers={"Cookie": self._headers["Cookie"]})
            answer = self._connection.getresponse()
            text = answer.read().decode()
            if turn:
                times.append(1000 * (time.perf_counter() - begun))
            if answer.status >= 400:
                break
        cpu = 1000 * (self._cpu() - spent) / max(1, each)
        return Answers(status=answer.status, text=text, times=times, cpu=cpu)

    def post(self, path: str, **fields: str) -> tuple[float, float, str]:
        """Milliseconds, those of CPU time, and where the answer leads; infinitely many and nowhere: it was not done."""
        found = _CSRF.search(self.timed("/", 0).text)
        spent = self._cpu()
        begun = time.perf_counter()
        body = urlencode(fields | {"csrf": found[1] if found else ""})
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 303:
            return math.inf, math.nan, ""
        cpu = 1000 * (self._cpu() - spent)
        return 1000 * (time.perf_counter() - begun), cpu, str(answer.headers["Location"])

    def _cookie(self, password: str) -> str:
        self._connection.request("POST", "/login", urlencode({"name": _USER, "password": password}), self._headers)
        answer = self._connection.getresponse()
        answer.read()
        return str(answer.headers["Set-Cookie"]).partition(";")[0]


@contextmanager
def served(url: str) -> Iterator[tuple[Guarded, Reader, sa.Engine]]:
    """The console over this database, somebody who is signed in, and connections beside its own."""
    engine, password = connect(url, pool_size=4, statement_timeout_seconds=STATEMENT_SECONDS), secrets.token_urlsafe()
    beside = connect(url, pool_size=2, statement_timeout_seconds=300.0)
    pools = ["comfyui"]
    measured = metrics.build("ops", pools=pools, backends=["gpu-1"], queues=[])
    exporter = Exporter(beside, measured, pools=pools, backends=["gpu-1"])
    begun = time.monotonic()
    exporter.turn()
    print(f"the exporter's questions, which pages show and never ask: {time.monotonic() - begun:.1f} s")
    users = Users(beside)
    users.remove(_USER, _USER)
    users.add(_USER, Role.EDITOR, hash_password(password), _USER)
    replayer = Replayer(Replays(engine, 86400.0), publish=lambda _: None, pools=pools, metrics=measured)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        parts = Parts(
            engine=engine,
            store=Artifacts(folder),
            replayer=replayer,
            offered=Offered(frozenset(pools), {}, load_workflows(ROOT / "deploy/workflows")),
            seen=lambda: exporter.seen,
            pools=pools,
            retry=RetryPolicy(max_charged=5, first_seconds=10.0, factor=3.0, cap_seconds=900.0),
            default_deadline_seconds=86400.0,
        )
        app = create_app(parts)
        server = http_server(app, 1.0)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        gc.collect()
        gc.freeze()  # as every service does once it has started: a full collection takes a tenth of a second
        host, port = listener.getsockname()
        try:
            yield app, Reader(host, port, password, _spent(beside)), beside
        finally:
            server.should_exit = True
            thread.join(5.0)
            users.remove(_USER, _USER)
            engine.dispose()
            beside.dispose()


def _spent(engine: sa.Engine) -> Callable[[], float]:
    """CPU seconds of this process and of the database, if that is on this machine; of the one its pages come from."""
    with engine.begin() as c:
        stat = Path(f"/proc/{c.execute(sa.text('select pg_backend_pid()')).scalar_one()}/stat")
        if not stat.is_file() or "(postgres)" not in (line := stat.read_text()):
            return lambda: math.nan
    server = int(line.rpartition(")")[2].split()[1])
    return lambda: cpu_seconds(os.getpid()) + cpu_seconds(server, with_children=True)


def named(reader: Reader, samples: Samples, each: int) -> list[Timed]:
    """Every page in every way that has a name. Raises OSError where one is not served."""
    found = []
    for route, ways in PAGES.items():
        for name, path in ways(samples):
            answers = reader.timed(path, each)
            if answers.status not in (200, 303):
                raise OSError(f"GET {path}: {answers.status}")
            found.append(Timed(route=route, name=name, path=path, times=answers.times, cpu=answers.cpu))
    return found


def linked(reader: Reader, known: Sequence[Timed], each: int, kinds: int) -> list[Timed]:
    """Pages that links lead to, beyond the known ones; of each kind of page at most `kinds`, and not without end:
    filters of filters are kinds of their own.
    """
    seen = {one.path for one in known}
    found: list[Timed] = []
    of_kind: defaultdict[str, int] = defaultdict(int)
    waiting = deque(one.path for one in known)
    while waiting and len(found) < _LINKED:
        path = waiting.popleft()
        kind = _NAME.sub("*", path)
        is_new = path not in seen
        if is_new and ("/pictures/" in path or path.startswith("/static") or of_kind[kind] >= kinds):
            continue
        of_kind[kind] += is_new
        answers = reader.timed(path, each if is_new else 0)
        if answers.status == 200:
            waiting += [link for link in map(html.unescape, _LINK.findall(answers.text)) if link not in seen]
            if is_new:
                route, query = urlsplit(path).path, urlsplit(path).query[:80]
                found.append(Timed(route=route, name=query, path=path, times=answers.times, cpu=answers.cpu))
        seen.add(path)
    return found


def planned(reader: Reader, engine: sa.Engine) -> list[Timed]:
    """How long the forms take that plan all letters and look at such a plan again; the plans are gone afterwards."""
    forms: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(3):
        *took, plan = reader.post("/plans", which="all", state="any", plan_note=_USER)
        forms["POST /plans", "of all letters"].append((took[0], took[1]))
        if plan:
            *took, _ = reader.post(f"{plan}/preview")
            forms["POST /plans/{plan_id}/{what}", "to look again"].append((took[0], took[1]))
    with engine.begin() as c:
        c.execute(sa.text("delete from plans where note = :note"), {"note": _USER})
    return [
        Timed(
            route=route,
            name=name,
            path="",
            times=[time for time, _ in took],
            cpu=statistics.mean(cpu for _, cpu in took),
            limit=_FORM_LIMIT_MS,
        )
        for (route, name), took in forms.items()
    ]


def _table(pages: Sequence[Timed], forms: Sequence[Timed], others: Sequence[Timed]) -> str:
    lines = ["| page | median ms | 95 % ms | longest ms | CPU ms |", "|---|---:|---:|---:|---:|"]
    lines += [one.line for one in (*pages, *forms)]
    lines += ["", f"{len(others)} more pages that their links lead to; the slowest of them:", "", *lines[:2]]
    return "\n".join([*lines, *(one.line for one in sorted(others, key=lambda one: -one.p95)[:_NAMED])])


def _conditions(engine: sa.Engine, load: float, each: int) -> str:
    tables = ("tasks", "dead_letters", "plan_items", "operator_actions")
    with engine.begin() as c:
        tasks, letters, items, actions = (
            c.execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar_one() for table in tables
        )
        version = c.execute(sa.text("show server_version")).scalar_one()
        memory = c.execute(sa.text("show shared_buffers")).scalar_one()
    nice = f" Its processes ran at nice {os.nice(0)}." if os.nice(0) else ""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {gigabytes:.0f} GB of memory, PostgreSQL {version}"
        f" (shared_buffers {memory}), Python {platform.python_version()}, everything on one machine;\n"
        f"{tasks:,} tasks, {letters:,} dead letters, {items:,} letters in plans, {actions:,} lines of audit; each\n"
        f"page {each} times, one after the other. Load average of the machine when it began {load:.1f}, when it ended"
        f" {os.getloadavg()[0]:.1f}.{nice}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console")
    parser.add_argument("--each", type=int, default=20, help="times each page is asked")
    parser.add_argument("--kinds", type=int, default=6, help="pages of one kind found by links, at most")
    parser.add_argument("--write", action="store_true", help="put the table into docs/console/speed.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    try:
        url = os.environ.get("DARKROOM_DATABASE_URL") or Stack(ROOT / ".local").database.url_of(DATABASE)
        with served(url) as (app, reader, engine):
            if forgotten := unmeasured(app.app):
                sys.stderr.write(f"not measured, or no page any more: {', '.join(sorted(forgotten))}\n")
                return 1
            pages = named(reader, prepare(engine), options.each)
            others = linked(reader, pages, max(1, options.each // 4), options.kinds)
            forms = planned(reader, engine)
            text = f"{_conditions(engine, load, options.each)}\n\n{_table(pages, forms, others)}\n"
    except (StackProblem, SettingsError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    print(text)
    if options.write:
        _DOC.write_text(f"{_DOC.read_text().partition(_MARK)[0]}{_MARK}\n\n{text}")
    slow = [one for one in (*pages, *others, *forms) if one.p95 > one.limit]
    for one in slow:
        sys.stderr.write(f"{one.p95:.0f} ms: {one.path or one.route}\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
