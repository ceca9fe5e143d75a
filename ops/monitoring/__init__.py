"""Dashboards and alerts as code: `python -m ops.monitoring` writes ops/dashboards/ and ops/alerts/, `--check` compares."""
