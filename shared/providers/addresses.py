"""Which network addresses an order may make us call, and a connection that cannot end up anywhere else.

The host is resolved once, every address it has is checked, and the connection goes to a checked address: a name that
answers differently the second time (DNS rebinding) is never asked a second time. Host header, SNI and certificate
check keep the name.
"""

import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from shared.providers.heads import HTTPConnectionPool, HTTPSConnectionPool

#: host, port -> addresses. Raises OSError.
Resolve = Callable[[str, int], list[str]]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Translated to IPv4 by a gateway: the last 32 bits say where it goes. The second one is for local use.
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
#: Set apart by IANA, but counted as public by some of the Python versions we run on.
_SET_APART: Final = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))


def resolve(host: str, port: int) -> list[str]:
    """Every address of the host, in the system's order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(text: str) -> bool:
    """Whether an address belongs to the open internet, looked at through every wrapping of IPv4 in IPv6. Pure."""
    try:
        address: _Address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo[1] if address.teredo else None
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if any(address in net for net in _NAT64) else None
        compatible = ipaddress.IPv4Address(int(address)) if int(address) >> 32 == 0 else None
        for inner in (address.ipv4_mapped, address.sixtofour, teredo, nat64, compatible):
            if inner is not None:
                return is_public(str(inner))
        if address.is_site_local:
            return False
    return address.is_global and not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or any(address in network for network in _SET_APART)
    )


class PinnedAdapter(HTTPAdapter):
    """Connects to one address whatever the name in the URL says; repeats nothing, and waits for no head for ever."""

    def __init__(self, address: str) -> None:
        super().__init__(max_retries=0)
        self._address = address
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: bool | str, cert: Any = None
    ) -> tuple[Any, Any]:
        """The documented place to change what a connection is made to (requests 2.32 and later)."""
        host_parameters, pool_parameters = super().build_connection_pool_key_attributes(request, verify, cert)
        changed: dict[str, Any] = {**host_parameters, "host": self._address}
        pool: Mapping[str, Any] = pool_parameters
        if changed["scheme"] == "https":
            name = host_parameters["host"]
            pool = {**pool_parameters, "server_hostname": name, "assert_hostname": name}
        request.headers["Host"] = _host_header(str(request.url))
        return changed, pool


def _host_header(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
