"""The unit of systemd that docs/operators.md advises."""

from configparser import ConfigParser
from pathlib import Path

from config.settings import OpsSettings
from ops import exit_codes

PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
PRE_STOP_S = 15  # what the page reckons with; the default is none
STOP_S = 31  # of engines and broker after the drain, a vLLM among them


def test_a_unit_of_systemd_lets_a_fleet_drain_and_gives_up_on_a_wrong_configuration() -> None:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation has it
    parser.read_string(PAGE.read_text().partition("```ini\n")[2].partition("```")[0])
    service = parser["Service"]

    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > PRE_STOP_S + OpsSettings().drain_timeout_s + STOP_S
    assert service["Restart"] == "on-failure"
    assert int(service["RestartPreventExitStatus"]) == exit_codes.MISUSED
