"""A mock of vLLM's V1 engine core: joins a front end over vLLM's own ZMQ protocol and answers scripted token ids.

What the `sim` engine is to tokenfleet, this is to vLLM's front ends: every request gets max_tokens valid ids, one per
step, all running requests in one EngineCoreOutputs message per step and client. Written from the wire format alone
(0.33, positional msgpack, in which vLLM writes fields that have their defaults too; older versions lack some of them):
handshake HELLO, INIT, READY on a DEALER; requests in as [type byte, msgpack array]; outputs out over PUSH.

    python -m loadtests.peers.vllm_mock_engine --handshake tcp://127.0.0.1:29550 --step-ms 20 --token-ids ids.json

With `--echo` the ids are those of the request's own prompt, from its first on.
"""

import argparse
import json
import random
import signal
import struct
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import zmq
from msgspec import Raw, Struct

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
FINISH_LENGTH, FINISH_ABORT = 1, 2
KV_TRANSFER_PARAMS = 8  # of a request are given back with its last token
NUM_SCRIPTED_TOKENS = 1 << 16


class Places(NamedTuple):
    """How long a version's arrays are, and where in them stands what moved."""

    output_fields: int
    prefill_stats: int
    num_nans: int  # the field whose default is a number
    outputs_fields: int
    ready_lacks: frozenset[str] = frozenset()


PLACES = {
    "0.24": Places(13, 10, 12, 8, ready_lacks=frozenset({"supports_lora", "max_loras", "max_num_seqs", "instance_id"})),
    "0.32": Places(18, 11, 13, 9),
    "0.33": Places(20, 11, 13, 9),
}

READY_RESPONSE: dict[str, Any] = {  # Any: the protocol's own mixture
    "max_model_len": 131072, "num_gpu_blocks": 65536, "block_size": 16, "dp_stats_address": None, "dtype": "bfloat16",
    "world_size": 1, "data_parallel_size": 1, "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1, "decode_context_parallel_size": 1, "data_parallel_rank": 0, "max_num_seqs": 4096,
    "max_num_batched_tokens": 8192, "instance_id": "mock", "supports_lora": True, "max_loras": 4,
    "mamba_block_size": None, "kv_cache_size_tokens": 65536 * 16, "kv_cache_max_concurrency": 8.0,
    "kv_events_config": None, "weight_transfer_backend": None, "enable_sleep_mode": False,
    "supports_draft_weight_updates": False, "effective_attention_block_size": 16, "coord_store_port": 0,
    "coordinator_input_address": None, "coordinator_output_address": None,
}  # fmt: skip

UTILITY_RESULTS = {
    "get_supported_tasks": ["generate"], "is_sleeping": False, "is_scheduler_paused": False, "reset_prefix_cache": True,
    "add_lora": True, "wake_up": True,
}  # fmt: skip


class Sampling(Struct):
    max_tokens: int | None = 16
    extra_args: dict[str, Any] | None = None  # Any: whatever a client says to a KV connector


class AddRequest(Struct, array_like=True):
    """The positions of EngineCoreRequest up to the last one needed here; later ones are ignored."""

    request_id: str
    prompt_token_ids: Raw
    mm_features: Raw
    sampling_params: Sampling | None = None
    pooling_params: Raw = Raw(b"\xc0")
    arrival_time: Raw = Raw(b"\xc0")
    lora_request: Raw = Raw(b"\xc0")
    cache_salt: Raw = Raw(b"\xc0")
    data_parallel_rank: Raw = Raw(b"\xc0")
    prompt_embeds: Raw = Raw(b"\xc0")
    prompt_is_token_ids: Raw = Raw(b"\xc0")
    client_index: int = 0


class Running(Struct):
    """One request: its encoded id behind an array header, so that a token and what never changes only need appending."""

    prefix: bytes
    client: int
    num_prompt_tokens: int
    ends_at_step: int
    is_fresh: bool = True
    echo: list[int] = []
    """Ids still to be given, the next one last; then scripted ones."""
    extra_args: dict[str, Any] | None = None  # Any: see Sampling


_encode = msgspec.msgpack.encode
_add_decoder = msgspec.msgpack.Decoder(AddRequest)


class MockEngine:
    """The engine's state and its two halves: `take_in` and `step`."""

    def __init__(self, token_ids: Iterable[int], seed: int, version: str, *, is_echo: bool = False) -> None:
        self._is_echo, self._version = is_echo, version
        self._places = PLACES.get(version[:4], PLACES["0.33"])
        self._rest = b"".join(map(_encode, self._output([])[2:]))
        rng = random.Random(seed)
        ids = list(token_ids)
        self._scripted = [b"\x91" + _encode(rng.choice(ids)) for _ in range(NUM_SCRIPTED_TOKENS)]
        self._position = 0
        self.running: dict[str, Running] = {}
        self.step_number = 0
        self.counts = {"requests": 0, "tokens": 0, "messages": 0, "aborts": 0, "calls": 0}

    def connect(self, handshake_endpoint: str, timeout_s: float) -> None:
        """HELLO, INIT, READY. Raises TimeoutError when no front end answers."""
        self._context = zmq.Context(1)
        identity = (0).to_bytes(2, "little")
        self._handshake = self._context.socket(zmq.DEALER)
        self._handshake.setsockopt(zmq.IDENTITY, identity)
        self._handshake.connect(handshake_endpoint)
        self._handshake.send(_encode({"status": "HELLO", "local": False, "headless": True}))
        if not self._handshake.poll(int(timeout_s * 1000)):
            raise TimeoutError("no front end answered the handshake")
        addresses = msgspec.msgpack.decode(self._handshake.recv())["addresses"]
        self.inputs = [self._connected(zmq.DEALER, endpoint, identity) for endpoint in addresses["inputs"]]
        told = {key: value for key, value in READY_RESPONSE.items() if key not in self._places.ready_lacks}
        for socket in self.inputs:
            socket.send(_encode({**told, "vllm_version": self._version}))
        self.outputs = [self._connected(zmq.PUSH, endpoint, identity) for endpoint in addresses["outputs"]]
        self._handshake.send(_encode({"status": "READY", "local": False, "headless": True}))

    def _connected(self, kind: int, endpoint: str, identity: bytes) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.SNDHWM, 64 if kind == zmq.PUSH else 0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(endpoint)
        return socket

    def take_in(self) -> None:
        """Everything that has arrived on the input sockets."""
        for socket in self.inputs:
            while True:
                try:
                    kind, *frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if kind == ADD:
                    self._add(_add_decoder.decode(frames[0]))
                elif kind == ABORT:
                    self._abort(msgspec.msgpack.decode(frames[0]))
                elif kind == UTILITY:
                    self.counts["calls"] += 1
                    client, call_id, method, _ = msgspec.msgpack.decode(frames[0])
                    result = [call_id, None, [None, UTILITY_RESULTS.get(method)]]
                    self.outputs[client].send(self._outputs([], utility=result))

    def _add(self, request: AddRequest) -> None:
        max_tokens = (request.sampling_params.max_tokens if request.sampling_params else 1) or 16
        self.running[request.request_id] = Running(
            prefix=_array_header(self._places.output_fields) + _encode(request.request_id),
            client=request.client_index,
            num_prompt_tokens=_array_length(request.prompt_token_ids),
            ends_at_step=self.step_number + max(1, max_tokens),
            extra_args=request.sampling_params.extra_args if request.sampling_params else None,
            echo=msgspec.msgpack.decode(request.prompt_token_ids)[::-1] if self._is_echo else [],
        )
        self.counts["requests"] += 1

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            aborted = self.running.pop(request_id, None)
            if aborted is not None:
                self.counts["aborts"] += 1
                output = self._output([request_id, [], None, None, None, FINISH_ABORT])
                self.outputs[aborted.client].send(self._outputs([_encode(output)], finished=[request_id]))

    def step(self) -> None:
        """One token for every running request, one message per client."""
        self.step_number += 1
        if self._position + len(self.running) > NUM_SCRIPTED_TOKENS:
            self._position = 0
        groups: dict[int, list[tuple[str, Running]]] = {}
        for request_id, running in self.running.items():
            groups.setdefault(running.client, []).append((request_id, running))
        for client, members in groups.items():
            tokens = self._scripted[self._position : self._position + len(members)]
            self._position += len(members)
            if self._is_echo:
                tokens = [
                    b"\x91" + _encode(running.echo.pop()) if running.echo else token
                    for (_, running), token in zip(members, tokens, strict=True)
                ]
            self._send_step(client, members, tokens)

    def _send_step(self, client: int, members: list[tuple[str, Running]], tokens: list[bytes]) -> None:
        now_s = time.monotonic()
        ended, outputs, num_fresh = [], [], 0
        for (request_id, running), token in zip(members, tokens, strict=True):
            is_last = running.ends_at_step == self.step_number
            if not (is_last or running.is_fresh):
                outputs.append(running.prefix + token + self._rest)
                continue
            outputs.append(_encode(self._output(self._telling_output(request_id, running, token, now_s, is_last))))
            num_fresh += running.is_fresh
            running.is_fresh = False
            if is_last:
                ended.append(request_id)
                del self.running[request_id]
        stats = _scheduler_stats(len(members), num_fresh)
        self.outputs[client].send(self._outputs(outputs, stats, finished=ended or None))
        self.counts["messages"] += 1
        self.counts["tokens"] += len(outputs)

    def _output(self, told: list[Any]) -> list[Any]:
        """EngineCoreOutput, with the defaults of the fields that are not told."""
        defaults = [0 if place == self._places.num_nans else None for place in range(self._places.output_fields)]
        return [*told, *defaults[len(told) :]]

    def _telling_output(
        self, request_id: str, running: Running, token: bytes, now_s: float, is_last: bool
    ) -> list[Any]:
        """Fields of an EngineCoreOutput with finish reason and, for the first token, events and prefill statistics."""
        output: list[Any] = [request_id, Raw(token), None, None, None, FINISH_LENGTH if is_last else None]
        if running.is_fresh:
            n = running.num_prompt_tokens
            prefill = {
                "num_prompt_tokens": n, "num_computed_tokens": n, "num_cached_tokens": 0, "num_local_cached_tokens": 0,
                "num_external_cached_tokens": 0, "num_cache_creation_tokens": 0,
            }  # fmt: skip
            output += [None, [{"type": 1, "timestamp": now_s}, {"type": 2, "timestamp": now_s}]]
            output += [None] * (self._places.prefill_stats - len(output)) + [prefill]
        if is_last and running.extra_args:
            output += [None] * (KV_TRANSFER_PARAMS + 1 - len(output))
            output[KV_TRANSFER_PARAMS] = running.extra_args.get("kv_transfer_params")
        return output

    def _outputs(
        self,
        outputs: list[bytes],
        stats: dict[str, Any] | None = None,
        *,
        utility: list[Any] | None = None,
        finished: list[str] | None = None,
    ) -> bytes:
        """EngineCoreOutputs of encoded ones."""
        tail = [stats, time.monotonic(), utility, finished, None, None, "default"][: self._places.outputs_fields - 2]
        head = _array_header(self._places.outputs_fields) + _encode(0) + _array_header(len(outputs))
        return head + b"".join(outputs) + b"".join(map(_encode, tail))


def _scheduler_stats(num_running: int, num_fresh: int) -> dict[str, Any]:
    return {
        "num_running_reqs": num_running, "num_waiting_reqs": 0, "num_skipped_waiting_reqs": 0,
        "num_kv_fetch_reqs_by_stage": {}, "step_counter": 0, "current_wave": 0, "kv_cache_usage": 0.1,
        "iteration_details": None,
        "prefix_cache_stats": {
            "reset": False, "requests": num_fresh, "queries": 0, "hits": 0, "preempted_requests": 0,
            "preempted_queries": 0, "preempted_hits": 0, "hits_by_source": {},
        },
        "connector_prefix_cache_stats": None, "kv_cache_eviction_events": [], "spec_decoding_stats": None,
        "kv_connector_stats": None, "ec_connector_stats": None, "waiting_lora_adapters": {},
        "running_lora_adapters": {}, "cudagraph_stats": None, "perf_stats": None,
    }  # fmt: skip


def _array_length(raw: Raw) -> int:
    """Of an encoded msgpack array, from its header."""
    head = bytes(memoryview(raw)[:5])
    if head[:1] == b"\xdc":
        return int(struct.unpack(">H", head[1:3])[0])
    if head[:1] == b"\xdd":
        return int(struct.unpack(">I", head[1:5])[0])
    return head[0] & 0x0F if head and head[0] & 0xF0 == 0x90 else 0


def _array_header(length: int) -> bytes:
    if length < 16:
        return bytes([0x90 | length])
    return b"\xdc" + struct.pack(">H", length) if length < 65536 else b"\xdd" + struct.pack(">I", length)


def serve(engine: MockEngine, step_ms: float) -> None:
    """Steps on an absolute schedule while anything runs; `step_ms` 0 is back to back."""
    poller = zmq.Poller()
    for socket in engine.inputs:
        poller.register(socket, zmq.POLLIN)
    next_step_s = 0.0
    while True:
        if not engine.running:
            poller.poll()
            engine.take_in()
            next_step_s = time.monotonic() + step_ms / 1000
            continue
        wait_s = next_step_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        engine.take_in()
        engine.step()
        next_step_s = max(next_step_s + step_ms / 1000, time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handshake", required=True)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--token-ids", required=True, help="JSON list of ids to draw from")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--echo", action="store_true", help="answer with the prompt's ids")
    parser.add_argument("--version", default="0.33.0", help="what it says it is; its messages are that one's, if known")
    arguments = parser.parse_args()
    with open(arguments.token_ids) as file:  # noqa: PTH123
        engine = MockEngine(json.load(file), arguments.seed, arguments.version, is_echo=arguments.echo)

    def report(_signal: int, _frame: FrameType | None) -> None:
        print(json.dumps(engine.counts), flush=True)

    signal.signal(signal.SIGUSR1, report)
    engine.connect(arguments.handshake, arguments.timeout_s)
    serve(engine, arguments.step_ms)


if __name__ == "__main__":
    main()
