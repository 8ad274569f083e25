"""`darkroom submit`: a file of orders leaves for the broker, and on request somebody waits for what becomes of it."""

import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.producer.orders import BadOrder, Offer, read_order
from services.producer.publish import NotConfirmed, publish_all
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.config import Settings
from shared.database.engine import connect
from shared.database.history import History, Standing
from shared.database.tasks import Tasks
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Artifact, Order, order_placed
from shared.domain.mistakes import Mistake
from shared.domain.task import Status
from shared.observe.trace import new_trace_id, traceparent_of
from shared.providers.registry import load_backends
from shared.providers.table_files import load_tables
from shared.providers.workflow import load_workflows
from shared.terminal import AsJson, Quiet, fail, print_json, printable, seconds_of, settings, tell

_POLL_SECONDS: Final = 0.5
#: Ids asked for in one statement.
_CHUNK: Final = 5000
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file that holds an order."""

    number: int
    order: Order


def submit(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSON Lines, one order each; - reads standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every order is finished.")] = False,
    timeout: Annotated[str, typer.Option(help="With --wait: at most so long, such as 90s or 10m.")] = "",
    shape_only: Annotated[
        bool, typer.Option("--shape-only", help="Leave unknown pools, workflows and bounds to the workers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish orders. Nothing is published unless every line is right.

    Publishing a file again is safe: an order is known by its idempotency_key.

    Exit status 1: an order failed, was cancelled or is not finished in time; 2: not all could be published.
    """
    limit = seconds_of(timeout) if timeout else None
    chosen = settings(database=wait, broker=True)
    lines, mistakes = read_lines(_source(file), None if shape_only else _offer(chosen))
    if mistakes:
        for number, mistake in mistakes:
            tell(f"line {number}: {printable(str(mistake))}")
        wrong = len({number for number, _ in mistakes})
        raise fail(f"{wrong} of {wrong + len(lines)} orders cannot be placed; nothing was published")
    if not lines:
        raise fail("there is no order in it")
    watch = Watch(chosen, lines) if wait else None  # asks the database first: better no order than nobody to wait
    _publish(chosen, lines)
    if watch is None:
        _say_published(lines, as_json=as_json)
        return
    watch.until_finished(limit)
    watch.report(as_json=as_json)
    raise typer.Exit(0 if watch.is_good else 1)


def read_lines(source: Iterable[bytes], offer: Offer | None) -> tuple[list[Line], list[tuple[int, Mistake]]]:
    """The orders, and every mistake with the line it is in. Lines that hold nothing are skipped.

    offer -- what can be ordered here; None: only the shape is looked at
    """
    lines: list[Line] = []
    mistakes: list[tuple[int, Mistake]] = []
    first: dict[str, Line] = {}
    for number, raw in enumerate(source, start=1):
        text = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).strip()
        if not text:
            continue
        try:
            line = Line(number, read_order(text))
            found = offer.mistakes(line.order) if offer is not None else []
            earlier = first.setdefault(line.order.idempotency_key, line)
            if earlier.order != line.order:
                found.append(Mistake("idempotency_key", f"belongs to another order in line {earlier.number}"))
        except BadOrder as error:
            mistakes += [(number, mistake) for mistake in error.mistakes]
            continue
        mistakes += [(number, mistake) for mistake in found]
        if not found:
            lines.append(line)
    return lines, mistakes


def _source(file: str) -> Iterable[bytes]:
    if file == "-":
        return sys.stdin.buffer
    try:
        return Path(file).read_bytes().splitlines()
    except OSError as error:
        raise fail(f"{file} cannot be read: {error.strerror}") from None


def _offer(chosen: Settings) -> Offer | None:
    """What can be ordered, where this machine knows it: upstream machines have neither backends file nor workflows."""
    if chosen.backends_file is None or not chosen.workflows_dir.is_dir():
        return None
    tables = load_tables(chosen.providers_dir)
    return Offer.of(load_backends(chosen.backends_file, tables), tables, load_workflows(chosen.workflows_dir))


def _publish(chosen: Settings, lines: Sequence[Line]) -> None:
    broker = Broker(chosen.amqp_urls, topology(()), name="darkroom submit", metrics=Quiet())
    broker.start()
    done = 0

    def confirmed(orders: int) -> None:
        nonlocal done
        done += orders
        progress.advance(bar, orders)

    try:
        with _progress() as progress:
            bar = progress.add_task("published", total=len(lines))
            publish_all(
                broker,
                (order_placed(line.order, traceparent=traceparent_of(new_trace_id())) for line in lines),
                timeout_seconds=chosen.confirm_timeout_seconds,
                confirmed=confirmed,
            )
    except NotConfirmed as error:
        why = "; ".join(broker.problems) or "no answer"
        tell(f"RabbitMQ at {_addresses(chosen)} has not confirmed for {chosen.confirm_timeout_seconds:g} s: {why}")
        raise fail(_unfinished(error.confirmed, len(lines))) from None
    except KeyboardInterrupt:
        tell(_unfinished(done, len(lines)))
        raise
    finally:
        broker.stop()


def _unfinished(confirmed: int, total: int) -> str:
    return (
        f"{confirmed} of {total} orders are confirmed. Run the same command again to place the others:"
        " an order that arrived is known by its key"
    )


def _addresses(chosen: Settings) -> str:
    """Host and port of each broker, without user and password."""
    return ", ".join(url.partition("://")[2].rpartition("@")[2].partition("/")[0] for url in chosen.amqp_urls)


def _say_published(lines: Sequence[Line], *, as_json: bool) -> None:
    if as_json:
        for line in lines:
            print_json(_identity(line) | {"status": "published"})
    say = tell if as_json else typer.echo
    say(f"{_orders(len(lines))} published")


class Watch:
    """Follows published orders in the database until each is final. Made before they are published."""

    def __init__(self, chosen: Settings, lines: Sequence[Line]) -> None:
        engine = connect(chosen.database_url.get_secret_value(), pool_size=1)
        self._history = History(engine)
        self._tasks = Tasks(engine, "darkroom submit", Quiet())
        self._lines = lines
        self._history.standings([])  # raises DatabaseAway
        self._standings: dict[uuid.UUID, Standing] = {}

    def until_finished(self, limit_seconds: float | None) -> None:
        """Returns when every order is final, or after the limit. An outage of the database is waited out."""
        end = None if limit_seconds is None else time.monotonic() + limit_seconds
        is_away = False
        try:
            with _progress() as progress:
                bar = progress.add_task("waiting", total=len(self._lines))
                while self._open and (end is None or time.monotonic() < end):
                    try:
                        self._look()
                        is_away = False
                    except DatabaseAway as error:
                        if not is_away:
                            progress.console.print(f"the database is away, still waiting: {error}", markup=False)
                        is_away = True
                    states = Counter(self.status_of(line) for line in self._lines)
                    shown = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
                    finished = len(self._lines) - len(self._open)
                    progress.update(bar, completed=finished, description=shown)
                    if self._open:
                        time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            tell("not waiting any longer; the orders go on without this command")
            raise

    def status_of(self, line: Line) -> str:
        """A status, `conflict` where the key belonged to another order before, or `published` before it has a row."""
        standing = self._standings.get(line.order.task_id)
        if standing is None:
            return "published"
        return standing.status if standing.fingerprint == line.order.fingerprint else "conflict"

    @property
    def is_good(self) -> bool:
        return all(self.status_of(line) == Status.COMPLETED for line in self._lines)

    def report(self, *, as_json: bool) -> None:
        """One JSON line per order, or a line for each that did not end well; then the sum."""
        states = Counter(self.status_of(line) for line in self._lines)
        if as_json:
            for row in self._rows():
                print_json(row)
        else:
            bad = [line for line in self._lines if self.status_of(line) != Status.COMPLETED]
            for line in bad[:_SHOWN]:
                tell(f"line {line.number}: {line.order.task_id} {self._sentence(line)}")
            if len(bad) > _SHOWN:
                tell(f"and {len(bad) - _SHOWN} more; --json names all")
        say = tell if as_json else typer.echo
        say(
            f"{_orders(len(self._lines))}: "
            + ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
        )

    @property
    def _open(self) -> list[uuid.UUID]:
        return [
            line.order.task_id
            for line in self._lines
            if (status := self.status_of(line)) != "conflict" and status not in {str(s) for s in Status if s.is_final}
        ]

    def _look(self) -> None:
        for ids in _chunks(self._open):
            self._standings |= self._history.standings(ids)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        completed = {s.task_id for s in self._standings.values() if s.status is Status.COMPLETED}
        pictures: dict[uuid.UUID, list[Artifact]] = {}
        for ids in _chunks(sorted(completed)):
            pictures |= self._tasks.artifacts(ids)
        for line in self._lines:
            standing = self._standings.get(line.order.task_id)
            status = self.status_of(line)
            row: dict[str, Any] = _identity(line) | {"status": status}
            if standing is not None and status != "conflict":
                row |= {"attempt": standing.attempt, "reason": standing.reason, "detail": standing.detail}
                row |= {"artifacts": pictures.get(standing.task_id, [])}
                if standing.task_id != line.order.task_id:  # its order_id had an active task already
                    row |= {"kept_with": standing.task_id}
            yield row

    def _sentence(self, line: Line) -> str:
        status = self.status_of(line)
        standing = self._standings.get(line.order.task_id)
        if status == "conflict":
            return "conflict: the key belongs to an earlier order with another content"
        if standing is None:
            return "has no row yet: is a submitter running?"
        why = ": ".join(filter(None, [standing.reason, standing.detail]))
        return printable(f"{status}{f' ({why})' if why else ''}")


def _identity(line: Line) -> dict[str, Any]:
    order = line.order
    return {"line": line.number, "task_id": order.task_id, "idempotency_key": order.idempotency_key}


def _orders(count: int) -> str:
    return "1 order" if count == 1 else f"{count} orders"


def _chunks(ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, and nothing at all when that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress
