"""Whether a callback comes from the provider. What it says is used for nothing but the name of a job."""

import base64
import binascii
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.domain.errors import ProviderAway
from shared.providers import pointers
from shared.providers.body import as_json
from shared.providers.session import Session
from shared.providers.table import Callback

#: How far a callback's moment may be from ours; a recorded one is good for so long.
TOLERANCE_SECONDS: Final = 300.0
#: Public keys are asked for again after so long, as the provider allows, and sooner when none of them fits.
_KEYS_SECONDS: Final = 86400.0
_KEYS_AGAIN_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 5.0
_WHSEC: Final = "whsec_"
#: Longest id of a job that is kept.
_MAX_ID: Final = 200


class Signatures:
    """Of one provider. For all threads.

    callback -- ready for use: its secret is put in
    """

    def __init__(self, callback: Callback, *, now: Callable[[], float] = time.time) -> None:
        self._callback = callback
        self._now = now
        self._lock = threading.Lock()
        self._keys: Sequence[Ed25519PublicKey] = ()
        self._asked_at = float("-inf")

    @property
    def are_checked(self) -> bool:
        return self._callback.verify is not None

    def fits(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether the provider wrote this, now. Raises ProviderAway when its keys cannot be had.

        headers -- names in lower case
        """
        match self._callback.verify:
            case "standard_webhooks":
                return self._is_standard(headers, body)
            case "fal_ed25519":
                return self._is_fal(headers, body)
            case None:
                return False

    def job_id(self, body: bytes) -> str | None:
        """The job a signed call is about, if it says so."""
        pointer = self._callback.job_id
        found = pointers.first(as_json(body), [pointer]) if pointer is not None else None
        return found if isinstance(found, str) and 0 < len(found) <= _MAX_ID and found.isprintable() else None

    def _is_now(self, moment: str) -> bool:
        return moment.isdecimal() and len(moment) < 12 and abs(self._now() - int(moment)) <= TOLERANCE_SECONDS

    def _is_standard(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md; replicate.com/docs, webhooks."""
        id_, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not id_ or not self._is_now(moment):
            return False
        secret = (self._callback.secret or "").removeprefix(_WHSEC)
        try:
            key = base64.b64decode(secret, validate=True)
        except binascii.Error:
            return False
        if not key:  # what is signed with nothing is signed by anybody
            return False
        signed = f"{id_}.{moment}.".encode("latin-1", "replace") + body
        ours = b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))
        given = headers.get("webhook-signature", "").encode("latin-1", "replace").split()
        return any(hmac.compare_digest(ours, one) for one in given)

    def _is_fal(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Source: docs.fal.ai, webhooks, verification."""
        names = ("request-id", "user-id", "timestamp", "signature")
        id_, user, moment, signature = (headers.get(f"x-fal-webhook-{name}", "") for name in names)
        if not id_ or not user or not self._is_now(moment):
            return False
        try:
            given = bytes.fromhex(signature)
        except ValueError:
            return False
        message = "\n".join((id_, user, moment, hashlib.sha256(body).hexdigest())).encode("latin-1", "replace")
        if any(_fits(key, given, message) for key in self._known_keys(_KEYS_SECONDS)):
            return True
        return any(_fits(key, given, message) for key in self._known_keys(_KEYS_AGAIN_SECONDS))

    def _known_keys(self, at_most_old: float) -> Sequence[Ed25519PublicKey]:
        with self._lock:
            if time.monotonic() - self._asked_at > at_most_old:
                try:
                    self._keys = _keys_at(self._callback.keys or "")
                finally:  # also when it failed: a flood of callbacks is no flood of questions
                    self._asked_at = time.monotonic()
            return self._keys


def _fits(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _keys_at(url: str) -> Sequence[Ed25519PublicKey]:
    """Raises ProviderAway."""
    try:
        with Session() as session:
            answer = session.get(url, timeout=_ASK_SECONDS, allow_redirects=False)
        answer.raise_for_status()
        found: Any = answer.json()["keys"]
        return [Ed25519PublicKey.from_public_bytes(_unpadded(key["x"])) for key in found if key.get("crv") == "Ed25519"]
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProviderAway(f"the keys of its callbacks: {type(error).__name__}") from error


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
