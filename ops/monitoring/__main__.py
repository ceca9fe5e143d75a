"""Write dashboards and alerts: `python -m ops.monitoring`. With `--check`: fail when what is there is not what would be."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ops.monitoring.alerts import ALERTS
from ops.monitoring.dashboards import DASHBOARDS

OPS = Path(__file__).parents[1]
HEADER = "# Written by `python -m ops.monitoring` from ops/monitoring/alerts.py.\n"
RULES = "tokenfleet.rules.yaml"


def files() -> dict[Path, str]:
    """Every generated file and its content, under the folder ops."""
    rules = {"groups": [{"name": "tokenfleet", "rules": [alert.rule() for alert in ALERTS]}]}
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tokenfleet", "labels": {"app.kubernetes.io/name": "tokenfleet"}},
        "spec": rules,
    }
    tests = {
        "rule_files": [RULES],
        "evaluation_interval": "1m",
        "tests": [test for alert in ALERTS for test in alert.tests()],
    }
    alerts = {RULES: rules, "prometheusrule.yaml": resource, "tokenfleet.rules.test.yaml": tests}
    dashboards = {
        OPS / "dashboards" / f"{board.uid}.json": json.dumps(board.model(), indent=1) + "\n" for board in DASHBOARDS
    }
    return {**{OPS / "alerts" / name: HEADER + yaml(content) for name, content in alerts.items()}, **dashboards}


def yaml(content: Any, indent: int = 0) -> str:  # Any: JSON
    """Block style for maps and lists, JSON for the rest, which YAML includes."""
    pad = " " * indent
    if isinstance(content, dict) and content:
        lines = []
        for key, value in content.items():
            is_block = isinstance(value, dict | list) and value
            lines.append(f"{pad}{key}:\n{yaml(value, indent + 2)}" if is_block else f"{pad}{key}: {yaml(value)}\n")
        return "".join(lines)
    if isinstance(content, list) and content:
        return "".join(f"{pad}- {yaml(item, indent + 2).strip()}\n" for item in content)
    return json.dumps(content, ensure_ascii=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.monitoring", description=__doc__)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    wrong = [path for path, text in files().items() if not path.is_file() or path.read_text() != text]
    for path in wrong:
        if is_check:
            print(f"{path} is not what `python -m ops.monitoring` writes", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files()[path])
    return 1 if is_check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
