"""What a person at the terminal sees of a start: a bar while the engine loads, then one line and a command that works."""

import json
import shlex
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from config.model_folder import ModelFolder
from config.settings import Settings
from ipc.fleet_page import FleetPage
from ops.resources import Resources

_SHORT = {"max_tokens": 64, "temperature": 0}  # a small model at temperature 1 may ramble to the end of its context


class StartProgress:
    """A bar of the slowest engine's start, on a terminal; nothing elsewhere."""

    def __init__(self, page: FleetPage) -> None:
        self._page = page
        columns = (TextColumn("loading model"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True, auto_refresh=False
        )
        self._task = self._progress.add_task("load", total=1000)

    def __enter__(self) -> "StartProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self) -> None:
        permille = min(engine.progress_permille for engine in self._page.engines)
        self._progress.update(self._task, completed=permille, refresh=True)


def show(settings: Settings, model: ModelFolder, resources: Resources) -> None:
    """On standard output."""
    print(text(settings, model, resources), flush=True)


def text(settings: Settings, model: ModelFolder, resources: Resources) -> str:
    server = settings.server
    unix_socket = f"--unix-socket {shlex.quote(server.uds)} " if server.uds else ""
    key = "-H 'authorization: Bearer YOUR_KEY' " if server.api_key or server.api_key_file else ""
    if model.chat_template is not None:
        path = "/v1/chat/completions"
        question: dict[str, object] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    else:
        path = "/v1/completions"
        question = {"prompt": "The capital of France is"}
    body = json.dumps({"model": model.name, **question, **_SHORT})
    address = shlex.quote(resources.url + path)
    where = f"unix:{server.uds}" if server.uds else resources.url
    return (
        f"tokenfleet is ready: {model.name} on {where}, {resources.num_workers} workers, "
        f"probes and metrics on {resources.ops_url}\n"
        f"  curl {unix_socket}{address} {key}-H 'content-type: application/json' -d {shlex.quote(body)}"
    )
