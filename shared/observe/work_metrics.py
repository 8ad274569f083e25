"""What becomes of orders, counted and timed by whoever did it, after the commit or the confirm."""

from typing import Final

from shared.domain.task import Reason, Stage
from shared.observe.label_values import (
    BACKEND_OPERATIONS,
    BACKEND_RESULTS,
    JOB_STATES,
    MOVES,
    RETRY_REASONS,
    STATUSES,
    STEPS,
    WAITS,
)
from shared.observe.metric import ATTEMPTS, BYTES, FAST, ORDER, SERVICES, STAY, Configured, Kind, Metric

WORK: Final[tuple[Metric, ...]] = (
    Metric(
        name="orders_received_total",
        kind=Kind.COUNTER,
        help="Orders that reached us, by the way they came and what was done with them. What came over HTTP counts"
        " there alone; what `darkroom submit` sends comes as amqp.",
        question="How much comes in, and how much of it is repeated or bad?",
        services=("producer", "submitter"),
        labels={"source": ("http", "amqp"), "result": ("accepted", "duplicate", "invalid", "conflict")},
    ),
    Metric(
        name="callbacks_total",
        kind=Kind.COUNTER,
        help="Calls of providers that said a job had ended: taken, about no job of ours, with a wrong signature, or not"
        " checked.",
        question="Do callbacks arrive, and does somebody forge them?",
        services=("producer",),
        labels={"result": ("taken", "unknown", "forged", "unchecked")},
    ),
    Metric(
        name="fallbacks_total",
        kind=Kind.COUNTER,
        help="Orders that went on in their next pool, by the pool they left.",
        question="How much goes elsewhere, because a pool is shut or refuses?",
        services=("submitter", "poller"),
        labels={"pool": Configured.POOL},
    ),
    Metric(
        name="publishes_total",
        kind=Kind.COUNTER,
        help="Messages published, by what the broker answered; timeout means it has not answered yet.",
        question="Does the broker accept what we publish?",
        services=SERVICES,
        labels={"result": ("confirmed", "nacked", "returned", "timeout")},
    ),
    Metric(
        name="publish_confirm_seconds",
        kind=Kind.HISTOGRAM,
        help="From the last send of a message to the broker's confirm.",
        question="Is the broker slow?",
        services=SERVICES,
        buckets=FAST,
    ),
    Metric(
        name="messages_total",
        kind=Kind.COUNTER,
        help="Deliveries settled. dead_lettered: published to the dead queue, confirmed, then acked.",
        question="What is the throughput of each queue?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE, "result": ("acked", "dead_lettered")},
    ),
    Metric(
        name="message_handle_seconds",
        kind=Kind.HISTOGRAM,
        help="From a delivery's arrival in this process to the verdict about it. Permits may wait in hand for a slot.",
        question="Does a handler hold up its queue?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE},
        buckets=FAST,
    ),
    Metric(
        name="message_redeliveries_total",
        kind=Kind.COUNTER,
        help="Deliveries that carried the redelivered flag.",
        question="Are consumers dying with work in hand?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE},
    ),
    Metric(
        name="claims_total",
        kind=Kind.COUNTER,
        help="Outcomes of claiming an order's row (won, duplicate, conflict) and of taking over a row whose lease"
        " had ended (reclaimed), after the commit.",
        question="Did exactly one worker win each order?",
        services=("submitter",),
        labels={"pool": Configured.POOL, "result": ("won", "duplicate", "conflict", "reclaimed")},
    ),
    Metric(
        name="duplicates_suppressed_total",
        kind=Kind.COUNTER,
        help="Second pictures that did not happen. publish: the producer already knew the order. claim: the key or the"
        " order_id had a task. submit: a takeover found the job instead of sending it again. complete: another worker"
        " had completed the row.",
        question="How many duplicate pictures were prevented, and by which guard?",
        services=SERVICES,
        labels={"point": ("publish", "claim", "submit", "complete")},
    ),
    Metric(
        name="possible_double_total",
        kind=Kind.COUNTER,
        help="Attempts that may have made two provider jobs: a POST that was or may be still in flight past the lease,"
        " or an owner that stalled between its last look at the lease and the send.",
        question="How often could the provider have been paid twice?",
        services=("submitter", "poller"),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="transitions_total",
        kind=Kind.COUNTER,
        help="Status changes, after the commit. stale: the row had moved on and nothing was written."
        " forbidden: an illegal move was asked for and the database refused it.",
        question="How often do workers collide on a row, and did any try an illegal move?",
        services=SERVICES,
        labels={
            "from_status": STATUSES,
            "to_status": STATUSES,
            "result": ("applied", "stale", "forbidden"),
        },
        only=MOVES,
    ),
    Metric(
        name="backend_requests_total",
        kind=Kind.COUNTER,
        help="Calls to a backend that ended, by operation and class of result.",
        question="What is the error rate of each backend, by class?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND, "operation": BACKEND_OPERATIONS, "result": BACKEND_RESULTS},
    ),
    Metric(
        name="backend_request_seconds",
        kind=Kind.HISTOGRAM,
        help="Duration of one call to a backend.",
        question="Is a backend slow to answer?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND, "operation": BACKEND_OPERATIONS},
        buckets=FAST,
    ),
    Metric(
        name="unknown_states_total",
        kind=Kind.COUNTER,
        help="Answers of a backend with a job state we do not know; each was read as still running.",
        question="Did a provider invent a new state?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="backend_wait_seconds",
        kind=Kind.HISTOGRAM,
        help="From the moment a row was free to start to its taking. permit: nobody was"
        " asked to take it yet. slot: all slots of the pool were in use. rate: no further start was allowed."
        " closed: no backend of the pool took work (paused, refused or away).",
        question="Why does a ready order not start?",
        services=("submitter",),
        labels={"pool": Configured.POOL, "reason": WAITS},
        buckets=STAY,
    ),
    Metric(
        name="polls_total",
        kind=Kind.COUNTER,
        help="Looks at one job, by what was found; one call may look at many. missing: the backend does not have it."
        " unknown: nothing was learned.",
        question="How many looks does a finished order take?",
        services=("poller",),
        labels={"backend": Configured.BACKEND, "result": JOB_STATES},
    ),
    Metric(
        name="completion_detection_seconds",
        kind=Kind.HISTOGRAM,
        help="From the backend's own finish stamp to our commit; below zero counts as zero."
        " push: an event made us look, poll: the schedule did.",
        question="How late do we notice that a picture is ready?",
        services=("poller",),
        labels={"backend": Configured.BACKEND, "via": ("poll", "push")},
        buckets=STAY,
    ),
    Metric(
        name="clock_skew_total",
        kind=Kind.COUNTER,
        help="Pictures that a backend's stamp says were finished after we had committed them.",
        question="Can completion_detection_seconds be trusted?",
        services=("poller",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="orders_finished_total",
        kind=Kind.COUNTER,
        help="Orders that reached a final status, after the commit. refused: failed for what the order itself says or"
        " names, so nobody could have made it.",
        question="Which share of the orders fails?",
        services=SERVICES,
        labels={"pool": Configured.POOL, "outcome": ("completed", "failed", "refused", "cancelled")},
    ),
    Metric(
        name="order_duration_seconds",
        kind=Kind.HISTOGRAM,
        help="From the claim of an order to its final status, both stamps from the database; without refused ones.",
        question="How long does an order take?",
        services=SERVICES,
        labels={"pool": Configured.POOL, "outcome": ("completed", "failed")},
        buckets=ORDER,
    ),
    Metric(
        name="order_stage_seconds",
        kind=Kind.HISTOGRAM,
        help="Stays of rows in one step, each observed as it ends. queue: pending. submit: in a submitter's hands."
        " execute: at the backend, until its own finish stamp where it gives one. detect: from there to our commit."
        " deliver: from the end to the confirmed event. Another attempt is another stay.",
        question="Where does an order spend its time?",
        services=SERVICES,
        labels={"pool": Configured.POOL, "stage": STEPS},
        buckets=STAY,
    ),
    Metric(
        name="task_attempts",
        kind=Kind.HISTOGRAM,
        help="Attempts of orders that completed or failed; without refused ones.",
        question="Does success need retries?",
        services=SERVICES,
        labels={"pool": Configured.POOL},
        buckets=ATTEMPTS,
    ),
    Metric(
        name="retries_total",
        kind=Kind.COUNTER,
        help="Attempts that ended while their order goes on, by the step and by what ended them."
        " not_created: the backend was busy, closed or away.",
        question="What is flaky?",
        services=("submitter", "poller"),
        labels={"stage": (str(Stage.SUBMIT), str(Stage.CHECK)), "reason": RETRY_REASONS},
    ),
    Metric(
        name="artifact_bytes",
        kind=Kind.HISTOGRAM,
        help="Sizes of the pictures of completed orders, after the commit of their rows.",
        question="How many pictures are kept, and how fast does the store grow?",
        services=("submitter", "poller"),
        labels={"pool": Configured.POOL},
        buckets=BYTES,
    ),
    Metric(
        name="dead_letters_total",
        kind=Kind.COUNTER,
        help="Dead letters recorded, after the commit of their row.",
        question="Why do orders die?",
        services=("ops",),
        labels={"stage": tuple(Stage), "reason": tuple(Reason)},
    ),
)
