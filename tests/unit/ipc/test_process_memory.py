"""Memory that goes back: code of a library, which still runs afterwards."""

import hashlib
from pathlib import Path

import pytest

from ipc.process_memory import give_back_code

LIBRARY = "libcrypto"


def resident_code_kb() -> int:
    """Of LIBRARY's executable pages, in this process."""
    total, is_code = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            is_code = fields[1] == "r-xp" and Path(fields[-1]).name.startswith(LIBRARY)
        elif is_code and fields[0] == "Rss:":
            total += int(fields[1])
    return total


def test_code_goes_back_and_still_runs() -> None:
    digest = hashlib.new("sha3_256", b"tokens").hexdigest()
    before = resident_code_kb()
    if not before:
        pytest.skip("hashlib is linked statically here")

    give_back_code(LIBRARY)

    assert resident_code_kb() < before / 4
    assert hashlib.new("sha3_256", b"tokens").hexdigest() == digest
