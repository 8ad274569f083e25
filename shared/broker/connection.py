"""One I/O thread, and on its loop any number of connections that come back by themselves."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import pika
from pika.channel import Channel
from pika.exceptions import AMQPHeartbeatTimeout, ConnectionClosedByBroker

from shared.broker.io_loop import Loop
from shared.broker.topology import Topology
from shared.broker.wire import Connection, hang_up

log = logging.getLogger(__name__)

#: A silent peer is noticed after three of them, on both sides: 30 s until a hung host's messages go to others.
HEARTBEAT_SECONDS: Final = 10
_BACKOFF_SECONDS: Final = (0.2, 5.0)
#: A connection that ends sooner was no success, and the wait before the next grows on: whatever ended it is likely to
#: do so again, and each round costs everything prefetched one of its deliveries.
_SOUND_SECONDS: Final = 5.0
#: How long a connection that is given up may take to say goodbye. One that answers nothing else does not answer that.
_GOODBYE_SECONDS: Final = 5.0


def parameters_of(urls: Sequence[str]) -> list[pika.URLParameters]:
    """Connection parameters of each broker, in the order given. Raises ValueError for a URL pika cannot read."""
    found = []
    for url in urls:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = HEARTBEAT_SECONDS
        parameters.socket_timeout = 5
        parameters.stack_timeout = 10
        parameters.connection_attempts = 1
        found.append(parameters)
    return found


class IOThread:
    """The one thread that touches pika. Everything else reaches it through `run`."""

    def __init__(self, name: str) -> None:
        self.loop = Loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._stopping = False
        self._work: deque[Callable[[], None]] = deque()
        self._is_woken = False
        self._recoveries: list[Callable[[], None]] = []

    def start(self) -> None:
        self._thread.start()

    def after_failure(self, recover: Callable[[], None]) -> None:
        """Have `recover` run on the I/O thread whenever a callback failed there. Before `start` only."""
        self._recoveries.append(recover)

    def run(self, work: Callable[[], None]) -> None:
        """Have `work` run on the I/O thread soon; order is kept. From any thread."""
        self._work.append(work)
        if not self._is_woken:  # each wake is a system call here and one there, and a chance to lose the interpreter
            self._is_woken = True
            self.loop.add_callback_threadsafe(self._do_work)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """On the I/O thread only."""
        self.loop.call_later(seconds, partial(self._attempt, work))

    def stop(self) -> None:
        """On the I/O thread: end it after this callback."""
        self._stopping = True
        self.loop.stop()

    def join(self, within_seconds: float) -> None:
        self._thread.join(within_seconds)

    def _do_work(self) -> None:
        self._is_woken = False  # first: what comes from here on wakes the loop again
        for _ in range(len(self._work)):  # what these add has its turn after the sockets
            self._attempt(self._work.popleft())

    def _attempt(self, work: Callable[[], None]) -> None:
        """The loop is sound after a bug; what the bug left undone comes back over new connections."""
        try:
            work()
        except Exception:
            log.exception("a callback of the I/O thread failed")
            for recover in self._recoveries:
                recover()

    def _serve(self) -> None:
        while not self._stopping:
            # Ours are tried one by one: what leaves the loop, as pika's may, takes the timers due with it along.
            self._attempt(self.loop.start)
            self._attempt(self.loop.end_turn)
        self.loop.close()  # `run` from a thread that is still ending does no harm after this


class Link:
    """One connection, made again whenever it goes. Everything in here runs on the I/O thread.

    on_ready -- called with the open connection once the topology is declared
    on_lost  -- called when that connection is gone; channels and delivery tags of it are void
    on_reconnect -- called with why, one of catalog.RECONNECTS, when it has ended or could not be opened
    """

    def __init__(
        self,
        io: IOThread,
        urls: Sequence[str],
        topology: Topology,
        *,
        name: str,
        on_ready: Callable[[Connection], None],
        on_lost: Callable[[], None],
        on_blocked: Callable[[bool], None] = lambda _: None,
        on_reconnect: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._io = io
        self._parameters = parameters_of(urls)
        self._topology = topology
        self._name = name
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_blocked = on_blocked
        self._on_reconnect = on_reconnect
        self._given_up = False
        self._failures = 0
        self._closing = False
        self._ready = False
        self._ready_at = 0.0
        self._opened_at = 0.0
        self._next_open: object = None
        self._connection: Connection | None = None
        self.reconnects = 0
        io.after_failure(lambda: self.fail("a callback failed, so what it was about to do is not done"))

    @property
    def is_ready(self) -> bool:
        return self._ready

    @property
    def open_seconds(self) -> float:
        """For how long there has been an open connection, ready or not yet; 0 without one."""
        is_open = self._connection is not None and self._connection.is_open
        return time.monotonic() - self._opened_at if is_open else 0.0

    def open(self) -> None:
        self._next_open = None
        if self._closing:
            return
        parameters = self._parameters[self._failures % len(self._parameters)]
        parameters.client_properties = {"connection_name": self._name}
        self._connection = Connection(parameters, self._io.loop, on_open=self._opened, on_gone=self._gone)

    @property
    def is_closed(self) -> bool:
        """Nothing is open and nothing is being opened."""
        return self._connection is None or self._connection.is_closed

    def close(self) -> None:
        """One that is still being opened is closed as soon as it is open; see `is_closed`."""
        self._closing = True
        self._ready = False
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def fail(self, why: str) -> None:
        """Give this connection up and make another: something on it is not as it should be."""
        connection = self._connection
        if connection is not None and connection.is_open:
            log.warning("broker connection given up", extra={"connection": self._name, "why": why})
            self._given_up = True
            connection.close()
            self._io.later(_GOODBYE_SECONDS, lambda: hang_up(connection) if self._connection is connection else None)
        elif connection is None and self._next_open is None:  # what failed was the opening
            self._open_again(why, "given_up")

    def _opened(self, connection: Connection) -> None:
        self._opened_at = time.monotonic()
        if self._closing:
            connection.close()
            return
        connection.add_on_connection_blocked_callback(lambda *_: self._on_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(False))
        connection.channel(on_open_callback=self._declare)

    def _declare(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._declaring_failed)
        steps: list[Callable[..., Any]] = []
        for exchange in self._topology.exchanges:
            steps.append(partial(channel.exchange_declare, exchange.name, exchange.type, durable=True))
        for queue in self._topology.queues:
            steps.append(partial(channel.queue_declare, queue.name, durable=True, arguments=dict(queue.arguments)))
            if queue.binding is not None:
                steps.append(partial(channel.queue_bind, queue.name, *queue.binding))

        def next_step(_: Any = None) -> None:
            if not channel.is_open:  # given up meanwhile
                return
            if steps:
                steps.pop(0)(callback=next_step)
                return
            self._ready, self._ready_at = True, time.monotonic()
            channel.close()
            log.info("broker connected", extra={"connection": self._name})
            if self._connection is not None:
                self._on_ready(self._connection)

        next_step()

    def _declaring_failed(self, _: Channel, why: BaseException) -> None:
        if not self._ready and not self._given_up:
            # 406: somebody declared a queue with other arguments. It stays wrong until a person acts; keep saying so.
            log.error("queues cannot be declared", extra={"connection": self._name, "why": str(why)})
            if self._connection is not None and self._connection.is_open:
                self._connection.close()

    def _gone(self, _: Connection, why: BaseException) -> None:
        self._connection = None
        was_ready, self._ready = self._ready, False
        if was_ready and time.monotonic() - self._ready_at >= _SOUND_SECONDS:
            self._failures = 0
        self._open_again(str(why) or repr(why), _kind_of(why))
        if was_ready:
            self._on_lost()

    def _open_again(self, why: str, kind: str) -> None:
        """Open a connection after a while, unless somebody does before."""
        if self._closing:
            return
        self._failures += 1
        self.reconnects += 1
        self._on_reconnect("given_up" if self._given_up else kind)
        self._given_up = False
        low, high = _BACKOFF_SECONDS
        wait = random.uniform(low, min(high, low * 2 ** min(self._failures, 6)))
        log.warning("broker away", extra={"connection": self._name, "why": why, "again_in": round(wait, 2)})
        self._next_open = this = object()
        self._io.later(wait, lambda: self.open() if self._next_open is this else None)


def _kind_of(why: BaseException) -> str:
    """One of catalog.RECONNECTS."""
    match why:
        case AMQPHeartbeatTimeout():
            return "heartbeat"
        case ConnectionClosedByBroker():
            return "closed_by_broker"
        case _:
            return "network"
