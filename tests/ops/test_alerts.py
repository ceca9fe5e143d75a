"""The alerts, by the real promtool, and one of them all the way from a dying worker to a webhook."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtests.prometheus import Alertmanager, Prometheus
from ops.monitoring.__main__ import OPS, RULES
from ops.monitoring.alerts import ALERTS
from tests.chart.rendering import of_kind, render
from tests.integration.fleet import Fleet

pytestmark = pytest.mark.ops

RULES_FOLDER = OPS / "alerts"


class Webhook(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.notifications: list[dict[str, Any]] = []

    @property
    def alert_names(self) -> set[str]:
        return {alert["labels"]["alertname"] for one in self.notifications for alert in one["alerts"]}


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Webhook)
        self.server.notifications.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", [["check", "rules", RULES], ["test", "rules", RULES.replace("yaml", "test.yaml")]])
def test_promtool_agrees(command: list[str]) -> None:
    """The second runs each alert's own series: it fires, with its labels and texts, and it stays quiet."""
    ended = subprocess.run(["promtool", *command], cwd=RULES_FOLDER, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_takes_the_alerts_as_the_chart_has_them(tmp_path: Path) -> None:
    values = {"monitoring": {"prometheusRule": True, "runbookUrl": "https://wiki.example.com/tokenfleet"}}
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps(of_kind(render(values), "PrometheusRule")["spec"]))

    ended = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(ALERTS)} rules found" in ended.stdout


def kill_worker(fleet: Fleet) -> None:
    """And wait for the next one."""
    dead = fleet.pids("worker 1")
    os.kill(dead[0], signal.SIGKILL)
    fleet.wait_until(lambda: fleet.pids("worker 1") not in ([], dead), 20)
    fleet.wait_until(fleet.is_ready, 20)


def test_a_worker_that_keeps_dying_reaches_the_webhook(tmp_path: Path, webhook: Webhook) -> None:
    url = f"http://127.0.0.1:{webhook.server_port}/"
    with (
        Fleet(tmp_path / "fleet.log", "--engine", "sim", "--workers", "2", "--restart-backoff-max-s", "0.5") as fleet,
        Alertmanager(tmp_path / "am", url) as alertmanager,
        Prometheus(
            tmp_path / "p", [fleet.ops_port], rules=RULES_FOLDER / RULES, alertmanager=alertmanager
        ) as prometheus,
    ):
        fleet.wait_until(lambda: bool(prometheus.query('tokenfleet:restarts_total{role="worker"} == 0')), 20)

        for _ in range(5):
            kill_worker(fleet)
        fleet.wait_until(lambda: "TokenfleetCrashLoop" in webhook.alert_names, 60)

    (notification,) = [
        one for one in webhook.notifications if one["commonLabels"]["alertname"] == "TokenfleetCrashLoop"
    ][:1]
    assert notification["commonLabels"]["role"] == "worker"
    assert notification["commonAnnotations"]["runbook_url"] == "ops/runbooks/crash-loop.md"
