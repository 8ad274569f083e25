"""A log line is one JSON object that can be found by its order and holds nothing secret."""

import ast
import errno
import io
import json
import logging
import re
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from shared.observe import logs
from shared.observe.logs import ContextPool, JsonLines, bound, redacted, redacted_body
from shared.observe.metrics import build
from shared.observe.trace import new_trace_id, read_trace_id, trace_id_from, traceparent_of

ROOT = Path(__file__).resolve().parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def logger():
    """A logger of our own with the real formatter, apart from the logging of the test run."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("submitter", "vm-1"))
    ours = logging.Logger("darkroom.test")
    ours.addHandler(handler)
    ours.lines = lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    return ours


@pytest.fixture
def configured():
    """`configure` changes the process; everything is put back afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    stream = io.StringIO()
    logs.configure("poller", "vm-2", "INFO", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], _, sys.excepthook, threading.excepthook = before
    root.setLevel(before[1])
    logging.captureWarnings(capture=False)


def test_a_line_is_one_json_object_with_what_varies_in_fields(logger):
    logger.info("task moved", extra={"task_id": "t-1", "from": "submitting", "to": "processing", "seconds": 0.5})
    (line,) = logger.lines()
    assert line["event"] == "task moved"
    assert (line["task_id"], line["from"], line["to"], line["seconds"]) == ("t-1", "submitting", "processing", 0.5)
    assert (line["service"], line["instance"], line["level"], line["logger"]) == (
        "submitter",
        "vm-1",
        "info",
        "darkroom.test",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])


def test_every_line_inside_carries_the_trace_and_the_task(logger):
    with bound(trace_id=TRACE, task_id="t-1"):
        logger.info("one")
        with bound(task_id="t-2"):
            logger.info("two")
        logger.info("three")
    logger.info("four")
    assert [(line.get("trace_id"), line.get("task_id")) for line in logger.lines()] == [
        (TRACE, "t-1"),
        (TRACE, "t-2"),
        (TRACE, "t-1"),
        (None, None),
    ]


def test_a_pool_thread_logs_with_the_fields_of_whoever_submitted(logger):
    with ContextPool(max_workers=2) as pool:
        with bound(task_id="t-1"):
            first = pool.submit(lambda: (time.sleep(0.02), logger.info("submitted")))
        with bound(task_id="t-2"):
            list(pool.map(lambda n: logger.info("mapped", extra={"n": n}), [1, 2]))
        first.result()
        pool.submit(logger.info, "outside").result()
    found = {(line["event"], line.get("task_id")) for line in logger.lines()}
    assert found == {("submitted", "t-1"), ("mapped", "t-2"), ("outside", None)}


def test_an_exception_brings_its_traceback(logger):
    try:
        raise RuntimeError("out of film")
    except RuntimeError:
        logger.exception("handler failed")
    (line,) = logger.lines()
    assert line["exc"].startswith("Traceback")
    assert line["exc"].endswith("RuntimeError: out of film")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer sk-hunter2-hunter2",
        "{'Authorization': 'Key hunter2:hunter2'}",
        'headers {"authorization": "Basic aHVudGVyMjpodW50ZXIy", "hunter": 1}',
        "x-api-key=hunter2",
        "OPENAI_API_KEY: hunter2",
        "api_key='hunter2 with spaces'",
        "postgresql+psycopg2://darkroom:hunter2@db/darkroom",
        "amqp://darkroom:hun@ter2@rabbit:5672/%2f",
        "GET https://bucket.example/picture.png?X-Amz-Signature=hunter2&b=1 failed",
        "Max retries exceeded with url: /v1/jobs?token=hunter2 (Caused by NewConnectionError)",
        "https://example.com/#access_token=hunter2",
        "data:image/png;base64,hunter2hunter2",
        "got Bearer hunter2",
    ],
)
def test_no_credential_survives_in_a_text(text):
    assert "hunter2" not in redacted(text).replace("hunter2-", "hunter2")
    assert "ter2" not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "order o-1 moved, key reused, basic checks done, max_tokens 5",
        "http://127.0.0.1:8188/prompt answered 500",
        "what? yes: a/b?",
        "job key 7f0c taken over",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": {"photo": "https://u:hunter2@h/a.png?X-Amz-Signature=hunter2", "text": "a cat"}}',
        r'{"inputs": {"photo": "https:\/\/u:hunter2@h\/a.png?sig=hunter2"}, "text": "a cat"}',
        r'{"inputs": {"photo": "\u0068ttps://h/a.png?sig=\u0068unter2"}, "text": "a cat"}',
        '{"https://h/?t=hunter2": "a cat", "metadata": {"api_key": {"deep": ["hunter2"]}}}',
        r'not json: "https:\/\/u:hunter2@h\/a.png?sig=hunter2", a cat',
        '{"deep": ' + "[" * 5000 + '"https://h/?t=hunter2 a cat"',
    ],
)
def test_a_body_keeps_what_was_asked_for_and_loses_what_opens_doors(body):
    shown = redacted_body(body)
    assert "hunter2" not in shown
    assert "a cat" in shown


@pytest.mark.parametrize("body", ['{"a": "\\ud800", "b": [1, 2.5, null, true], "é": "\\u0000"}', "[]", '"x"', "NaN"])
def test_a_body_without_secrets_says_the_same_as_before_and_can_be_stored(body):
    shown = redacted_body(body)
    assert str(json.loads(shown)) == str(json.loads(body))
    assert "\x00" not in shown
    shown.encode()


def test_fields_that_are_secret_or_the_customers_own_are_hidden(logger):
    logger.info(
        "called",
        extra={
            "api_key": "hunter2",
            "headers": {"Authorization": "hunter2", "Accept": "*/*"},
            "prompt": "hunter2",
            "inputs": {"text": "hunter2"},
            "picture": b"hunter2",
            "urls": ["https://u:hunter2@h/x?y=hunter2"],
        },
    )
    (line,) = logger.lines()
    assert "hunter2" not in json.dumps(line)
    assert line["headers"]["Accept"] == "*/*"
    assert line["picture"] == "<7 bytes>"


def test_a_traceback_hides_credentials_too(logger):
    try:
        raise ConnectionError("postgresql://u:hunter2@db refused")
    except ConnectionError:
        logger.warning("database away", exc_info=True)
    assert "hunter2" not in logger.lines()[0]["exc"]


def test_nothing_can_break_a_line(logger):
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    logger.info(
        "odd",
        extra={"a": Unprintable(), "b": float("nan"), "c": "two\nlines", "d": {1: {2, 3}}, "e": "\ud800", "level": "x"},
    )
    logger.info("bad %d", "format")
    first, second = logger.lines()
    assert (first["a"], first["b"], first["c"]) == ("<Unprintable>", "nan", "two\nlines")
    assert (first["level"], first["level_"]) == ("info", "x")
    assert second["event"] == "bad %d"


def test_a_huge_text_is_cut_and_takes_no_time(logger):
    began = time.thread_time()  # what other processes do at the same time takes none of it
    for text in ("a" * 1_000_000, "/" * 1_000_000, "a://" * 250_000, "key" * 300_000, "token " * 200_000):
        logger.info(text, extra={"detail": text})
        redacted(text, logs.MAX_TRACEBACK)
    assert time.thread_time() - began < 5
    assert max(len(line["detail"]) for line in logger.lines()) < 5_000


def test_configured_logging_takes_warnings_and_lost_exceptions(configured):
    logging.getLogger("darkroom.anywhere").info("started")
    logging.getLogger("darkroom.anywhere").debug("hidden")
    logging.getLogger("urllib3.connectionpool").info("hidden too")
    logging.getLogger("pika.adapters").error("an outage, which the connection's own line tells")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", stacklevel=1)

    def fail() -> None:
        raise RuntimeError("lost")

    thread = threading.Thread(target=fail, name="loop")
    thread.start()
    thread.join()
    events = [(line["event"], line["level"]) for line in configured()]
    assert events[0] == ("started", "info")
    assert "old thing" in events[1][0]
    assert events[2] == ("exception left a thread", "critical")
    assert len(events) == 3


def test_what_people_should_hear_of_is_counted(configured):
    metrics = build("poller", strict=True)
    logs.count_in(metrics)
    anywhere = logging.getLogger("darkroom.anywhere")
    for say in (anywhere.debug, anywhere.info, anywhere.warning, anywhere.error, anywhere.critical):
        say("said")
    assert metrics.value("log_messages_total", level="warning") == 1
    assert metrics.value("log_messages_total", level="error") == 2
    assert len(configured()) == 4


def test_configuring_twice_writes_each_line_once(configured):
    stream = io.StringIO()
    logs.configure("poller", "vm-2", "INFO", stream)
    logging.getLogger("darkroom.anywhere").info("once")
    assert len(stream.getvalue().splitlines()) == 1
    assert configured() == []


def test_a_valid_traceparent_keeps_its_trace():
    assert trace_id_from({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}) == TRACE
    assert trace_id_from({"Traceparent": f"00-{TRACE}-b7ad6b7169203331-00".encode()}) == TRACE
    assert read_trace_id(traceparent_of(TRACE)) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "",
        f"00-{TRACE}-b7ad6b7169203331",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
    ],
)
def test_an_invalid_traceparent_gets_a_new_trace(value):
    assert read_trace_id(value) is None
    made = trace_id_from({"traceparent": value})
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert made != TRACE


def test_no_headers_get_a_new_trace():
    assert trace_id_from(None) != trace_id_from({})
    assert len(new_trace_id()) == 32


def test_nothing_that_is_logged_ends_its_line_or_reaches_a_terminal_as_a_command(logger):
    hostile = "a\r\nb\x1b[2Jc\x00d\x7fe\x85f\x9b2Jg\u2028h\u2029i\u202ej\u2066k"
    logger.warning(hostile, extra={hostile: {hostile: [hostile]}, "task_id": hostile})
    text = logger.handlers[0].stream.getvalue()
    assert text.splitlines() == [text.removesuffix("\n")]
    assert text.removesuffix("\n").isprintable()
    assert (logger.lines()[0]["event"], logger.lines()[0]["task_id"]) == (hostile, hostile)


def test_a_line_that_cannot_be_written_is_lost_without_a_word(capsys, configured):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    logs.configure("poller", "vm-2", "INFO", Full())
    logging.getLogger("test").info("task moved")
    assert capsys.readouterr().err == ""


def test_what_a_line_says_is_a_constant():
    """So it can be counted and searched for; what varies goes into a field."""
    said = [
        (f"{path.relative_to(ROOT)}:{call.lineno}", call.args[0])
        for folder in ("services", "shared")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
    ]
    assert len(said) > 80

    def is_constant(text: ast.expr) -> bool:
        if isinstance(text, ast.IfExp):
            return is_constant(text.body) and is_constant(text.orelse)
        return isinstance(text, ast.Constant) and isinstance(text.value, str)

    assert [place for place, text in said if not is_constant(text)] == []
