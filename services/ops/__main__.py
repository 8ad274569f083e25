"""The ops service: records dead letters, carries out replays, watches the promises."""

import logging
import sys
import threading
from functools import partial
from typing import Final

from services.ops.canary import CanaryOrders
from services.ops.collector import Collector
from services.ops.console.serving import Console
from services.ops.exporter import Exporter
from services.ops.plans import PlanRunner
from services.ops.replay import Replayer, confirmed
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.topology import dead_queue
from shared.database.dead_letters import DeadLetters
from shared.database.leader import Leader
from shared.database.plan_steps import PlanSteps
from shared.database.replays import Replays
from shared.domain.canary_order import CANARY_POOL
from shared.domain.task import Stage
from shared.loop import keep_turning
from shared.service import run, start
from shared.storage import Artifacts

log = logging.getLogger(__name__)

#: Letters recorded in one transaction.
_BATCH: Final = 100
#: Time between two looks for replays that nobody finished.
_FINISH_SECONDS: Final = 10.0
#: A loop that does not turn for so long hangs.
_LIMIT_SECONDS: Final = 120.0


def main() -> None:
    service = start("ops")
    settings = service.settings
    letters = DeadLetters(service.engine, service.actor)
    collector = Collector(letters, service.metrics)
    broker = Broker(
        settings.amqp_urls,
        service.topology,
        name=service.actor,
        metrics=service.metrics,
        subscriptions=[
            Subscription(queue=dead_queue(stage), handler=collector.handle, prefetch=2 * _BATCH, batch=_BATCH)
            for stage in Stage
        ],
        brake_after=settings.brake_after,
        tick=service.tick,
    )
    replayer = Replayer(
        Replays(service.engine, settings.default_deadline_seconds),
        publish=confirmed(broker.publish, settings.confirm_timeout_seconds),
        pools=service.pools,
        metrics=service.metrics,
    )
    exporter = Exporter(
        service.engine, service.metrics, pools=service.pools, backends=[backend.name for backend in service.backends]
    )
    steps = PlanSteps(service.engine, service.actor, settings.default_deadline_seconds)
    runner = PlanRunner(steps, replayer)
    console = Console.of(service, broker, exporter)
    service.watch(broker)
    server = service.serve_health()
    broker.start()
    console.start()
    loops = {
        "replay": lambda beat: keep_turning(
            "replay", partial(_finish, replayer), stopping=service.stopping, beat=beat, metrics=service.metrics
        ),
        "plans": lambda beat: keep_turning(
            "plans", runner.turn, stopping=service.stopping, beat=beat, metrics=service.metrics
        ),
        "export": lambda beat: exporter.run(service.stopping, beat),
    }
    leader = Leader(service.engine)
    if CANARY_POOL in service.pools:
        canary = CanaryOrders(
            service.engine,
            service.tasks,
            Artifacts(settings.artifacts_url),
            publish=confirmed(broker.publish, settings.confirm_timeout_seconds),
            leads=partial(leader.leads, "canary order"),
            metrics=service.metrics,
        )
        loops["canary"] = lambda beat: keep_turning(
            "canary", canary.turn, stopping=service.stopping, beat=beat, metrics=service.metrics
        )
    threads = []
    for name, loop in loops.items():

        def beat(name: str = name) -> None:
            service.health.beat(name, _LIMIT_SECONDS)

        threads.append(threading.Thread(target=loop, args=(beat,), name=name, daemon=True))
        threads[-1].start()
    service.wait(lambda: service.stopping.set() if console.has_died else None)
    console_died = console.has_died
    for name in loops:
        service.health.retire(name)
    console.stop()
    if not broker.stop(settings.drain_seconds):
        log.warning("work left unfinished; it comes back by itself")
    for thread in threads:
        thread.join(2.0)
    leader.close()
    if server is not None:
        server.close()
    if console_died:
        log.error("the web console ended by itself")
        sys.exit(1)


def _finish(replayer: Replayer) -> float:
    replayer.finish()
    return _FINISH_SECONDS


if __name__ == "__main__":
    run(main)
