"""`tokenfleet check`: every setting, its value and where it came from."""

import sys

from rich.console import Console
from rich.table import Table

from config.load import Configuration
from config.shown import shown_settings
from engine_core.model_source import ModelSource


def show(configuration: Configuration, source: ModelSource) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    rows = [(shown.group, shown.name, shown.value, shown.origin) for shown in shown_settings(configuration)]
    if sys.stdout.isatty():
        table = Table("group", "setting", "value", "origin")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        for row in rows:
            print(*row, sep="\t")
    state = "ready" if source.is_ready else f"will be converted from {source.gguf} at the first start"
    print(f"model {source.default_name}: {source.path} ({state})")
