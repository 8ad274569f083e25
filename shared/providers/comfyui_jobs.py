"""Which jobs a ComfyUI server knows, for the audit. Changes nothing there."""

from typing import Final

from shared.providers.base import KnownJob
from shared.providers.comfyui import ignore
from shared.providers.comfyui_answers import Queue, read
from shared.providers.comfyui_http import BadAnswer, Server, Timings

#: Ended jobs that are looked at, the last ones: each entry holds its whole graph, 4 to 10 kB.
MOST_ENDED: Final = 2000


def known_jobs(url: str) -> list[KnownJob]:
    """Every job that is queued, running, or among the last that ended; one entry each, so a job may stand twice.

    The history is read first: a job that ends meanwhile is then missing from both, and never found in both.

    Raises ProviderAway.
    """
    server = Server(url, Timings(connect=3.0, read=30.0), ignore, on_lost=lambda: None)
    history = server.get("/history", "poll", {"max_items": str(MOST_ENDED)})
    if history.status != 200 or not isinstance(history.body, dict):
        raise BadAnswer(f"GET /history: HTTP {history.status}, not an answer of ComfyUI")
    queue = read(Queue, server.get("/queue", "poll"), "GET /queue")
    active = [str(row[1]) for row in [*queue.queue_running, *queue.queue_pending] if len(row) > 1]
    return [KnownJob(id_, is_over=True) for id_ in history.body] + [KnownJob(id_, is_over=False) for id_ in active]
