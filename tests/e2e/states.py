"""Brings an order to one state and keeps it there until `release`. For systems of one server that takes two jobs."""

from typing import Any

from shared.domain.messages import Order
from tests.e2e.system import FINAL, System, an_order
from tests.waiting import eventually

#: How long the server takes for a picture: no test lives to see it.
FOREVER = 600.0
#: How long a POST is unanswered, less than the timeout of such a system.
ANSWER_SECONDS = 2.0
#: For POSTs that may last so long; the lease is longer than one submission.
PATIENT = {"BACKEND_TIMEOUT_SECONDS": 5, "LEASE_SECONDS": 90}
#: Paths that tell whether a job exists, or end it.
LOOKS = ["/api/jobs*", "/queue", "/history*", "/view"]


def running(system: System) -> Order:
    """The server works on it."""
    return _processing(system, "running")


def waiting(system: System) -> tuple[Order, Order]:
    """One that the server works on, and one in the server's queue. All slots are taken."""
    return running(system), _processing(system, "pending")


def pending(system: System, **given: Any) -> tuple[Order, Order, Order]:
    """One running, one in the server's queue, and one for which there is no slot."""
    first, second = waiting(system)
    third = an_order(**given)
    system.place(third)
    eventually(lambda: system.row(third), within=20, what="a row", every=0.01)
    return first, second, third


def submitting(system: System, *, accepted: bool) -> Order:
    """Its POST is not answered yet. accepted -- whether the server has the job already"""
    [gpu] = system.gpus
    slow = {"seconds": ANSWER_SECONDS, "paths": ["/prompt"], "before": not accepted, "times": 1}
    gpu.faults(seconds_per_image=FOREVER, slow=slow)
    order = an_order()
    system.place(order)
    posted = "select 1 from attempts where task_id = :id and posted_at is not null"
    eventually(lambda: system.sql(posted, id=order.task_id), within=20, what="a POST", every=0.01)
    if accepted:
        eventually(lambda: outcomes(system, order), within=20, what="a job", every=0.01)
    return order


def in_doubt(system: System) -> Order:
    """The server works on it, but its answer was lost and it does not say: the row is submitting to the lease's end."""
    [gpu] = system.gpus
    gpu.faults(seconds_per_image=FOREVER, drop_after_accept={}, answer_500={"paths": LOOKS})
    [submitter] = system.living("submitter")
    doubts = len(submitter.said("provider gave no answer"))
    order = an_order()
    system.place(order)
    eventually(lambda: len(submitter.said("provider gave no answer")) > doubts, within=20, what="a doubt")
    gpu.faults(drop_after_accept=None, answer_500=None)
    assert system.row(order).status == "submitting"
    return order


def outcomes(system: System, order: Order) -> list[str]:
    """What became of it at the server, once per job."""
    return [run["outcome"] for run in system.runs_of(order)]


def release(system: System) -> None:
    """The server is well, and whatever is unfinished is cancelled."""
    for gpu in system.gpus:
        gpu.heal()
    for row in system.sql("select id from tasks where status <> all(:final)", final=list(FINAL)):
        system.tasks.cancel(row.id, "the test is over")


def _processing(system: System, outcome: str) -> Order:
    [gpu] = system.gpus
    gpu.faults(seconds_per_image=FOREVER)
    order = an_order()
    system.place(order)
    system.await_status("processing", order)
    eventually(lambda: outcomes(system, order) == [outcome], within=10, what=f"{outcome} at the server")
    return order
