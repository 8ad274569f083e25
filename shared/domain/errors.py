"""What can go wrong, sorted by what is safe to do next.

DarkroomError
├── Outage               something we need is away; the deliveries are held and the same call is made again
│   ├── DatabaseAway         a commit may have worked: re-read before deciding anything
│   ├── BrokerAway           unconfirmed messages may have arrived: publish them again
│   └── StorageAway          the pictures are not kept yet: the row stays and comes due again
├── Unpublishable        AMQP or the broker cannot carry a message: sending it again is useless
├── ProviderBusy         provably nothing was created: give the row back, charge nothing
├── AccountRefused       provably nothing was created, for want of money or a valid key: close the backend
├── ProviderRejected     provably nothing was created and no retry will help: fail the row with `reason`
├── OutcomeUnknown       a job may exist: ask for `job_key` before anything else is sent
├── ProviderAway         a question went unanswered: nothing was learned, ask again later
├── InputUnavailable     an input picture can never be had: fail the row
└── InputLater           an input picture cannot be had now: give the row back
"""

from shared.domain.task import Reason


class DarkroomError(Exception):
    """Root of everything this project raises on purpose."""


class Outage(DarkroomError):
    """Something every handler needs is away. Hold what is in hand, wait, call again."""


class DatabaseAway(Outage):
    """PostgreSQL did not answer. A commit in flight has an unknown outcome: re-read the rows."""


class BrokerAway(Outage):
    """RabbitMQ did not confirm. Unconfirmed messages may have arrived."""


class StorageAway(Outage):
    """The artifact store refused or did not answer; nothing may be called stored."""


class Unpublishable(DarkroomError):
    """A message cannot be encoded, or every connection it was sent on was lost. It did not arrive."""


class ProviderBusy(DarkroomError):
    """Nothing was created at the provider. The row waits for its turn again and is not charged.

    retry_after_seconds -- how long the provider asked everybody to stay away; None when it did not say
    is_down             -- the server could not be reached at all, so it should get no more work
    is_too_fast         -- it said that it gets too much from us
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        is_down: bool = False,
        is_too_fast: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.is_down = is_down
        self.is_too_fast = is_too_fast


class AccountRefused(DarkroomError):
    """The provider takes nothing from this account: no money, a wrong key, a lock. It created nothing.

    No order is at fault, so none may fail for it.
    """


class ProviderRejected(DarkroomError):
    """The provider refused this order for good; it created nothing, or what it created was cancelled."""

    def __init__(self, message: str, *, reason: Reason = Reason.REJECTED) -> None:
        super().__init__(message)
        self.reason = reason


class OutcomeUnknown(DarkroomError):
    """The request left and no usable answer came. A job may exist; only `recover` can tell.

    was_answered -- the provider answered in full, if uselessly (HTTP 500), so it is done with the request: what
                    `recover` does not see now, will not come
    ask_in       -- seconds after which `recover` may be called, as nothing of ours is on its way any more; None: when
                    the lease is over
    may_arrive   -- nobody said anything: something between us and the provider may hold the request and deliver it
    """

    def __init__(
        self, message: str, *, was_answered: bool = False, ask_in: float | None = None, may_arrive: bool = False
    ) -> None:
        super().__init__(message)
        self.was_answered = was_answered
        self.ask_in = ask_in
        self.may_arrive = may_arrive


class ProviderAway(DarkroomError):
    """A read or a cancel got no usable answer. Nothing was learned and nothing is lost by asking again."""


class InputUnavailable(DarkroomError):
    """An input picture is missing, forbidden, too large or no picture. No retry will help."""


class InputLater(DarkroomError):
    """An input picture could not be fetched this time (time-out, 5xx). Nothing was sent to the provider."""
