"""Who signed a callback: the published example of Standard Webhooks, and all that must not fit."""

import base64
import hmac
from collections.abc import Mapping

import pytest

from shared.providers.signatures import TOLERANCE_SECONDS, Signatures
from shared.providers.table import Callback, InvalidTables
from shared.providers.table_files import load_tables

#: The example of the Standard Webhooks specification.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
MOMENT = 1614265330
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(MOMENT),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def fits(headers: Mapping[str, str], body: bytes = BODY, *, now: float = MOMENT, secret: str = SECRET) -> bool:
    callback = Callback(body={"webhook": "$callback_url"}, verify="standard_webhooks", secret=secret, job_id="/id")
    return Signatures(callback, now=lambda: now).fits(headers, body)


def test_the_published_example_fits() -> None:
    assert fits(HEADERS)
    assert fits(HEADERS | {"webhook-signature": "v1,bm9uZQ== v2,x " + HEADERS["webhook-signature"]}), "keys change"


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("value", ["", "v1,", "v1,bm9uZQ==", "1614265331", "\xff"])
def test_nothing_else_fits(name: str, value: str) -> None:
    assert not fits(HEADERS | {name: value})
    assert not fits({other: text for other, text in HEADERS.items() if other != name})


def test_another_body_key_or_moment_does_not_fit() -> None:
    assert not fits(HEADERS, BODY + b" ")
    assert not fits(HEADERS, secret="whsec_" + "A" * 32)
    assert not fits(HEADERS, secret="whsec_no base64")
    assert not fits(HEADERS, now=MOMENT + TOLERANCE_SECONDS + 1)
    assert not fits(HEADERS, now=MOMENT - TOLERANCE_SECONDS - 1)


@pytest.mark.parametrize("secret", ["", "whsec_"])
def test_without_a_secret_nothing_fits(secret: str) -> None:
    signed = f"{HEADERS['webhook-id']}.{MOMENT}.".encode() + BODY
    by_anybody = "v1," + base64.b64encode(hmac.digest(b"", signed, "sha256")).decode()
    assert not fits(HEADERS | {"webhook-signature": by_anybody}, secret=secret)


def test_the_job_is_named_by_a_text_that_can_be_kept() -> None:
    callback = load_tables()["replicate"].callback
    assert callback is not None
    signed = Signatures(callback)
    assert signed.job_id(b'{"id": "p1"}') == "p1"
    for id_ in (b"7", b'""', b'"a\\u0000"', b'"' + b"x" * 201 + b'"'):
        assert signed.job_id(b'{"id": ' + id_ + b"}") is None
    for body in (b"", b"[", b"{}"):
        assert signed.job_id(body) is None


def test_only_the_producer_needs_the_secret() -> None:
    table = load_tables()["replicate"]
    assert table.variables == {"REPLICATE_API_TOKEN"}
    assert table.callback is not None
    with pytest.raises(InvalidTables, match="REPLICATE_WEBHOOK_SECRET is not set"):
        table.callback.for_use({})
    assert table.callback.for_use({"REPLICATE_WEBHOOK_SECRET": "whsec_x"}).secret == "whsec_x"


def test_the_keys_move_with_the_backend_s_address() -> None:
    callback = load_tables()["fal"].callback
    assert callback is not None
    assert callback.for_use({}, url="http://127.0.0.1:1/fal").keys == "http://127.0.0.1:1/fal/.well-known/jwks.json"
    assert callback.for_use({}).keys == "https://rest.fal.ai/.well-known/jwks.json"
