"""Our packages have plain names: another distribution's `config` in front of ours would be imported, silently, by half.

`ops.cli` calls this before it imports any of them. Standard library only.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("apiserver", "engine_core", "ipc", "config", "ops")
EXIT_MISUSED = 2  # ops.exit_codes.MISUSED; a module of ours, so not imported here


def refuse_shadowed_packages() -> None:
    """Ends the process with one line when a package of ours would be found anywhere but beside this one."""
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
        if found != ROOT / name:
            print(
                f"tokenfleet: package {name} is found in {found}, not in {ROOT / name}: remove that one, or run in an "
                "environment of tokenfleet's own",
                file=sys.stderr,
            )
            raise SystemExit(EXIT_MISUSED)
