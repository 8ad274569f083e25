"""Every page of the console is in the benchmark that holds it to 200 ms: one that is added is added there too."""

import sqlalchemy as sa

from benchmarks.console_pages import unmeasured
from services.ops.console.app import create_app
from services.ops.console.parts import Parts
from services.ops.exporter import Seen
from services.ops.replay import Replayer
from shared.database.replays import Replays
from shared.domain.retry import RetryPolicy
from shared.providers.offered import Offered
from shared.providers.workflow import Workflows
from shared.storage import Artifacts
from tests.factories import MEASURED


def test_each_page_is_measured(tmp_path) -> None:
    engine = sa.create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")
    parts = Parts(
        engine=engine,
        store=Artifacts(str(tmp_path)),
        replayer=Replayer(Replays(engine, 1.0), publish=lambda _: None, pools=[], metrics=MEASURED),
        offered=Offered(frozenset(), {}, Workflows({})),
        seen=Seen,
        pools=[],
        retry=RetryPolicy(max_charged=5, first_seconds=10.0, factor=3.0, cap_seconds=900.0),
        default_deadline_seconds=1.0,
    )
    app = create_app(parts).app
    assert unmeasured(app) == set()
    app.add_api_route("/new", lambda: "", methods=["GET"])
    assert unmeasured(app) == {"/new"}
