"""A session of requests that does what it is told and nothing beside it."""

from http.cookiejar import DefaultCookiePolicy

import requests


class Session(requests.Session):
    """No redirect, proxy, .netrc or cookie of anybody's; and no Retry, as long as nobody mounts one."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002  # as requests calls it
        """Nowhere. With allow_redirects=False requests 2.34 works out the next request all the same: for that it reads
        the whole body, for as long as it trickles and as large as it gets, and raises ValueError when the address is
        none.
        """
        return
