"""The poller: finds what is due, watches the servers, checks jobs, stores pictures."""

import logging
import threading
import time
from functools import partial
from typing import Final

from services.poller.check import Check
from services.poller.schedule import Schedule
from services.poller.watch import Watch
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.topology import check_queue
from shared.database.fallbacks import fall_back
from shared.database.leader import Leader
from shared.database.pins import stranded
from shared.database.slots import Backend
from shared.domain.errors import Outage
from shared.observe.logs import ContextPool
from shared.service import run, start
from shared.storage import Artifacts

log = logging.getLogger(__name__)

_CHECK_THREADS = 4
#: Jobs of one pool looked at together, over all check messages in hand: their pictures are fetched side by side and
#: their moves share a transaction. Each pool has its own, so that one whose pictures trickle keeps no other waiting.
_ROW_THREADS = 16
#: How often a store that failed is asked whether it works again.
_STORE_SECONDS: Final = 5.0
#: Waiting orders that go on in their next pool in one turn.
_FALL_BACK: Final = 500
#: A loop that makes no progress for so long hangs, or meets nothing but bugs.
_LOOP_SECONDS: Final = 60.0
#: Time for all loops together to end, within the grace a container gets beyond the drain.
_JOIN_SECONDS = 6.0


def main() -> None:
    service = start("poller")
    settings = service.settings
    service.sync_backends()
    providers = service.providers(service.workflows())
    rows = service.slots.backends()
    artifacts = Artifacts(settings.artifacts_url)
    checks = {
        pool: Check(
            service.tasks,
            service.slots,
            providers,
            artifacts,
            retry=settings.retry,
            max_run_seconds={row.name: row.max_run_seconds for row in rows},
            frozen_after_seconds=settings.frozen_after_seconds,
            metrics=service.metrics,
            threads=ContextPool(_ROW_THREADS, thread_name_prefix=f"check-{pool}"),
        )
        for pool in service.pools
    }
    broker = Broker(
        settings.amqp_urls,
        service.topology,
        name=service.actor,
        metrics=service.metrics,
        subscriptions=[
            Subscription(
                queue=check_queue(pool),
                handler=checks[pool].handle,
                prefetch=2 * threads,
                threads=threads,
            )
            for pool in service.pools
            # One more for each server, which may keep one waiting.
            for threads in [_CHECK_THREADS + sum(row.pool == pool for row in rows)]
        ],
        clear=service.tasks.clear_due,
        brake_after=settings.brake_after,
        tick=service.tick,
    )
    schedule = Schedule(
        service.tasks,
        service.slots,
        broker.publisher,
        service.pools,
        interval=settings.schedule_interval_seconds,
        check_interval=settings.check_interval_seconds,
        permit_interval=settings.permit_interval_seconds,
        metrics=service.metrics,
        fall_back=partial(fall_back, service.engine, settings.fallback_after_seconds, _FALL_BACK),
        stranded=partial(stranded, service.engine, settings.fallback_after_seconds, _FALL_BACK),
    )
    leader = Leader(service.engine)

    def hint(backend: Backend) -> None:
        try:
            schedule.look_now(backend.pool, backend.name)
        except Outage as error:  # a hint may be lost: the rows come due anyway
            log.info("hint lost", extra={"backend": backend.name, "why": str(error)})

    service.watch(broker)
    service.health.ask("store", artifacts.works, every_seconds=_STORE_SECONDS, stale_after_seconds=60.0)
    server = service.serve_health()
    broker.start()
    watches = [
        Watch(
            row,
            providers[row.name],
            service.slots,
            leader,
            hint=partial(hint, row),
            stopping=service.stopping,
            beat=partial(service.health.beat, "watch", _LOOP_SECONDS, of=row.name),
            metrics=service.metrics,
        )
        for row in rows
        if row.adapter == "comfyui"
    ]
    threads = [threading.Thread(target=watch.run, name="watch", daemon=True) for watch in watches]
    threads.append(
        threading.Thread(
            target=schedule.run,
            args=(service.stopping, partial(service.health.beat, "schedule", _LOOP_SECONDS)),
            name="schedule",
            daemon=True,
        )
    )
    for thread in threads:
        thread.start()
    service.wait()
    service.health.retire("schedule")
    service.health.retire("watch")
    # The broker first: a loop that waits for a confirm is let go by that, and what it took comes due again.
    if not broker.stop(settings.drain_seconds):
        log.warning("work left unfinished; it comes back by itself")
    ends = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    leader.close()
    if server is not None:
        server.close()


if __name__ == "__main__":
    run(main)
