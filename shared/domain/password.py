"""Passwords of people: kept as scrypt hashes, compared in constant time. Pure, and slow on purpose."""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Final

MIN_PASSWORD_CHARACTERS: Final = 12
MAX_PASSWORD_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Cost:
    """What one hash costs: 128 * r * 2**log_n bytes of memory, p times over."""

    log_n: int
    r: int
    p: int


#: One of the settings OWASP names as equal; 32 MiB and about a quarter of a second.
COST: Final = Cost(log_n=15, r=8, p=3)


def hash_password(password: str, cost: Cost = COST) -> str:
    """A hash with a salt of its own and all that is needed to compare with it."""
    salt = os.urandom(16)
    return f"scrypt${cost.log_n}${cost.r}${cost.p}${_text(salt)}${_text(_scrypt(password, salt, cost))}"


def is_password(password: str, stored: str) -> bool:
    """Whether `stored` was made of this password."""
    _, log_n, r, p, salt, wanted = stored.split("$")
    found = _scrypt(password, base64.b64decode(salt), Cost(int(log_n), int(r), int(p)))
    return hmac.compare_digest(found, base64.b64decode(wanted))


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    n = 2**cost.log_n
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=cost.r, p=cost.p, maxmem=256 * cost.r * n, dklen=32
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
