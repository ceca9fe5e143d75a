"""Writes what the chart takes from elsewhere: the table in its README from values.yaml, the schema of `config` from the
server's own settings, the dashboards and alerts from ops/. `--check` writes nothing and fails when something is stale.

    python -m charts.generate [--check]
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from config.settings import Settings

CHART = Path(__file__).parent / "tokenfleet"
TABLE_START, TABLE_END = "<!-- values: start -->", "<!-- values: end -->"
CHART_OWNS = frozenset(
    {
        "model",
        "cache_dir",
        "host",
        "port",
        "uds",
        "api_key",
        "api_key_file",
        "ssl_keyfile",
        "ssl_certfile",
        "ops_host",
        "ops_port",
        "drain_timeout_s",
        "pre_stop_s",
    }
)  # settings that follow from values of their own
_KEY = re.compile(r"^( *)([A-Za-z]\w*):(?: (.*))?$")


class Value(Struct, frozen=True):
    """One line of the README's table."""

    path: str
    default: str
    description: str


def values_of(text: str) -> Iterator[Value]:
    """The described or plain leaves of a values.yaml, in its order. Two spaces an indent, one key a line."""
    path: list[str] = []
    description = ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.lstrip().startswith("# -- "):
            description = line.lstrip()[5:]
            continue
        key = _KEY.match(line)
        if key is None:
            continue
        depth = len(key[1]) // 2
        path[depth:] = [key[2]]
        is_parent = key[3] is None and any(_KEY.match(below) for below in _block_below(lines[number + 1 :], depth))
        if description or not is_parent:
            yield Value(".".join(path), key[3] or "", description)
        description = ""


def _block_below(lines: list[str], depth: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and not line.startswith("  " * (depth + 1)):
            return
        yield line


def readme(current: str, values: str) -> str:
    rows = [f"| `{v.path}` | {f'`{v.default}`' if v.default else ''} | {v.description} |" for v in values_of(values)]
    table = "\n".join([TABLE_START, "| value | default | |", "|---|---|---|", *rows, TABLE_END])
    before, _, rest = current.partition(TABLE_START)
    return before + table + rest.partition(TABLE_END)[2]


def values_schema(current: str) -> str:
    schema = json.loads(current)
    schema["$defs"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


def config_schema() -> dict[str, Any]:  # Any: JSON Schema
    """A table per group of settings, with the server's types and bounds; what the chart owns is not there."""
    groups = {}
    for group in msgspec.structs.fields(Settings):
        _, components = msgspec.json.schema_components([group.type])
        (table,) = components.values()
        properties = {
            name: {key: value for key, value in field.items() if key != "default"}
            for name, field in table["properties"].items()
            if name not in CHART_OWNS
        }
        groups[group.name] = {"type": "object", "additionalProperties": False, "properties": properties}
    return {"type": "object", "additionalProperties": False, "properties": groups}


def generated_files() -> dict[Path, str]:
    """Path and what it should hold."""
    readme_path, schema_path = CHART / "README.md", CHART / "values.schema.json"
    files = {
        readme_path: readme(readme_path.read_text(), (CHART / "values.yaml").read_text()),
        schema_path: values_schema(schema_path.read_text()),
    }
    ops = CHART.parents[1] / "ops"
    for folder, pattern in (("dashboards", "*.json"), ("alerts", "*.rules.yaml")):
        for source in sorted((ops / folder).glob(pattern)):
            files[CHART / "files" / folder / source.name] = source.read_text()
    return files


def stale_files() -> list[Path]:
    """Generated files that differ, and copies whose source is gone."""
    wanted = generated_files()
    copies = [*(CHART / "files" / "dashboards").glob("*"), *(CHART / "files" / "alerts").glob("*")]
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return [*differing, *(path for path in copies if path not in wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something is stale")
    stale = stale_files()
    if parser.parse_args().check:
        for path in stale:
            print(f"{path} is stale: python -m charts.generate", file=sys.stderr)
        return 1 if stale else 0
    wanted = generated_files()
    for path in stale:
        if path not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
