"""How flash-attn-4 is imported. The package itself needs a Hopper GPU: here is one that notes what it saw."""

import sys
from pathlib import Path

import pytest

from engine_core.attention.fa4 import CACHE_SWITCH, Fa4


@pytest.mark.parametrize(("asked", "seen"), [(None, "1"), ("0", "0")])
def test_compiled_kernels_are_kept_on_disk_unless_the_operator_says_no(
    asked: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "flash_attn" / "cute"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interface.py").write_text(f"import os\nseen = os.environ.get({CACHE_SWITCH!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv(CACHE_SWITCH, asked or "")
    if asked is None:
        monkeypatch.delenv(CACHE_SWITCH)

    attention = Fa4()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]

    assert attention._interface.seen == seen
