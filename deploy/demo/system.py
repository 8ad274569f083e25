"""Starts the whole system as processes of its own, and ends them by pid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.children import Children
from deploy.local.ports import LOOPBACK
from deploy.local.stack import Stack
from shared.providers.table_files import CATALOG

#: Where the simulator has each provider.
API_PLACES: Final = {
    "openai_images": "/openai/v1",
    "dashscope": "/dashscope/api/v1",
    "fal": "/fal",
    "replicate": "/replicate/v1",
    "runpod_comfyui": "/runpod/v2/endpoint",
}


@dataclass(frozen=True)
class Gpu:
    """One simulated ComfyUI server."""

    pool: str = "comfyui"
    capacity: int = 2


class System:
    """Simulated ComfyUI servers and every service once or twice, beside the servers of `stack`.

    gpus      -- named gpu-1, gpu-2 and so on
    more      -- settings of the services, beside those every demo has
    with_apis -- and five simulated image APIs; `apis` is where, and "" without
    settings  -- of the services, after `start`
    """

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        pictures: Path,
        inputs: Path,
        *,
        gpus: Sequence[Gpu] = (Gpu(), Gpu()),
        more: Mapping[str, str] | None = None,
        with_apis: bool = False,
    ) -> None:
        self._stack = stack
        self._folder = folder
        self._pictures = pictures
        self._inputs = inputs
        self._gpus = gpus
        self._more = dict(more or {})
        self._with_apis = with_apis
        self.apis = ""
        self.settings: dict[str, str] = {}
        self._children = Children(folder)
        self.health = self._children.health
        self.simulators: list[str] = []
        self.api = ""
        self.console = ""

    def start(self, simulated_seconds: float) -> None:
        """Return when every process is ready to work. Raises NotStarted."""
        for number in range(1, len(self._gpus) + 1):
            port = self._children.port()
            self.simulators.append(f"http://{LOOPBACK}:{port}")
            arguments = ["--port", str(port), "--seconds-per-image", str(simulated_seconds)]
            self._children.start(f"comfyui-{number}", "services.simulator", arguments, {})
        backends = self._folder / "backends.toml"
        backends.write_text(
            "\n".join(
                f'[[backend]]\nname = "gpu-{number}"\nadapter = "comfyui"\nurl = "{url}"\n'
                f'pool = "{gpu.pool}"\ncapacity = {gpu.capacity}\n'
                for number, (url, gpu) in enumerate(zip(self.simulators, self._gpus, strict=True), start=1)
            )
        )
        self.settings = settings = {
            **self._stack.environment(),
            "DARKROOM_BACKENDS_FILE": str(backends),
            "DARKROOM_ARTIFACTS_URL": self._pictures.as_uri(),
            "DARKROOM_INPUT_FOLDERS": str(self._inputs),
            "DARKROOM_CHECK_INTERVAL_SECONDS": "0.5",
            "DARKROOM_PERMIT_INTERVAL_SECONDS": "1",
            "DARKROOM_RETRY_FIRST_SECONDS": "1",
            **self._more,
        }
        if self._with_apis:
            settings |= self._start_apis(backends)
        api = self._children.port()
        self.api = f"http://{LOOPBACK}:{api}"
        self._serve("producer", settings | {"DARKROOM_HTTP_PORT": str(api)})
        console = self._children.port()
        self.console = f"http://{LOOPBACK}:{console}"
        for name in ("submitter-1", "submitter-2", "poller-1", "poller-2", "ops"):
            self._serve(name, settings | {"DARKROOM_CONSOLE_PORT": str(console)})
        self._children.wait_until_ready()
        for number, url in enumerate(self.simulators, start=1):
            self._children.wait_for(f"comfyui-{number}", f"{url}/prompt")
        if self.apis:
            self._children.wait_for("apis", f"{self.apis}/_sim/stats?log=0")

    def _start_apis(self, backends: Path) -> dict[str, str]:
        """Five providers more in the backends file; the settings they need."""
        port = self._children.port()
        self.apis = f"http://{LOOPBACK}:{port}"
        self._children.start("apis", "services.simulator.apis", ["--port", str(port), "--seconds-per-image", "1"], {})
        with backends.open("a") as file:
            for name, place in API_PLACES.items():
                url = self.apis + place
                file.write(f'[[backend]]\nname = "{name}"\nadapter = "http"\nprovider = "{name}"\nurl = "{url}"\n')
        # The shipped table, but for the time that a job has to show in a list: nobody watches a demo for minutes.
        tables = self._folder / "providers"
        tables.mkdir(exist_ok=True)
        shipped = (CATALOG / "replicate.toml").read_text(encoding="utf-8")
        quick = shipped.replace('shape = "submit_poll"', 'shape = "submit_poll"\ntimeouts = { settle_s = 2 }', 1)
        (tables / "replicate.toml").write_text(quick, encoding="utf-8")
        keys = dict.fromkeys(("OPENAI_API_KEY", "DASHSCOPE_API_KEY", "FAL_KEY", "REPLICATE_API_TOKEN"), "any")
        return {**keys, "RUNPOD_API_KEY": "any", "DARKROOM_PROVIDERS_DIR": str(tables)}

    def stop(self) -> None:
        """Workers drain, then everything ends; what does not is killed."""
        self._children.stop()

    def kill(self, name: str) -> None:
        """The process dies as it stands: a service by its name, a simulated server as comfyui-1 and so on."""
        self._children.kill(name)

    def start_again(self, name: str) -> None:
        """One that was killed, with what it was started with; it may take a moment until it answers."""
        self._children.start_again(name)

    def _serve(self, name: str, settings: Mapping[str, str]) -> None:
        self._children.serve(name, f"services.{name.partition('-')[0]}", [], settings)
