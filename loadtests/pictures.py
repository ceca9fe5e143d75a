"""README's pictures of the dashboards and of `tokenfleet top`: a real fleet under load, seen by a real Prometheus.

    python -m loadtests.pictures --out ops/pictures [--seconds 60]     (`make pictures`; needs `make ops-tools`)

The dashboards are drawn from the generated JSON, query by query, as plain SVG: there is no Grafana in it.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadtests.background_load import BackgroundLoad
from loadtests.peers.server import free_port
from loadtests.prometheus import Prometheus
from ops.monitoring.__main__ import OPS

FLAGS = ("--engine", "sim", "--engines", "2", "--workers", "2", "--sim-step-ms", "10", "--max-num-seqs", "8")
WINDOW_S, STEP_S = 10, 1.0
CELL_WIDTH, CELL_HEIGHT, GAP = 44, 22, 8  # pixels of one cell of Grafana's grid
COLORS = ("#2a78b8", "#d97b29", "#3f9142", "#b8443c", "#7d5ba6", "#8a6d3b", "#c45a9a", "#5d6b78")
BACKGROUND, FRAME, TEXT, FAINT = "#ffffff", "#d8dee4", "#24292f", "#6e7781"

Points = list[tuple[float, float]]


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
            _take(prometheus, ops_port, arguments.out, arguments.seconds)
    finally:
        fleet.terminate()
        fleet.wait(60)


def _take(prometheus: Prometheus, ops_port: int, out: Path, seconds: float) -> None:
    top = [sys.executable, "-m", "ops", "top", "--url", f"http://127.0.0.1:{ops_port}"]
    subprocess.run([*top, "--interval", "2", "--svg", str(out / "top.svg")], check=True)
    for path in sorted((OPS / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        (out / f"{path.stem}.svg").write_text(picture(board, prometheus, seconds))


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
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{24 * CELL_WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>',
        f'<text x="{GAP}" y="26" font-size="18" fill="{TEXT}">{escape(board["title"])}</text>',
    ]
    for panel in board["panels"]:
        parts += _panel(panel, [_series(target, prometheus, seconds) for target in panel["targets"]])
    return "\n".join([*parts, "</svg>", ""])


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
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="{FRAME}"/>',
        f'<text x="{x + 8}" y="{y + 17}" font-size="12" fill="{TEXT}">{escape(panel["title"])}</text>',
    ]
    if panel["type"] == "stat":
        value = series[0][1][-1][1] if series and series[0][1] else math.nan
        head = f'<text x="{x + width / 2}" y="{y + 56}" font-size="24" text-anchor="middle" fill="{COLORS[0]}">'
        return [*parts, f"{head}{_shown(value, unit)}</text>"]
    return [
        *parts,
        *_lines(series, unit, x + 52, y + 28, width - 62, height - 64),
        *_legend(series, x + 8, y + height - 9),
    ]


def _lines(
    series: Sequence[tuple[str, Points]], unit: str, x: float, y: float, width: float, height: float
) -> list[str]:
    points = [point for _, line in series for point in line]
    if not points:
        return []
    start_s, end_s = min(at for at, _ in points), max(at for at, _ in points)
    top = max(value for _, value in points) or 1.0
    parts = []
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        parts.append(f'<line x1="{x}" x2="{x + width}" y1="{level:.1f}" y2="{level:.1f}" stroke="{FRAME}"/>')
        parts.append(
            f'<text x="{x - 5}" y="{level + 4:.1f}" font-size="10" text-anchor="end" fill="{FAINT}">'
            f"{_shown(top * share, unit)}</text>"
        )
    for number, (_, line) in enumerate(series):
        places = " ".join(
            f"{x + width * (at - start_s) / max(end_s - start_s, 1):.1f},{y + height * (1 - max(value, 0) / top):.1f}"
            for at, value in line
        )
        parts.append(f'<polyline points="{places}" fill="none" stroke="{COLORS[number % len(COLORS)]}"/>')
    return parts


def _legend(series: Sequence[tuple[str, Points]], x: float, y: float) -> list[str]:
    names = [
        f'<tspan fill="{COLORS[number % len(COLORS)]}">&#8212; {escape(name)} </tspan>'
        for number, (name, _) in enumerate(series[:8])
    ]
    return [f'<text x="{x}" y="{y}" font-size="10" fill="{TEXT}">{"".join(names)}</text>']


def _shown(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g} {suffix}"
    return f"{value:.3g}"


if __name__ == "__main__":
    main()
