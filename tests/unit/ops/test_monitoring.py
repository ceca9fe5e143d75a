"""Dashboards, alerts and runbooks fit together and to what is exported. `make monitoring-test` asks Prometheus itself."""

import re
from pathlib import Path

import pytest

from ipc.exposition import Exposition
from loadtests.micro.scrape import Pages
from ops.monitoring.__main__ import OPS, files
from ops.monitoring.alerts import ALERTS, Alert
from ops.monitoring.dashboards import DASHBOARDS
from ops.monitoring.objectives import OBJECTIVES, Objective

METRIC = re.compile(r"\b(?:vllm|tokenfleet):\w+|\bhttp_\w+")


@pytest.fixture(scope="module")
def text() -> str:
    pages = Pages(num_workers=2, num_engines=2)
    return Exposition([segment.view for segment in pages.segments]).text().decode()


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_tree_has_what_would_be_generated(path: Path) -> None:
    assert path.read_text() == files()[path], "run `make monitoring`"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_asks_for_metrics_there_are_and_has_a_page(text: str, alert: Alert) -> None:
    runbook = (OPS / "runbooks" / f"{alert.runbook}.md").read_text()

    assert all(re.search(rf"^{name}[{{ ]", text, re.MULTILINE) for name in METRIC.findall(alert.expr))
    assert alert.name in runbook
    assert alert.fires and alert.quiet


def test_the_comparison_with_other_charts_counts_them() -> None:
    text = (OPS.parent / "docs" / "charts_compared.md").read_text()

    assert f"\n| alerts | {len(ALERTS)}, each" in text
    assert f"\n| dashboards | {len(DASHBOARDS)}, every" in text


def test_there_is_no_page_without_an_alert() -> None:
    assert {path.stem for path in (OPS / "runbooks").glob("*.md")} == {alert.runbook for alert in ALERTS}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_the_bound_of_an_objective_is_a_bucket(text: str, objective: Objective) -> None:
    """Any other value would match no series, and nothing would ever be late."""
    assert re.search(rf'^{objective.histogram}_bucket.*le="{objective.bound_s}"', text, re.MULTILINE)


def test_panels_do_not_overlap() -> None:
    for board in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in board.model()["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not cells & taken
            taken |= cells
