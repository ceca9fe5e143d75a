"""The part of Grafana's dashboard model that is used here (schema version 39), as plain data."""

from typing import Any, Literal

from msgspec import Struct

WIDTH, ROW_HEIGHT = 24, 8
SELECTOR = 'instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Unit = Literal["short", "s", "reqps", "percentunit", "bytes", "ops", "none"]


class Target(Struct, frozen=True):
    expr: str
    legend: str


class Panel(Struct, frozen=True):
    title: str
    description: str
    targets: tuple[Target, ...]
    unit: Unit = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    max_value: float | None = None


class Dashboard(Struct, frozen=True):
    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]

    def model(self) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["tokenfleet"],
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "templating": {"list": [_datasource_variable(), _instance_variable()]},
            "panels": self._placed(),
        }

    def _placed(self) -> list[dict[str, Any]]:
        placed = []
        x = y = row_height = 0
        for number, panel in enumerate(self.panels, start=1):
            if x + panel.width > WIDTH:
                x, y = 0, y + row_height
                row_height = 0
            height = 4 if panel.kind == "stat" else ROW_HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            placed.append(_panel_model(panel, number, place))
            x, row_height = x + panel.width, max(row_height, height)
        return placed


def _panel_model(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.max_value is not None:
        defaults["max"] = panel.max_value
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never", "spanNulls": True}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + position), "expr": target.expr, "legendFormat": target.legend, "datasource": DATASOURCE}
            for position, target in enumerate(panel.targets)
        ],
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _instance_variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "type": "query",
        "label": "Fleet",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(tokenfleet:processes, instance)", "refId": "instance"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
