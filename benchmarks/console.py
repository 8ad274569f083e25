"""How long the console's pages take over a large past: every kind of page, found by following links.

    python -m benchmarks.console [--each 20] [--kinds 6]

Over the database of DARKROOM_DATABASE_URL, or the one called `large` that benchmarks/large.py fills. Asked over a
loopback socket, one page after the other, so the numbers are those of one person on a quiet machine. A user is made for
it and taken away again.
"""

import argparse
import html
import http.client
import os
import re
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlencode, urlsplit

from benchmarks.large import DATABASE
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from services.ops.console.app import create_app
from services.ops.console.parts import Parts
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
#: Not what is downloaded: no page, and as long as the past is.
_LINK: Final = re.compile(r'(?:href|hx-get)="(/[^"#]*)"(?! download)')
_NAME: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,64}|\d+")
#: Where no link leads: names that somebody types, filters of forms.
_TYPED: Final = (
    "/orders?q=nothing-like-this",
    "/orders?status=cancelled",
    "/orders?status=failed&pool=nobodys",
    "/orders?pool=fal&status=submitting",
    "/letters/list?state=any&text=nothing-like-this",
    "/letters/list?state=any&text=the",
    "/audit?action=dead+letter+replay",
    "/audit?by=nobody",
    "/audit?subject=nothing",
)


@contextmanager
def served(url: str) -> Iterator[tuple[str, int, str]]:
    """The console over this database: host, port and the cookie of somebody who is signed in."""
    engine, password = connect(url, pool_size=4, statement_timeout_seconds=60.0), secrets.token_urlsafe()
    pools = ["comfyui"]
    measured = metrics.build("ops", pools=pools, backends=["gpu-1"], queues=[])
    exporter = Exporter(engine, measured, pools=pools, backends=["gpu-1"])
    begun = time.monotonic()
    exporter.turn()
    print(f"the exporter's questions, which pages show and never ask: {time.monotonic() - begun:.1f} s")
    users = Users(engine)
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
        server = http_server(create_app(parts), 1.0)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield host, port, _signed_in(host, port, password)
        finally:
            server.should_exit = True
            thread.join(5.0)
            users.remove(_USER, _USER)
            engine.dispose()


def measure(host: str, port: int, cookie: str, *, each: int, kinds: int) -> Mapping[str, list[float]]:
    """Milliseconds by page; of each kind of page at most `kinds` are asked, each of them `each` times."""
    connection = http.client.HTTPConnection(host, port)
    found: dict[str, list[float]] = {}
    of_kind: defaultdict[str, int] = defaultdict(int)
    waiting = deque(["/", *_TYPED])
    while waiting:
        path = waiting.popleft()
        kind = _NAME.sub("*", path)
        if path in found or "/pictures/" in path or path.startswith("/static") or of_kind[kind] >= kinds:
            continue
        of_kind[kind] += 1
        found[path] = []
        for turn in range(each + 1):  # the first warms what the database keeps in memory, and is not counted
            begun = time.perf_counter()
            connection.request("GET", path, headers={"Cookie": cookie})
            answer = connection.getresponse()
            text = answer.read().decode()
            if turn:
                found[path].append(1000 * (time.perf_counter() - begun))
            elif answer.status == 200:
                waiting += [html.unescape(link) for link in _LINK.findall(text)]
            else:
                del found[path]
                break
    connection.close()
    return found


def _signed_in(host: str, port: int, password: str) -> str:
    connection = http.client.HTTPConnection(host, port)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{host}:{port}"}
    connection.request("POST", "/login", urlencode({"name": _USER, "password": password}), headers)
    answer = connection.getresponse()
    answer.read()
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console")
    parser.add_argument("--each", type=int, default=20, help="times each page is asked")
    parser.add_argument("--kinds", type=int, default=6, help="pages of one kind that are asked at most")
    options = parser.parse_args()
    try:
        url = os.environ.get("DARKROOM_DATABASE_URL") or Stack(ROOT / ".local").database.url_of(DATABASE)
        with served(url) as (host, port, cookie):
            found = measure(host, port, cookie, each=options.each, kinds=options.kinds)
    except (StackProblem, SettingsError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    slowest = 0.0
    for path, times in sorted(found.items(), key=lambda item: -statistics.median(item[1])):
        slowest = max(slowest, statistics.median(times))
        shown = urlsplit(path)
        name = shown.path + (f"?{shown.query[:70]}" if shown.query else "")
        print(f"{statistics.median(times):7.1f} ms  {max(times):7.1f} ms  {name}")
    print(f"{len(found)} pages, the slowest {slowest:.0f} ms (median of {options.each}), the limit {_LIMIT_MS:.0f} ms")
    return 0 if slowest < _LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
