"""README's pictures of the dashboards and of `tokenfleet top`: a real fleet under load, seen by a real Prometheus.

    python -m loadtests.pictures --out ops/pictures [--seconds 60]     (`make pictures`; needs `make ops-tools`, Chromium)

The dashboards are drawn from the generated JSON, query by query, as plain SVG: there is no Grafana in it. Of each picture
Chromium takes a screenshot, for those who cannot show SVG.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from loadtests.background_load import BackgroundLoad
from loadtests.line_chart import COLORS, Points, document, frame, shown
from loadtests.line_chart import panel as lines_panel
from loadtests.peers.server import free_port
from loadtests.prometheus import Prometheus
from ops.monitoring.__main__ import OPS

FLAGS = ("--engine", "sim", "--engines", "2", "--workers", "2", "--sim-step-ms", "10", "--max-num-seqs", "8")
WINDOW_S, STEP_S = 10, 1.0
CELL_WIDTH, CELL_HEIGHT, GAP = 44, 22, 8  # pixels of one cell of Grafana's grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load before the pictures are taken")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    port, ops_port = free_port(), free_port()
    command = [sys.executable, "-m", "ops", "serve", "--port", str(port), "--ops-port", str(ops_port), *FLAGS]
    fleet = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        _wait_until_ready(ops_port)
        with (
            tempfile.TemporaryDirectory() as folder,
            Prometheus(Path(folder), [ops_port]) as prometheus,
            BackgroundLoad(port),
        ):
            time.sleep(arguments.seconds)
            _draw(prometheus, ops_port, arguments.out, arguments.seconds)
    finally:
        fleet.terminate()
        fleet.wait(60)
    for path in sorted(arguments.out.glob("*.svg")):
        screenshot(path)


def _draw(prometheus: Prometheus, ops_port: int, out: Path, seconds: float) -> None:
    top = [sys.executable, "-m", "ops", "top", "--url", f"http://127.0.0.1:{ops_port}"]
    subprocess.run([*top, "--interval", "2", "--svg", str(out / "top.svg")], check=True)
    for path in sorted((OPS / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        (out / f"{path.stem}.svg").write_text(picture(board, prometheus, seconds))


def screenshot(path: Path) -> None:
    """A PNG beside the SVG, in its own size."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "make pictures installs it"
    head = path.read_text()[:500]
    size = re.search(r'width="(\d+)[^"]*" height="(\d+)|viewBox="0 0 (\d+)\S* (\d+)', head)
    assert size is not None, head
    width, height = (int(number) for number in size.groups() if number is not None)
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--screenshot={path.with_suffix('.png').absolute()}", f"--window-size={width},{height}",
            path.absolute().as_uri(),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def _wait_until_ready(ops_port: int) -> None:
    deadline_s = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{ops_port}/readyz", timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def picture(board: dict[str, Any], prometheus: Prometheus, seconds: float) -> str:
    """One dashboard as SVG."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * CELL_HEIGHT + 40
    parts: list[str] = []
    for panel in board["panels"]:
        parts += _panel(panel, [_series(target, prometheus, seconds) for target in panel["targets"]])
    return document(24 * CELL_WIDTH, height, board["title"], parts)


def _series(target: dict[str, Any], prometheus: Prometheus, seconds: float) -> list[tuple[str, Points]]:
    expr = target["expr"].replace("$__rate_interval", f"{WINDOW_S}s").replace("$instance", ".*")
    end_s = time.time()
    found = prometheus.query_range(expr, start_s=end_s - seconds, end_s=end_s, step_s=STEP_S)
    series = []
    for one in found:
        legend = target["legendFormat"]
        for name, value in one["metric"].items():
            legend = legend.replace(f"{{{{{name}}}}}", value)
        points = [(float(at), float(value)) for at, value in one["values"]]
        series.append((legend, [point for point in points if math.isfinite(point[1])]))
    return series


def _panel(panel: dict[str, Any], targets: list[list[tuple[str, Points]]]) -> list[str]:
    place = panel["gridPos"]
    x, y = place["x"] * CELL_WIDTH + GAP / 2, place["y"] * CELL_HEIGHT + 40
    width, height = place["w"] * CELL_WIDTH - GAP, place["h"] * CELL_HEIGHT - GAP
    series = [one for target in targets for one in target]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "stat":
        value = series[0][1][-1][1] if series and series[0][1] else math.nan
        head = f'<text x="{x + width / 2}" y="{y + 56}" font-size="24" text-anchor="middle" fill="{COLORS[0]}">'
        number = f"{head}{shown(value, unit)}</text>"
        return [*frame(panel["title"], x, y, width, height), number]
    return lines_panel(panel["title"], series, unit, x, y, width, height)


if __name__ == "__main__":
    main()
