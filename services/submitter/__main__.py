"""The submitter: orders become rows, permits become provider jobs."""

import logging
from collections.abc import Mapping

from services.submitter.intake import Intake
from services.submitter.submit import Submit
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.topology import ORDERS_QUEUE, submit_queue
from shared.domain.finding import Verdict
from shared.domain.fit import MARGIN_SECONDS, lease_findings
from shared.observe.logs import ContextPool
from shared.providers.base import Provider
from shared.providers.http_api import HttpApi
from shared.service import CannotStart, Service, run, start
from shared.storage import Artifacts

log = logging.getLogger(__name__)


def main() -> None:
    service = start("submitter")
    settings = service.settings
    service.sync_backends()
    providers = service.providers(service.workflows())
    problems = {pool: service.problems(providers, pool) for pool in service.pools}
    _check_lease(settings.lease_seconds, providers)
    artifacts = Artifacts(settings.artifacts_url)
    intake = Intake(
        service.tasks,
        pools=service.pools,
        pools_now=service.slots.pools,
        problems=lambda choice: problems[choice.pool](choice),
        fallbacks=service.fallbacks,
        default_deadline_seconds=settings.default_deadline_seconds,
        metrics=service.metrics,
    )
    subscriptions = [
        Subscription(
            queue=ORDERS_QUEUE,
            handler=intake.handle,
            prefetch=settings.prefetch_intake,
            batch=settings.prefetch_intake,
        )
    ]
    calls = []
    for pool in service.pools:
        prefetch = settings.prefetch_comfyui if pool == "comfyui" else settings.prefetch_api
        calls.append(ContextPool(prefetch, thread_name_prefix=f"submit-{pool}"))
        submit = Submit(
            pool,
            service.tasks,
            service.slots,
            providers,
            calls=calls[-1],
            lease_seconds=_lease(service, pool, providers),
            first_look_seconds=settings.check_interval_seconds,
            retry=settings.retry,
            metrics=service.metrics,
            stopping=service.stopping,
            artifacts=artifacts,
        )
        subscriptions.append(
            Subscription(
                queue=submit_queue(pool),
                handler=submit.handle,
                prefetch=prefetch,
                batch=prefetch,
                hold_seconds=settings.hold_seconds,
            )
        )
    broker = Broker(
        settings.amqp_urls,
        service.topology,
        name=service.actor,
        metrics=service.metrics,
        subscriptions=subscriptions,
        clear=service.tasks.clear_due,
        brake_after=settings.brake_after,
        tick=service.tick,
    )
    service.watch(broker)
    server = service.serve_health()
    broker.start()
    service.wait(lambda: pause_idle_pools(service, broker))
    if not broker.stop(settings.drain_seconds):
        log.warning("work left unfinished; it comes back by itself")
    for pool_calls in calls:
        pool_calls.shutdown(wait=False)
    if server is not None:
        server.close()


def pause_idle_pools(service: Service, broker: Broker) -> None:
    """Take no permits for a pool where nothing can be started or asked: its rows wait in the table."""
    assert broker.consumer is not None  # noqa: S101 - a submitter always consumes
    working = {backend.pool for backend in service.slots.backends() if backend.wants_permits}
    for pool in service.pools:
        change = broker.consumer.resume if pool in working else broker.consumer.pause
        change(submit_queue(pool))


def _lease(service: Service, pool: str, providers: Mapping[str, Provider]) -> float:
    """The setting, or longer where an API holds a call for minutes: its table says for how long."""
    here = [providers[backend.name].submit_limit_seconds for backend in service.backends if backend.pool == pool]
    return max(service.settings.lease_seconds, max(here) + 2 * MARGIN_SECONDS)


def _check_lease(lease_seconds: float, providers: Mapping[str, Provider]) -> None:
    """An API's pool has a lease of its own, see `_lease`."""
    limits = {
        n: provider.submit_limit_seconds for n, provider in providers.items() if not isinstance(provider, HttpApi)
    }
    for finding in lease_findings(lease_seconds, limits):
        if finding.verdict is Verdict.FAIL:
            raise CannotStart(f"{finding.found}: {finding.advice}")


if __name__ == "__main__":
    run(main)
