"""`tokenfleet check`: every setting, its value and where it came from."""

import sys

from rich.console import Console
from rich.table import Table

from config.fields import FIELDS
from config.load import SECRET_FIELDS, Configuration
from engine_core.model_source import ModelSource


def rows(configuration: Configuration) -> list[tuple[str, str, str, str]]:
    """group, name, value, origin; secrets are counted, not shown."""
    settings = configuration.settings
    found = []
    for field in FIELDS:
        value = getattr(getattr(settings, field.group), field.name)
        shown = f"({len(value)} hidden)" if field.name in SECRET_FIELDS else _shown(value)
        found.append((field.group, field.name, shown, configuration.origins[field.name]))
    return found


def show(configuration: Configuration, source: ModelSource) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if sys.stdout.isatty():
        table = Table("group", "setting", "value", "origin")
        for row in rows(configuration):
            table.add_row(*row)
        Console().print(table)
    else:
        for row in rows(configuration):
            print(*row, sep="\t")
    state = "ready" if source.is_ready else f"will be converted from {source.gguf} at the first start"
    print(f"model {source.default_name}: {source.path} ({state})")


def _shown(value: object) -> str:
    if value is None:
        return "(derived)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return str(value)
