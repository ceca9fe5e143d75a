"""The link to an engine core, over real sockets: who is taken for the engine, and when it is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq

from engine_core.errors import CannotBoot
from engine_core.vllm import link as link_module
from engine_core.vllm.adapters import load_adapters
from engine_core.vllm.layouts import LAYOUTS
from engine_core.vllm.link import EngineGone, EngineLink, Facts
from engine_core.vllm.wire import ENGINE_CORE_DEAD, UTILITY, Wire
from tests.integration.fleet import environment

FACTS = {"vllm_version": "0.33.0", "max_model_len": 2048, "num_gpu_blocks": 100, "block_size": 16, "max_num_seqs": 8}
DEADLINE_S = 10.0
LAYOUT = LAYOUTS["0.33"]

Steps = Iterator[None]  # goes on with every turn of whoever waits


class Core:
    """vLLM's side, word by word. All have the same identity, as vLLM's have: who connects later has it."""

    def __init__(self, link: EngineLink, identity: bytes = b"\0\0") -> None:
        self._context = zmq.Context()
        self._identity, self._endpoint = identity, link.handshake_endpoint

    def _connected(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        connected = self._context.socket(kind)
        connected.setsockopt(zmq.IDENTITY, self._identity)
        connected.connect(endpoint)
        return connected

    @cached_property
    def handshake(self) -> "zmq.Socket[bytes]":
        return self._connected(zmq.DEALER, self._endpoint)

    def says(self, status: str) -> None:
        self.handshake.send(msgspec.msgpack.encode({"status": status, "local": False, "headless": True}))

    def hears(self) -> Steps:
        """Where to connect."""
        while not self.handshake.poll(0):
            yield
        self.addresses = msgspec.msgpack.decode(self.handshake.recv())["addresses"]

    def connects(self, payload: bytes = msgspec.msgpack.encode(FACTS)) -> None:
        self.input = self._connected(zmq.DEALER, self.addresses["inputs"][0])
        self.input.send(payload)
        self.output = self._connected(zmq.PUSH, self.addresses["outputs"][0])

    def starts(self) -> Steps:
        self.says("HELLO")
        yield from self.hears()
        self.connects()
        self.says("READY")
        self.handshake.close(linger=5000)
        yield

    def dies(self) -> None:
        self._context.destroy(linger=0)

    close = dies

    def leaves(self) -> None:
        """With what it has said."""
        self._context.destroy(linger=1000)

    def calls(self) -> list[Any]:
        """The next call of a method: client, number, name, arguments."""
        assert self.input.poll(1000)
        kind, frame = self.input.recv_multipart()
        assert kind == UTILITY
        call: list[Any] = msgspec.msgpack.decode(frame)
        return call

    def answers(self, call_id: int, failure: str | None) -> None:
        told = {"engine_index": 0, "outputs": [], "timestamp": 1.0, "utility_output": [call_id, failure, None]}
        self.output.send(msgspec.msgpack.encode([told.get(name) for name in LAYOUT.outputs]))


class Deadline:
    """Takes a step each time, and fails a test that hangs."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._end_s = steps, time.monotonic() + DEADLINE_S

    def __call__(self) -> None:
        assert time.monotonic() < self._end_s
        next(self._steps, None)


@pytest.fixture
def link() -> Iterator[EngineLink]:
    with closing(EngineLink("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")) as made:
        yield made


@pytest.fixture
def core(link: EngineLink) -> Iterator[Core]:
    with closing(Core(link)) as made:
        yield made


@pytest.fixture
def successor(link: EngineLink) -> Iterator[Core]:
    with closing(Core(link)) as made:
        yield made


def shake_hands(link: EngineLink, steps: Steps) -> Facts:
    return link.shake_hands(Deadline(steps))


def touch(endpoint: str) -> None:
    """What a port scan or a probe does."""
    address = urlsplit(endpoint)
    with socket.create_connection((address.hostname, address.port or 0), timeout=5):
        pass


def look_for(link: EngineLink, seconds: float) -> None:
    """Raises EngineGone."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        link.check()
        time.sleep(0.01)


def seconds_until_gone(link: EngineLink) -> float:
    started_s = time.monotonic()
    with pytest.raises(EngineGone):
        look_for(link, 5)
    return time.monotonic() - started_s


def test_an_engine_core_is_met_hears_and_is_heard(link: EngineLink, core: Core) -> None:
    facts = shake_hands(link, core.starts())
    link.abort(b"frame")
    core.output.send_multipart([b"first", b"second"])

    assert (facts.vllm_version, facts.max_num_seqs, facts.supports_lora) == ("0.33.0", 8, None)
    assert core.input.poll(1000) and core.input.recv_multipart() == [b"\x01", b"frame"]
    assert link.output.poll(1000) and [list(frames) for frames in link.receive()] == [[b"first", b"second"]]
    link.check()


@pytest.mark.parametrize(
    "frames",
    [
        [msgspec.msgpack.encode({"status": "BYE"})],
        [msgspec.msgpack.encode({"status": "HELLO"}), b"more"],
        [b"\xc1"],
        [msgspec.msgpack.encode(["HELLO"])],
    ],
)
def test_a_word_that_is_none_ends_the_handshake_with_a_reason(
    link: EngineLink, core: Core, frames: list[bytes]
) -> None:
    core.handshake.send_multipart(frames)

    with pytest.raises(EngineGone, match="word in the handshake is not understood"):
        shake_hands(link, iter(()))


def test_a_first_message_that_is_none_ends_the_handshake_with_a_reason(link: EngineLink, core: Core) -> None:
    def steps() -> Steps:
        core.says("HELLO")
        yield from core.hears()
        core.connects(b"\xc1")

    with pytest.raises(EngineGone, match="first message is not understood"):
        shake_hands(link, steps())


def test_who_is_ready_for_an_earlier_bridge_is_not_taken_for_the_engine(
    link: EngineLink, core: Core, successor: Core, caplog: pytest.LogCaptureFixture
) -> None:
    def steps() -> Steps:
        core.says("READY")
        while not caplog.records:
            yield
        core.dies()
        yield from successor.starts()

    assert shake_hands(link, steps()).vllm_version == "0.33.0"
    assert "start it again" in caplog.text


def test_connections_that_come_and_go_are_nothing_to_the_engine(link: EngineLink, core: Core) -> None:
    def steps() -> Steps:
        core.says("HELLO")
        yield from core.hears()
        touch(core.addresses["inputs"][0])
        core.connects()
        touch(core.addresses["inputs"][0])
        core.says("READY")

    shake_hands(link, steps())
    with closing(Core(link, b"stranger")) as stranger:
        stranger.addresses = core.addresses
        stranger.connects()
        for _ in range(5):
            touch(core.addresses["inputs"][0])

        look_for(link, 0.5)
    look_for(link, 0.5)


def test_the_end_of_the_engines_own_connection_is_noticed(link: EngineLink, core: Core) -> None:
    shake_hands(link, core.starts())

    core.dies()

    assert seconds_until_gone(link) < 1


def test_a_stranger_that_gets_the_descriptor_of_the_engine_does_not_hide_its_end(link: EngineLink, core: Core) -> None:
    shake_hands(link, core.starts())
    endpoint = core.addresses["inputs"][0]
    core.dies()
    with socket.create_connection(("127.0.0.1", urlsplit(endpoint).port or 0)):
        time.sleep(0.1)  # until ZMQ has accepted it

        assert seconds_until_gone(link) < 1


def test_an_engine_core_that_takes_the_place_of_the_served_one_ends_it(
    link: EngineLink, core: Core, successor: Core
) -> None:
    """Both were told where to connect; which requests ran where nobody can say any more."""

    def steps() -> Steps:
        successor.says("HELLO")
        yield from successor.hears()
        yield from core.starts()

    shake_hands(link, steps())
    link.check()

    successor.connects()

    assert seconds_until_gone(link) < 1


def test_a_frozen_engine_core_counts_as_gone_when_its_zmq_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose host is lost: nothing tells that its connection ended."""
    monkeypatch.setattr(link_module, "PING_MS", 100)
    monkeypatch.setattr(link_module, "SILENCE_MS", 500)
    (tmp_path / "ids.json").write_text(json.dumps([1]))
    with closing(EngineLink("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")) as link:
        command = [
            sys.executable, "-m", "loadtests.peers.vllm_mock_engine", "--handshake", link.handshake_endpoint,
            "--token-ids", str(tmp_path / "ids.json"),
        ]  # fmt: skip
        process = subprocess.Popen(command, env=environment())
        try:
            shake_hands(link, iter(()))
            look_for(link, 1)
            os.kill(process.pid, signal.SIGSTOP)

            assert 0.3 < seconds_until_gone(link) < 3
        finally:
            process.kill()
            process.wait()


def test_a_core_that_dies_while_it_loads_leaves_its_place_to_the_next(
    link: EngineLink, core: Core, successor: Core
) -> None:
    def steps() -> Steps:
        core.says("HELLO")
        yield from core.hears()
        core.dies()
        yield from successor.starts()

    shake_hands(link, steps())
    link.abort(b"frame")

    assert successor.input.poll(1000)
    link.check()


@pytest.mark.parametrize("says_ready", [False, True])
def test_a_core_that_dies_when_it_has_loaded_leaves_its_place_to_the_next(
    link: EngineLink, core: Core, successor: Core, says_ready: bool
) -> None:
    def steps() -> Steps:
        core.says("HELLO")
        yield from core.hears()
        if says_ready:
            core.says("READY")
        else:
            core.connects()
        yield
        core.leaves()
        yield from successor.starts()

    shake_hands(link, steps())
    link.abort(b"frame")

    assert successor.input.poll(1000)
    link.check()


def test_the_hello_of_a_core_that_comes_while_another_is_served_waits_for_the_next_bridge() -> None:
    endpoints = ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    first = EngineLink("tcp://127.0.0.1:*", *endpoints)
    with closing(Core(first)) as core, closing(Core(first)) as successor:
        with closing(first):
            shake_hands(first, core.starts())
            steps = successor.starts()
            next(steps)
            time.sleep(0.3)  # it tries to connect meanwhile
        with closing(EngineLink(first.handshake_endpoint, *endpoints)) as link:
            assert shake_hands(link, steps).vllm_version == "0.33.0"


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(link: EngineLink, steps: Steps, facts: Facts) -> list[tuple[str, int]]:
    loras = load_adapters({"poems": "/poems", "prose": "/prose"}, facts, link, Wire(LAYOUT), Deadline(steps))
    return [(lora.name, lora.number) for lora in loras.values()]


def test_adapters_are_loaded_one_by_one(link: EngineLink, core: Core) -> None:
    facts = shake_hands(link, core.starts())
    calls = []

    def steps() -> Steps:
        for _ in range(2):
            calls.append(core.calls())
            core.answers(calls[-1][1], None)
            yield

    assert load(link, steps(), facts) == [("poems", 1), ("prose", 2)]
    assert [(method, arguments[0][2]) for _, _, method, arguments in calls] == [
        ("add_lora", "/poems"),
        ("add_lora", "/prose"),
    ]


def test_an_adapter_that_vllm_does_not_take_stops_the_start_with_its_reason(link: EngineLink, core: Core) -> None:
    facts = shake_hands(link, core.starts())

    def steps() -> Steps:
        core.answers(core.calls()[1], "rank too high")
        yield

    with pytest.raises(CannotBoot, match="poems=/poems: rank too high"):
        load(link, steps(), facts)


@pytest.mark.parametrize("says_it", [False, True])
def test_a_core_that_dies_under_its_adapters_is_gone(link: EngineLink, core: Core, says_it: bool) -> None:
    facts = shake_hands(link, core.starts())

    def steps() -> Steps:
        core.calls()
        if says_it:
            core.output.send(ENGINE_CORE_DEAD)
        else:
            core.dies()
        yield

    with pytest.raises(EngineGone, match="died" if says_it else "closed its connection"):
        load(link, steps(), facts)
