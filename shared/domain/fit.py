"""Whether the numbers of an installation fit together: settings, capacity of the backends, workers that run. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from shared.domain.finding import Finding, Verdict

#: Room for a slow commit between the last look at the lease and the POST.
MARGIN_SECONDS: Final = 2.0
#: What RabbitMQ waits for an ack unless consumer_timeout says otherwise; no client can read it.
ACK_TIMEOUT_SECONDS: Final = 1800.0
#: Database connections a process of each service may need at once: its threads that ask.
CONNECTIONS: Final[Mapping[str, int]] = {"producer": 8, "submitter": 24, "poller": 12, "ops": 8}
#: And the console beside them, from a store of its own.
CONSOLE_CONNECTIONS: Final = 4
#: What a process opens beyond them when all are taken.
OVERFLOW: Final = 2
#: And what it keeps to ask for its own readiness.
READINESS: Final = 1


def lease_findings(lease_seconds: float, submit_limits: Mapping[str, float]) -> Iterator[Finding]:
    """A lease that can end during a POST lets a second worker send the same job.

    submit_limits -- longest time one submission may take, by backend
    """
    for name, limit in submit_limits.items():
        needed = limit + MARGIN_SECONDS
        if lease_seconds <= needed:
            found = (
                f"DARKROOM_LEASE_SECONDS is {lease_seconds:.0f}; one submission to {name} may take {needed:.0f} s,"
                " and a row must not be taken over meanwhile"
            )
            yield Finding("lease", Verdict.FAIL, found, "raise it, or lower DARKROOM_BACKEND_TIMEOUT_SECONDS")
        else:
            yield Finding(
                "lease", Verdict.OK, f"{lease_seconds:.0f} s; a submission to {name} takes {limit:.0f} at most"
            )


def ack_timeout_findings(hold_seconds: float, submit_limits: Mapping[str, float]) -> Iterator[Finding]:
    """A delivery in hand for longer than the broker waits ends the connection, and all in hand comes again."""
    longest = hold_seconds + max(submit_limits.values(), default=0.0)
    if longest >= ACK_TIMEOUT_SECONDS:
        found = f"a permit is in hand for up to {longest:.0f} s, longer than RabbitMQ's {ACK_TIMEOUT_SECONDS:.0f} s"
        yield Finding("ack timeout", Verdict.FAIL, found, "lower DARKROOM_HOLD_SECONDS")
        return
    advice = f"consumer_timeout in rabbitmq.conf must be well above that; unset it is {ACK_TIMEOUT_SECONDS:.0f} s"
    found = f"cannot be read by a client; a permit is in hand for up to {longest:.0f} s"
    yield Finding("ack timeout", Verdict.SKIPPED, found, advice)


def drain_findings(drain_seconds: float) -> Iterator[Finding]:
    """A worker that is killed before it has drained leaves rows to the end of their leases."""
    found = f"the supervisor's limit cannot be seen from here; a worker finishes for up to {drain_seconds:.0f} s"
    advice = "stop_grace_period, terminationGracePeriodSeconds or TimeoutStopSec must be 15 s above that"
    yield Finding("drain", Verdict.SKIPPED, found, advice)


def prefetch_findings(pool: str, *, slots: int, prefetch: int, submitters: int) -> Iterator[Finding]:
    """Permits in hand against the slots of a pool: too few leave slots empty.

    submitters -- how many run; 0 when nobody knows or none does
    """
    held = prefetch * (submitters or 1)
    who = f"{submitters or 'one'} submitter{'s' if submitters > 1 else ''}"
    found = f"pool {pool} has {slots} slots, {who} may hold {held} permits"
    if held < slots:
        needed = -(-slots // prefetch)
        yield Finding("prefetch", Verdict.WARN, found, f"run {needed} submitters, or raise the prefetch")
    else:
        yield Finding("prefetch", Verdict.OK, found)


def connection_findings(room: int, processes: Mapping[str, int]) -> Iterator[Finding]:
    """What all processes may open at once against what PostgreSQL takes.

    room      -- connections that PostgreSQL has for us, those already open included
    processes -- how many of each service run; a service that is missing or has none is counted once
    """
    counts = {name: max(1, processes.get(name, 0)) for name in CONNECTIONS}
    needed = sum(count * (CONNECTIONS[name] + OVERFLOW + READINESS) for name, count in counts.items())
    needed += counts.get("ops", 0) * (CONSOLE_CONNECTIONS + OVERFLOW)
    workers = ", ".join(f"{count} {name}" for name, count in counts.items())
    found = f"PostgreSQL has {room} for us; {workers} may open {needed}"
    if needed > room:
        yield Finding("connections", Verdict.WARN, found, "raise max_connections, or run fewer workers")
    else:
        yield Finding("connections", Verdict.OK, found)
