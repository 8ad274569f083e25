"""Whether this process is alive and ready: /livez, /readyz and /metrics on a port of their own, and a watchdog.

Alive means that its own loops turn; nothing remote is asked, or an outage of the broker would restart every worker.
Ready means that everything it needs has answered lately.
"""

import json
import logging
import math
import os
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client.exposition import choose_encoder

from shared.observe.catalog import LOOPS
from shared.observe.metrics import Metrics

log = logging.getLogger(__name__)

#: Seconds a readiness answer counts when the check names nothing else.
STALE_AFTER: Final = 15.0
#: What the process ends with when a loop of its own hangs; the supervisor starts it again.
EXIT_HUNG: Final = 70

Answer = bool | tuple[bool, str]


@dataclass(frozen=True, slots=True)
class Report:
    """What an endpoint answers. `checks` holds per loop or check whether it is ok, since when, and why not."""

    ok: bool
    checks: dict[str, dict[str, Any]]

    def body(self, **more: Any) -> bytes:
        return json.dumps({"ok": self.ok, **more, "checks": self.checks}).encode()


@dataclass(frozen=True, slots=True)
class _Beat:
    loop: str
    at: float
    wall: float  # Unix time
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class _Answered:
    at: float
    ok: bool
    detail: str
    stale_after_seconds: float | None


class Health:
    """What the loops and checks of this process said last. Thread-safe; every method returns at once.

    required -- checks that must have answered before the process can be ready
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        required: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[str, _Beat] = {}
        self._answers: dict[str, _Answered | None] = dict.fromkeys(required)
        self._questions: list[_Question] = []
        self._draining = False

    @property
    def is_draining(self) -> bool:
        return self._draining

    def beat(self, loop: str, limit_seconds: float, *, of: str = "") -> None:
        """`loop` has just turned; the process is not alive once `limit_seconds` pass without the next beat.

        of -- which one, where several loops have the same name: each of them must turn
        """
        with self._lock:
            self._beats[f"{loop} {of}" if of else loop] = _Beat(loop, self._clock(), time.time(), limit_seconds)
            if self._metrics is not None and loop in LOOPS:
                # One that hangs must not hide behind its namesakes.
                oldest = min(beat.wall for beat in self._beats.values() if beat.loop == loop)
                self._metrics.set("loop_last_success_timestamp_seconds", oldest, loop=loop)

    def retire(self, loop: str) -> None:
        """`loop` has ended in good order and owes no beats any more; so have all of that name."""
        with self._lock:
            self._beats = {name: beat for name, beat in self._beats.items() if beat.loop != loop}

    def ready(self, check: str, ok: bool, detail: str = "", *, stale_after_seconds: float | None = None) -> None:
        """`check` answers. It counts until its next answer, or for `stale_after_seconds` when given."""
        with self._lock:
            self._answers[check] = _Answered(self._clock(), ok, detail, stale_after_seconds)

    def ask(
        self,
        check: str,
        question: Callable[[], Answer],
        every_seconds: float = 5.0,
        stale_after_seconds: float = STALE_AFTER,
    ) -> None:
        """Have `question` answered in the background from `Server.start` on. What it raises counts as a no."""
        with self._lock:
            self._answers.setdefault(check, None)
            self._questions.append(_Question(check, question, every_seconds, stale_after_seconds))

    def drain(self) -> None:
        """From now on the process is not ready, whatever its checks say."""
        self._draining = True
        if self._metrics is not None:
            self._metrics.set("draining", 1)

    def live(self) -> Report:
        """Not ok when a loop's last beat is older than its limit."""
        with self._lock:
            now, beats = self._clock(), dict(self._beats)
        checks = {
            loop: {
                "ok": now - beat.at <= beat.limit_seconds,
                "age_seconds": round(now - beat.at, 3),
                "limit_seconds": beat.limit_seconds,
            }
            for loop, beat in sorted(beats.items())
        }
        return Report(all(check["ok"] for check in checks.values()), checks)

    def readiness(self) -> Report:
        """Not ok while draining, or when a check said no, has not answered yet, or answered too long ago."""
        with self._lock:
            now, answers = self._clock(), dict(self._answers)
        checks = {check: _judged(answer, now) for check, answer in sorted(answers.items())}
        return Report(not self._draining and all(check["ok"] for check in checks.values()), checks)

    def refresh(self) -> list[threading.Thread]:
        """Ask every question that is due, each in a thread of its own: one that hangs holds up no other."""
        with self._lock:
            due = [question for question in self._questions if question.next_at <= self._clock()]
            for question in due:
                question.next_at = math.inf  # until it is answered
        threads = [
            threading.Thread(target=self._answer, args=(question,), name=f"asks-{question.check}", daemon=True)
            for question in due
        ]
        for thread in threads:
            thread.start()
        return threads

    def _answer(self, question: "_Question") -> None:
        try:
            answer = question.ask()
            ok, detail = answer if isinstance(answer, tuple) else (answer, "")
        except Exception as error:
            ok, detail = False, type(error).__name__  # the text may hold an address with a password
            log.debug("readiness check failed", exc_info=True, extra={"check": question.check})
        self.ready(question.check, ok, detail, stale_after_seconds=question.stale_after_seconds)
        question.next_at = self._clock() + question.every_seconds


@dataclass(slots=True)
class _Question:
    check: str
    ask: Callable[[], Answer]
    every_seconds: float
    stale_after_seconds: float
    next_at: float = 0.0


def _judged(answer: _Answered | None, now: float) -> dict[str, Any]:
    if answer is None:
        return {"ok": False, "age_seconds": None, "detail": "has not answered yet"}
    age = now - answer.at
    is_stale = answer.stale_after_seconds is not None and age > answer.stale_after_seconds
    detail = f"last answer is older than {answer.stale_after_seconds:g} s" if is_stale else answer.detail
    return {"ok": answer.ok and not is_stale, "age_seconds": round(age, 3), "detail": detail}


class Watchdog:
    """Ends the process when a loop has been missing for two limits beyond its first; the supervisor starts it again.

    leave -- called with EXIT_HUNG; os._exit, because a hung thread would keep a normal exit waiting
    """

    def __init__(
        self,
        health: Health,
        leave: Callable[[int], object] = os._exit,
        interval_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._leave = leave
        self._interval = interval_seconds
        self._clock = clock
        self._last_look: float | None = None
        self._missing: dict[str, float] = {}  # loop -> seconds it was seen past its limit
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """One look at the loops. Leaves when one was seen past its limit for two limits.

        A pause of the whole process (SIGSTOP, a frozen machine) stops the loops and this thread alike and then looks
        like a hang, so a gap between two looks counts as two intervals at most.
        """
        now = self._clock()
        gap = 0.0 if self._last_look is None else min(now - self._last_look, 2 * self._interval)
        self._last_look = now
        late = {loop: check for loop, check in self._health.live().checks.items() if not check["ok"]}
        self._missing = {loop: self._missing.get(loop, 0.0) + gap for loop in late}
        for loop, check in late.items():
            if self._missing[loop] >= 2 * check["limit_seconds"]:
                log.critical("loop hangs, leaving", extra={"loop": loop, **check, "stacks": _stacks()})
                self._leave(EXIT_HUNG)
                return

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.look()


def _stacks() -> dict[str, str]:
    """Where every thread stands, its innermost calls last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame, limit=None)[-8:])
        for ident, frame in sys._current_frames().items()
    }


class Server:
    """Serves /metrics, /livez and /readyz and keeps the readiness answers fresh, all in daemon threads.

    port -- 0 takes any free one; `port` then says which. Raises OSError when the address cannot be had.
    """

    def __init__(self, health: Health, metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> None:
        self._health = health
        self._stop = threading.Event()
        self._http = _Http((host, port), health, metrics)
        self.host = host
        self.port: int = self._http.server_address[1]

    def start(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.1,), name="health-http", daemon=True).start()
        threading.Thread(target=self._refresh, name="health-checks", daemon=True).start()
        return self

    def close(self) -> None:
        """Free the port. Only after `start`."""
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()

    def _refresh(self) -> None:
        while True:
            self._health.refresh()
            if self._stop.wait(0.2):
                return


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a scraper that stalls must not hold up a shutdown

    def __init__(self, address: tuple[str, int], health: Health, metrics: Metrics) -> None:
        self.health = health
        self.metrics = metrics
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which can wait for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's
        """A caller that hung up is no news. Anything else is logged, where the library would print a traceback."""
        if not isinstance(sys.exception(), OSError):
            log.exception("probe not answered")


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = 10.0

    def do_GET(self) -> None:
        health = self.server.health
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, content_type, encode(self.server.metrics.registry))
            case "/livez":
                self._report(health.live())
            case "/readyz":
                self._report(health.readiness(), draining=health.is_draining)
            case _:
                self._answer(404, "text/plain; charset=utf-8", b"/metrics /livez /readyz\n")

    do_HEAD = do_GET

    def _report(self, report: Report, **more: Any) -> None:
        self._answer(200 if report.ok else 503, "application/json", report.body(**more))

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; they are not news."""
