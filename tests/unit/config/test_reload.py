"""Reloading: what workers and supervisor read may change, everything else is named and refused."""

import pytest
from msgspec import structs

from config.load import ConfigError
from config.reload import reloaded
from config.settings import EngineSettings, OpsSettings, ServerSettings, Settings

OLD = Settings()


def test_settings_of_workers_and_supervisor_are_taken_up() -> None:
    server = structs.replace(OLD.server, api_key=("new",), max_n=3)
    ops = OpsSettings(drain_timeout_s=5.0, pre_stop_s=1.0, engine_start_timeout_s=9.0, log_level="debug")
    new = structs.replace(OLD, server=server, ops=ops)

    assert reloaded(OLD, new) == new


def test_every_change_that_needs_a_restart_is_named() -> None:
    server = ServerSettings(port=9, response_store_bytes=1)
    ops = OpsSettings(
        ops_port=10, heartbeat_timeout_s=0.9, engine_step_timeout_s=1.0, restart_backoff_max_s=1.0
    )  # built into beats, probes, metrics
    new = Settings(engine=EngineSettings(max_num_seqs=7), server=server, ops=ops)

    with pytest.raises(ConfigError) as caught:
        reloaded(OLD, new)

    assert caught.value.lines == [
        f"{flag} cannot change while the fleet runs"
        for flag in (
            "--port",
            "--response-store-bytes",
            "--max-num-seqs",
            "--ops-port",
            "--heartbeat-timeout-s",
            "--engine-step-timeout-s",
            "--restart-backoff-max-s",
        )
    ]
