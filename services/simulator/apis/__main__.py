"""Starts five simulated image APIs on one loopback port, each below its own name, and faults a test can switch on.

    python -m services.simulator.apis --port 8189
        [--host 127.0.0.1] [--seconds-per-image 0.5] [--kept-seconds 3600]
        [--max-in-flight N] [--starts-per-second N] [--origin URL] [--seed N]

    /openai/v1           synchronous: the POST is held for as long as the picture takes
    /dashscope/api/v1    tasks; the header X-DashScope-Async is asked for
    /fal                 queue; the addresses to ask at come with the job; list at /fal/v1/models/requests/by-endpoint
    /replicate/v1        predictions, with a list that carries the input
    /runpod/v2/ENDPOINT  a serverless endpoint with worker-comfyui; pictures come inside the answer

`--port 0` takes a free one. When connections are accepted, one line `listening on http://127.0.0.1:PORT` goes to
stdout. They answer as the documents say that each names; none of it was measured on the real ones. Any key is taken.

Beyond `--max-in-flight` jobs at once, or `--starts-per-second` within any second, an API answers 429 in its own words.
A job is kept for `--kept-seconds` after its end; then its picture and its state are gone as they are there.

Faults: as those of `python -m services.simulator` (refuse, answer_500, drop_after_accept, drop_before_read, slow,
garbage; `paths` begin with the API's name, "/fal/*"; of each fault several may be given in a list), and

    rate_limited   {"paths", "times"}            a POST that would start a job is answered with the API's 429
    no_money       {"paths", "times"}            ... or with what it says when the account is empty
    moderated      {"match", "times"}            words with `match` in them are refused at once
    outcome        {"match", "kind", "times"}    such a job ends as: failed, moderated, no_picture, unknown_state, lost
    slow_job       {"match", "seconds"}          such a job takes so long
    expired        {"paths", "times"}            pictures under /NAME/files/* are gone
    say            {"paths", "methods", "status", "headers", "body", "accept", "times"}    that answer word for word;
                                                 accept true: what was asked is done all the same
                                                 (also below a name that no API here has)

Statistics: `GET /_sim/stats`: calls, statuses and log as there (prompt_id is the job that a call made), and per API
`{"jobs", "cancelled", "downloads", "over_in_flight", "over_rate", "in_flight", "most_in_flight",
"most_starts_in_a_second", "same_seed_twice", "same_words_twice"}`; the last is how many orders, told apart by all they
say but the seed, were started more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from .server import ApiServer, Options


def main() -> int:
    """Parse the command line and serve until told to stop; returns the exit code."""
    return asyncio.run(_serve(Options(**vars(_parser().parse_args()))))


async def _serve(options: Options) -> int:
    server = ApiServer(options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    if await server.open():
        print(f"listening on http://{options.host}:{server.port}", flush=True)
    return await server.wait()


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m services.simulator.apis", description=about)
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seconds-per-image", type=float, default=0.5, help="what a job takes")
    parser.add_argument("--kept-seconds", type=float, default=3600.0, help="for how long an ended job is kept")
    parser.add_argument("--max-in-flight", type=int, help="jobs each API takes at once")
    parser.add_argument("--starts-per-second", type=int, help="jobs each API starts within a second")
    parser.add_argument("--origin", help="its address where answers name one; its own when nothing stands before it")
    parser.add_argument("--seed", type=int, help="makes faults with a probability repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
