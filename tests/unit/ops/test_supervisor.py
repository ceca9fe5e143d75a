"""How long the supervisor bears with silence."""

from config.settings import OpsSettings
from ipc.fleet_page import State
from ops.supervisor import silence_timeout_s

OPS = OpsSettings(heartbeat_timeout_s=2.0, engine_step_timeout_s=40.0, engine_start_timeout_s=900.0)


def test_only_an_engine_may_take_long_to_start() -> None:
    assert silence_timeout_s(OPS, State.STARTING, is_engine=True) == 900.0
    assert silence_timeout_s(OPS, State.STARTING, is_engine=False) == 30.0


def test_who_works_beats_and_an_engine_once_per_step() -> None:
    for state in (State.READY, State.DRAINING):
        assert silence_timeout_s(OPS, state, is_engine=False) == 2.0
        assert silence_timeout_s(OPS, state, is_engine=True) == 40.0
