"""Reloading: what workers and supervisor read may change, everything else is named and refused."""

import pytest
from msgspec import structs

from config.load import ConfigError
from config.reload import reloaded
from config.settings import EngineSettings, OpsSettings, ServerSettings, Settings

OLD = Settings()


def test_settings_of_workers_and_supervisor_are_taken_up() -> None:
    server = structs.replace(OLD.server, api_key=("new",), max_n=3)
    new = structs.replace(OLD, server=server, ops=OpsSettings(drain_timeout_s=5.0))

    assert reloaded(OLD, new) == new


def test_every_change_that_needs_a_restart_is_named() -> None:
    server = ServerSettings(port=9, response_store_bytes=1)
    new = Settings(engine=EngineSettings(max_num_seqs=7), server=server, ops=OpsSettings(ops_port=10))

    with pytest.raises(ConfigError) as caught:
        reloaded(OLD, new)

    assert caught.value.lines == [
        f"{flag} cannot change while the fleet runs"
        for flag in ("--port", "--response-store-bytes", "--max-num-seqs", "--ops-port")
    ]
