"""A real Prometheus, and a real Alertmanager, on loopback in a folder of their own: for tests and for pictures.

`apt-get install prometheus prometheus-alertmanager` brings both (`make ops-tools`).
"""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtests.peers.server import free_port

START_TIMEOUT_S = 30.0
SCRAPE_INTERVAL = "1s"


class Daemon:
    """One process, ready when `ready_path` answers 200; its output goes to `folder`."""

    def __init__(self, folder: Path, name: str, ready_path: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self._name, self._ready_path = name, ready_path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._log = (self.folder / f"{self._name}.log").open("wb")
        self._process = subprocess.Popen(self.command(), stdout=self._log, stderr=subprocess.STDOUT)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__(None, None, None)
                raise RuntimeError((self.folder / f"{self._name}.log").read_text()[-3000:])
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._ready_path, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Alertmanager(Daemon):
    """Sends every alert to one webhook."""

    def __init__(self, folder: Path, webhook_url: str) -> None:
        super().__init__(folder, "alertmanager", "/-/ready")
        route = {"receiver": "hook", "group_wait": "1s", "group_interval": "1s", "group_by": ["alertname"]}
        config = {"route": route, "receivers": [{"name": "hook", "webhook_configs": [{"url": webhook_url}]}]}
        (folder / "alertmanager.yml").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return [
            "prometheus-alertmanager",
            f"--config.file={self.folder / 'alertmanager.yml'}",
            f"--storage.path={self.folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]


class Prometheus(Daemon):
    """Scrapes ports of this host once a second."""

    def __init__(
        self,
        folder: Path,
        ports: list[int],
        *,
        labels: dict[str, str] | None = None,
        rules: Path | None = None,
        alertmanager: Alertmanager | None = None,
    ) -> None:
        """`labels` are added to every series, as a cluster's discovery does."""
        super().__init__(folder, "prometheus", "/-/ready")
        config: dict[str, Any] = {
            "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
            "scrape_configs": [
                {
                    "job_name": "tokenfleet",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports], "labels": labels or {}}],
                }
            ],
        }
        if rules is not None:
            config["rule_files"] = [str(rules)]
        if alertmanager is not None:
            target = {"targets": [f"127.0.0.1:{alertmanager.port}"]}
            config["alerting"] = {"alertmanagers": [{"static_configs": [target]}]}
        (folder / "prometheus.yml").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Series of an instant query: {"metric": labels, "value": [time, text]}. Raises ValueError with what is wrong."""
        return self._ask("query", {"query": expr})

    def query_range(self, expr: str, *, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """Series over Unix time: {"metric": labels, "values": [[time, text], ...]}."""
        span = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        return self._ask("query_range", {"query": expr, **span})

    def _ask(self, kind: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters['query']}: {error.read().decode()}") from None
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result
