"""What the role of an engine vllm says of an engine that is not quite what the fleet was promised."""

import logging

import pytest

from engine_core.vllm.process import warn_of_other_max_num_seqs


@pytest.mark.parametrize(("vllms", "follows"), [(64, "too short"), (512, "too long"), (256, None), (None, None)])
def test_another_number_of_sequences_than_the_brokers_is_told_with_what_follows(
    caplog: pytest.LogCaptureFixture, vllms: int | None, follows: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_other_max_num_seqs(256, vllms)

    told = [(record.__dict__["vllm"], record.__dict__["fleet"], record.__dict__["effect"]) for record in caplog.records]
    assert [(vllm, fleet) for vllm, fleet, _ in told] == ([(vllms, 256)] if follows else [])
    assert all(follows in effect for _, _, effect in told if follows)
