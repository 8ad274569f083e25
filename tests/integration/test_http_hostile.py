"""An API that answers to hurt: each call ends in time, in words we know and in little memory; a POST leaves a doubt."""

import os
import ssl
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import create_server
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.domain.errors import AccountRefused, OutcomeUnknown, ProviderAway, ProviderBusy, ProviderRejected
from shared.domain.task import Sent
from shared.pictures import BrokenPicture, verified
from shared.providers.http_api import HttpApi
from shared.providers.recovery import recover
from tests.integration.api_lab import a_job, plain, provider
from tests.integration.hostile_answers import Everywhere, Large, Script, hostile_answers
from tests.integration.scripted_server import Server, answer, scripted_server

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
JOB = a_job(sent=Sent(posts=1, looks=1, first_at=NOW - timedelta(seconds=99), now=NOW, provider_job_id=None))
KNOWN_JOB = a_job(provider_job_id="j1")
TABLE = plain(
    'recovery = "list_payload"',
    """
[provider.plain.list]
request = "GET /jobs?after={after}&before={before}"
rows = "/rows"
job_id = "/id"
seed = "/seed"
next = "/next"
proves = true
[provider.plain.cancel]
request = "POST /jobs/{job_id}/cancel"
""",
    settle=0.1,
)
#: What a call may end in, beside an answer.
KNOWN = (ProviderAway, ProviderRejected, FileNotFoundError, BrokenPicture)
ANSWERS = hostile_answers(str(JOB.job_key))


def fetched(api: HttpApi, url: str) -> None:
    for picture in api.fetch(KNOWN_JOB, [{"kind": "url", "value": url}]):
        with picture:
            verified(picture.read())


def within_bounds(call: Callable[[], object], what: str) -> object:
    """What came of it: an answer, or an exception."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the caller says which are known
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.monotonic() - began < 10, what
        assert peak < 500_000_000, what


@pytest.mark.parametrize("script", ANSWERS.values(), ids=ANSWERS.keys())
def test_every_call_ends_in_time_in_little_memory_and_in_words_we_know(server: Server, script: Script) -> None:
    api = provider(TABLE, server.url, read_seconds=0.3, limit_seconds=0.6)
    prepared = api.prepare(JOB)
    server.routes = Everywhere(script.make() if isinstance(script, Large) else script)

    ended = within_bounds(lambda: api.submit(prepared), "submit")
    assert isinstance(ended, OutcomeUnknown | AccountRefused), f"a POST that left may have made a job: {ended!r}"
    assert server.calls == ["POST /jobs"]

    calls = {
        "check": lambda: api.check([KNOWN_JOB]),
        "recover": lambda: recover(api, JOB),
        "cancel": lambda: api.cancel(KNOWN_JOB),
        "fetch": lambda: fetched(api, f"{server.url}/1.png"),
    }
    for name, call in calls.items():
        ended = within_bounds(call, name)
        assert not isinstance(ended, Exception) or isinstance(ended, KNOWN), f"{name}: {ended!r}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_call_follows_a_redirect(server: Server, status: int) -> None:
    api = provider(TABLE, server.url)
    prepared = api.prepare(JOB)
    with scripted_server() as private:
        server.routes = Everywhere(answer(status, b"", headers={"Location": f"{private.url}/secrets"}))
        for call in (lambda: api.submit(prepared), lambda: api.check([KNOWN_JOB]), lambda: recover(api, JOB)):
            within_bounds(call, "a redirect")
        assert private.calls == []
    assert len(server.calls) == 3


# --- TLS


def certificate(folder: Path) -> Path:
    """For 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    file = folder / "localhost.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize("is_trusted", [True, False], ids=["broken after the request", "not trusted"])
def test_tls_that_breaks_after_the_request_leaves_a_doubt_and_before_it_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    file = certificate(tmp_path)
    if is_trusted:
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    heard: list[bytes] = []
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    secure = context.wrap_socket(connection, server_side=True)
                    heard.append(secure.recv(65536))
                    os.write(secure.fileno(), b"no record of TLS" * 8)
                    secure.close()
                except OSError:
                    return

        thread = Thread(target=serve)
        thread.start()
        api = provider(TABLE, f"https://localhost:{listener.getsockname()[1]}")
        with pytest.raises(OutcomeUnknown if is_trusted else ProviderBusy):
            api.submit(api.prepare(JOB))
        thread.join(10)
    assert bool(heard) is is_trusted
