"""schemathesis over /openapi.json of a sim fleet: no 5xx, and only statuses, content types and shapes that the document says.

    python -m loadtests.fuzz.schema [--examples 50] [--seed 1]

Needs the `fuzz` extra. schemathesis makes requests that the schemas allow and requests that they do not; that the server
takes more than the document says (an unknown field, a number as text) is no fault here, so those checks are off.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtests.chaos.fleet import SimFleet
from loadtests.fuzz.fuzz import FLAGS, crashes

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="per operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "fleet.log"
        with SimFleet(log, *FLAGS) as fleet:
            done = subprocess.run(
                [
                    Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{fleet.port}/openapi.json",
                    "--checks", CHECKS, "--max-examples", str(arguments.examples), "--seed", str(arguments.seed),
                    "--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--continue-on-failure",
                ],
                cwd=folder, check=False,
            )  # fmt: skip
        faults = crashes(log)
    print(*faults, sep="\n")
    sys.exit(done.returncode or bool(faults))


if __name__ == "__main__":
    main()
