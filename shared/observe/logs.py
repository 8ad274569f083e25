"""Log lines: one JSON object each, found by trace and task id, free of secrets and customers' words.

The message of a line is a constant, so it can be counted; what varies goes into `extra`.
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, ParamSpec, TextIO, TypeVar

from shared.observe.metrics import Metrics, our_version

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Characters kept of one text, and of one traceback; a log collector drops lines much longer than this.
MAX_TEXT: Final = 4_000
MAX_TRACEBACK: Final = 16_000

HIDDEN: Final = "***"

#: Fields whose values are secrets.
_SECRET_NAME = re.compile(
    r"authorization|api[-_]?key|token|secret|password|passwd|cookie|credential|signature", re.IGNORECASE
)
#: Fields whose values are the customer's own words and pictures.
_OWN_WORDS = re.compile(r"^(prompt|inputs|graph)$", re.IGNORECASE)
# Every repetition below has an upper bound, or a long line of one letter would take minutes.
_DATA_URI = re.compile(r"data:[a-z]{1,20}/[a-z0-9.+-]{1,40};base64,[a-z0-9+/=_-]*", re.IGNORECASE)
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]{1,20}://)[^\s/\"'<>]{0,500}@", re.IGNORECASE)
_QUERY = re.compile(r"([a-z][a-z0-9+.-]{1,20}://[^\s?#\"'<>]{0,2000})[?#][^\s\"'<>]*", re.IGNORECASE)
_PATH_QUERY = re.compile(r"(/[^\s?\"'<>:]{0,300})\?[^\s\"'<>=]{1,100}=[^\s\"'<>]*")  # urllib3 writes `url: /path?a=b`
_SCHEME = re.compile(r"\b(bearer\s+[^\s,;\"']{4,}|basic\s+[a-z0-9+/=]{12,})", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(authorization|api[-_]?key|token|secret|password|cookie)([\"']?\s{0,3}[:=]\s{0,3})"
    r"(?:\"[^\"]*\"|'[^']*'|(?:(?:bearer|basic|key|token)\s+)?[^\s,;}\"']+)",
    re.IGNORECASE,
)
#: What JSON leaves as it is and a terminal obeys (C1 controls, text turned round) or a reader takes for a line's end.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
#: What each pattern above needs to match at all. Most fields are ids and names, and six searches each add up.
_MAY_HIDE = re.compile(r"[:=?@]|bearer\s|basic\s", re.IGNORECASE)

_context: ContextVar[Mapping[str, str] | None] = ContextVar("darkroom_log_context", default=None)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: What only the formatter may say; an extra of that name gets an underscore behind it.
_OURS = frozenset({"ts", "level", "logger", "event", "service", "instance", "version", "exc"})


class bound:
    """Every line logged inside carries these fields (trace_id, task_id); None takes one away."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        known = {**(_context.get() or {}), **self._fields}
        self._token = _context.set({name: str(value) for name, value in known.items() if value is not None})

    def __exit__(self, *_: object) -> None:
        _context.reset(self._token)


def bound_fields() -> Mapping[str, str]:
    """What `bound` has put around this code."""
    return _context.get() or {}


class ContextPool(ThreadPoolExecutor):
    """A thread pool whose calls log with the fields of whoever submitted them; the plain one loses them."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return super().submit(partial(copy_context().run, fn, *args, **kwargs))


class JsonLines(logging.Formatter):
    """One record, one line of JSON. Never raises: what cannot be written is written as its repr."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._always = {"service": service, "instance": instance, "version": our_version()}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redacted(_message_of(record)),
            **self._always,
            **bound_fields(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name + "_" if name in _OURS else name] = _clean(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            # the end of a traceback says what happened, so the beginning is what goes
            line["exc"] = redacted(self.formatException(record.exc_info), MAX_TRACEBACK, keep_end=True)
        if record.stack_info:
            line["stack"] = redacted(record.stack_info, MAX_TRACEBACK, keep_end=True)
        text = _ENCODER.encode(line)
        if text.isascii() and "\x7f" not in text:  # nearly every line: nothing below is in it
            return text
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written, as on a full disk, is lost in silence: a word about it would be no line."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def configure(service: str, instance: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """All logging of this process goes to `stream` (standard error) as JSON lines, warnings and lost exceptions too.

    Calling it again replaces what the last call set up.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line says them
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines(service, instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("urllib3", "websocket", "PIL", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # Seven errors, some with tracebacks, for each try to connect; all of it reaches our callbacks, which log it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    for propagating in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(propagating).handlers.clear()
        logging.getLogger(propagating).propagate = True
    logging.captureWarnings(capture=True)
    sys.excepthook = _lost
    threading.excepthook = _lost_in_thread


class _Counted(logging.Handler):
    """Counts what people should hear of."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(logging.WARNING)
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        self._metrics.count("log_messages_total", level="warning" if record.levelno < logging.ERROR else "error")


def count_in(metrics: Metrics) -> None:
    """From now on warnings and errors are counted too; after `configure`."""
    logging.getLogger().addHandler(_Counted(metrics))


def redacted(text: str, at_most: int = MAX_TEXT, *, keep_end: bool = False) -> str:
    """`text` without credentials, query strings and inline pictures, cut to `at_most` characters. Pure."""
    if len(text) <= at_most and not _MAY_HIDE.search(text):
        return text
    text = text[-4 * at_most :] if keep_end else text[: 4 * at_most]  # bounds the work before the patterns run
    text = _DATA_URI.sub("data:" + HIDDEN, text)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1?{HIDDEN}", text)
    text = _PATH_QUERY.sub(rf"\1?{HIDDEN}", text)
    text = _ASSIGNED.sub(rf"\1\2{HIDDEN}", text)
    text = _SCHEME.sub(HIDDEN, text)
    if len(text) <= at_most:
        return text
    return "…" + text[-at_most:] if keep_end else text[:at_most] + "…"


def redacted_body(body: str) -> str:
    """The body of a message without credentials, query strings and inline pictures; JSON stays JSON. Pure.

    What a customer asked for stays, unlike in a log line. A body that is no JSON, as one that was cut, is read as text.
    """
    try:
        text = json.dumps(_without_secrets("", json.loads(body)), ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()  # half a character becomes its escape again
    except (ValueError, RecursionError):
        return redacted(body.replace("\\/", "/"), len(body))


def _without_secrets(name: str, value: object) -> object:
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, str):
        return redacted(value, len(value))
    if isinstance(value, dict):
        return {redacted(key, len(key)): _without_secrets(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets("", item) for item in value]
    return value


@lru_cache(maxsize=512)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None or _OWN_WORDS.search(name) is not None


def _clean(name: str, value: object, depth: int = 0) -> Any:
    """A value that JSON can hold, redacted."""
    if value is not None and _is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        return redacted(str(value))  # an enum's member too is its text
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < 4 and isinstance(value, Mapping):
        return {str(key): _clean(str(key), item, depth + 1) for key, item in value.items()}
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_clean("", item, depth + 1) for item in value]
    try:
        return redacted(str(value))
    except Exception:  # noqa: BLE001 - a foreign object's __str__; the line matters more
        return f"<{type(value).__name__}>"


def _message_of(record: logging.LogRecord) -> str:
    """With its arguments where they fit; foreign code sometimes gets that wrong."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - whatever the arguments' own formatting raises
        return str(record.msg)


def _lost(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    log.critical("exception left the program", exc_info=(kind, error, traceback))


def _lost_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "unknown"
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        log.critical("exception left a thread", exc_info=info, extra={"thread_name": name})
