"""The Prometheus of docker-compose.yml, and the same configuration for servers on loopback."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

CONFIG: Final = Path(__file__).with_name("prometheus.yml")

_BY_NAME: Final = re.compile(r"dns_sd_configs: \[\{names: \[([\w-]+)\].*")
_FIXED: Final = re.compile(r'static_configs: \[\{targets: \["([\w-]+):\d+"\]\}\]')
_INTERVALS: Final = re.compile(r"^(  (?:scrape|evaluation)_interval): .*$", re.MULTILINE)


def on_loopback(targets: Mapping[str, Sequence[str]], interval_seconds: int) -> str:
    """The text of prometheus.yml with these addresses, host:port, in place of each container's name.

    Raises KeyError for a container that `targets` leaves out.
    """

    def addresses(name: re.Match[str]) -> str:
        quoted = ", ".join(f'"{address}"' for address in targets[name[1]])
        return f"static_configs: [{{targets: [{quoted}]}}]"

    text = _FIXED.sub(addresses, CONFIG.read_text(encoding="utf-8"))
    text = _BY_NAME.sub(addresses, text)
    return _INTERVALS.sub(rf"\1: {interval_seconds}s", text)
