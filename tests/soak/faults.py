"""What goes wrong during a soak: one fault every few seconds, chosen by a seeded generator."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

import requests

from deploy.local import Stack
from tests.conformance.simulated_apis import SimulatedApis
from tests.e2e.system import System
from tests.waiting import eventually

#: Seconds between two faults.
_BETWEEN: Final = (2.0, 6.0)
#: Faults of one server, each for a few requests: every one is over by itself.
_AT_A_SERVER: Final = {
    "slow answers": {"slow": {"seconds": 1.0, "times": 5}},
    "500 though queued": {"answer_500": {"queue": True, "times": 2}},
    "500": {"answer_500": {"times": 2}},
    "answer lost": {"drop_after_accept": {"times": 2}},
    "request lost": {"drop_before_read": {"times": 2}},
    "garbage": {"garbage": {"times": 2}},
    "status garbage": {"garbage": {"times": 3, "paths": ["/queue", "/history*", "/api/jobs*"], "kind": "cut_json"}},
    "job fails": {"fail_execution": {"times": 2}},
    "broken picture": {"corrupt_output": {"times": 1}},
    "refuses connections": {"refuse": {"seconds": 3.0}},
    "forgets everything": {"restart": {"down_seconds": 1.0}},
}
_POSTS: Final = {"paths": ["*"], "methods": ["POST"], "times": 2}
#: Faults of the image APIs, for whichever of the five is asked next. None makes a synchronous one answer without its
#: picture: it would be asked for another one, which is no double and looks like one from outside.
_AT_THE_APIS: Final = {
    "API slow": {"slow": {"seconds": 1.0, "times": 5}},
    "API 500 though made": {"say": {"status": 500, "body": {"error": "broken"}, "accept": True, **_POSTS}},
    "API 500": {"answer_500": {"paths": ["*"], "times": 3}},
    "API answer lost": {"drop_after_accept": _POSTS},
    "API request lost": {"drop_before_read": _POSTS},
    "API garbage": {"garbage": {"paths": ["*"], "methods": ["POST"], "times": 1}},
    "API status garbage": {"garbage": {"paths": ["*"], "methods": ["GET"], "times": 3, "kind": "cut_json"}},
    "API too fast": {"rate_limited": {"times": 3}},
    "API job fails": {"outcome": {"kind": "failed", "times": 2}},
    "API refuses connections": {"refuse": {"seconds": 3.0}},
}
_SECONDS_AWAY: Final = (0.5, 3.0)


class Faults:
    """Runs until told to stop. `count` says how often what was done."""

    def __init__(self, system: System, stack: Stack, apis: SimulatedApis, seed: int, spared: set[str]) -> None:
        self._system = system
        self._apis = apis
        self._stack = stack
        self._random = random.Random(seed)
        self._spared = spared
        self.count: Counter[str] = Counter()

    def run(self, stopping: threading.Event) -> None:
        """One thread's whole life."""
        kinds: list[tuple[int, Callable[[threading.Event], str]]] = [
            (10, self._at_a_server),
            (5, self._at_the_apis),
            (5, self._kill_a_worker),
            (2, self._deploy_a_worker),
            (1, self._broker),
            (1, self._database),
        ]
        weights = [weight for weight, _ in kinds]
        while not stopping.wait(self._random.uniform(*_BETWEEN)):
            [(_, strike)] = self._random.choices(kinds, weights)
            self.count[strike(stopping)] += 1

    def heal(self) -> None:
        """Everything is there again, and well."""
        self._stack.up()
        for heal in [*(gpu.heal for gpu in self._system.gpus), lambda: self._apis.faults(clear=True)]:
            eventually(lambda heal=heal: _worked(heal), within=20, what="a server takes connections again")  # type: ignore[misc]
        for kind, wanted in {"submitter": 2, "poller": 2, "ops": 2}.items():
            for _ in range(wanted - len(self._system.living(kind))):
                self._system.add(kind, wait=False)

    def _at_a_server(self, _: threading.Event) -> str:
        name = self._random.choice(list(_AT_A_SERVER))
        gpu = self._random.choice(self._system.gpus)
        return name if _worked(lambda: gpu.faults(**_AT_A_SERVER[name])) else "server already away"

    def _at_the_apis(self, _: threading.Event) -> str:
        name = self._random.choice(list(_AT_THE_APIS))
        return name if _worked(lambda: self._apis.faults(**_AT_THE_APIS[name])) else "APIs already away"

    def _victim(self) -> tuple[str, str]:
        """A worker that lives, and its kind; one of each kind is spared, so that its memory can be watched."""
        living = [w for w in self._system.workers if w.is_alive and w.name not in self._spared]
        worker = self._random.choice(sorted(living, key=lambda worker: worker.name))
        return worker.name, worker.name.partition("-")[0]

    def _kill_a_worker(self, _: threading.Event) -> str:
        name, kind = self._victim()
        next(w for w in self._system.workers if w.name == name).kill()
        self._system.add(kind, wait=False)
        return f"{kind} killed"

    def _deploy_a_worker(self, _: threading.Event) -> str:
        name, kind = self._victim()
        worker = next(w for w in self._system.workers if w.name == name)
        self._system.add(kind, wait=False)
        worker.terminate()
        worker.ended(60)
        return f"{kind} replaced"

    def _broker(self, stopping: threading.Event) -> str:
        self._stack.broker.kill()
        stopping.wait(self._random.uniform(*_SECONDS_AWAY))
        self._stack.broker.start()
        return "broker killed"

    def _database(self, stopping: threading.Event) -> str:
        self._stack.database.stop(immediate=True)
        stopping.wait(self._random.uniform(*_SECONDS_AWAY))
        self._stack.database.start()
        return "database killed"


def _worked(tell: Callable[[], object]) -> bool:
    """False: the server is refusing connections just now."""
    try:
        tell()
    except requests.RequestException:
        return False
    return True
