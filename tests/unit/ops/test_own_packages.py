import subprocess
import sys
from pathlib import Path

import pytest

from ops.own_packages import EXIT_MISUSED, PACKAGES, ROOT


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "ops"])
def test_a_foreign_package_in_front_of_ours_is_one_line(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import ops.cli"

    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == EXIT_MISUSED
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / package) in done.stderr and str(ROOT / package) in done.stderr
