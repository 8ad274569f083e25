"""The canary's backend: it has every job that anybody names, makes one small picture, and is nobody's server."""

from services.ops import doctor
from shared.config import Settings
from shared.domain.canary_order import CANARY_POOL, canary_order
from shared.domain.finding import Verdict
from shared.pictures import verified
from shared.providers.base import Accepted, Succeeded
from shared.providers.canary import Canary
from shared.providers.registry import BackendConfig
from shared.providers.workflow import Workflows
from tests.integration.api_lab import a_job


def test_a_job_is_the_same_for_whoever_asks_for_it_and_however_often() -> None:
    job = a_job()
    first, second = Canary(), Canary()
    assert first.submit(first.prepare(job)) == second.recover(job) == Accepted(str(job.job_key))
    assert second.check([job]) == {job.job_key: Succeeded(outputs=[{}])}
    assert first.ended(lambda _: [job]) == {}


def test_it_makes_one_picture_that_can_be_kept() -> None:
    (file,) = Canary().fetch(a_job(), [{}])
    picture = verified(file.read())
    assert (picture.media_type, picture.width, picture.height) == ("image/png", 8, 8)


def test_each_order_is_another_one_in_its_own_pool() -> None:
    first, second = canary_order(), canary_order()
    assert first.task_id != second.task_id
    assert {first.pool, second.pool} == {CANARY_POOL}


def test_the_doctor_looks_at_no_server_and_counts_no_slots_for_it() -> None:
    backend = BackendConfig(name="canary", adapter="canary")
    (finding,) = doctor._look_at(backend, {}, Workflows({}))()
    assert (finding.about, finding.verdict) == ("backend canary", Verdict.OK)
    given = Settings.model_validate({"database_url": "postgresql://x", "amqp_url": "amqp://x"})
    found = doctor._fit(given, [backend], {}, Workflows({}), {})
    assert [finding.found for finding in found if "canary" in finding.found and finding.about == "prefetch"] == []
