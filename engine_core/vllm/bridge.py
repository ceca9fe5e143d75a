"""One turn between the broker and vLLM: requests in, what its steps gave out to the workers' rings.

Requests that vLLM cannot run as they were asked are refused with a line that says so. One that outlived its engine goes on
where what follows is as it would have been: its output so far becomes prompt, which changes nothing for a greedy request, and
not how likely any text is for one that is sampled without a seed.
"""

import logging
import select
import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Raw

from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox, TokenLane
from engine_core.step_output import Ending
from engine_core.vllm.calls import Calls, Controls
from engine_core.vllm.faults import fault_or_none, size_fault_or_none
from engine_core.vllm.link import EngineGone, EngineLink
from engine_core.vllm.step_counts import StepCounts
from engine_core.vllm.stream import Stream
from engine_core.vllm.wire import (
    ENGINE_CORE_DEAD,
    FinishReason,
    LoraRequest,
    Output,
    Outputs,
    Wire,
    step_logprobs_or_none,
)
from ipc.block_hash import HASH_BYTES
from ipc.fleet_page import Cell
from ipc.messages import (
    Abort,
    AbortWorker,
    Action,
    Control,
    EngineAnswer,
    FromEngine,
    Generate,
    Progress,
    Resume,
    SamplingParams,
    generation_of,
    slot_of,
)
from ipc.record import NO_STOP_TOKEN, Failure, FailureCode, FinishCode, Scored
from ipc.sockets import EngineSocket, Inbound

logger = logging.getLogger(__name__)

IDLE_MS = 200  # longest wait: heartbeat and stop flag are looked at this often
OVERFLOW_RETRY_MS = 3
FINISH_CODES: Mapping[int, FinishCode] = {
    FinishReason.STOP: FinishCode.STOP,
    FinishReason.LENGTH: FinishCode.LENGTH,
    FinishReason.ABORT: FinishCode.ABORT,
}
MAX_SAMPLING_BYTES = 4 * 1024 * 1024  # of different sampling parameters that are kept encoded, in all
LOOK_S = 0.15  # between two looks at what changes rarely


class Bridge:
    """The loop of one engine process whose engine is vLLM's."""

    def __init__(
        self,
        *,
        index: int,
        generation: int,
        socket: EngineSocket,
        link: EngineLink,
        wire: Wire,
        outbox: Outbox,
        cell: Cell,
        metrics: EngineMetrics,
        eos_token_ids: tuple[int, ...],
        step_timeout_s: float,
        loras: Mapping[str, LoraRequest] = {},
    ) -> None:
        self._index, self._generation = index, generation
        self._socket, self._link, self._wire, self._outbox = socket, link, wire, outbox
        self._cell, self._eos_token_ids = cell, eos_token_ids
        self._step_timeout_s = step_timeout_s
        self._socket_fd, self._link_fd = socket.fd, link.fd
        self._poll = select.poll()
        for fd in (self._socket_fd, self._link_fd):
            self._poll.register(fd, select.POLLIN)
        self._has_missed_edge = False  # of what the broker said while something was sent to it
        self._streams: dict[str, Stream] = {}  # by vLLM's request id
        self._lanes = [TokenLane() for _ in range(outbox.num_slots)]
        self._loras = loras
        self._calls = Calls(link, wire)
        self._controls = Controls(index, self._calls, self._send, metrics.on_sleep)
        self._sampling: dict[tuple[SamplingParams, bool, int], Raw] = {}  # encoded
        self._sampling_bytes = 0
        self._scored: list[tuple[int, Scored]] = []
        self._endings: list[Ending] = []
        self._started: list[int] = []
        self._ended: list[int] = []
        self._counts = StepCounts(metrics, cell)
        self._looked_s = self._last_step_s = time.monotonic()
        self._engine_s = 0.0  # vLLM's clock, at its last step
        self._num_computed = self._num_preemptions = 0  # prompt tokens, and requests that lost their K/V, in this step

    @property
    def stream_ids(self) -> list[int]:
        return [stream.stream_id for stream in self._streams.values()]

    def turn(self) -> None:
        """Wait for a message or an output, at most IDLE_MS. Raises EngineGone."""
        self._cell.beat()
        wait_ms = 0 if self._has_missed_edge else OVERFLOW_RETRY_MS if self._outbox.has_overflow else IDLE_MS
        ready = [fd for fd, _ in self._poll.poll(wait_ms)]
        now_s = time.monotonic()
        is_time_to_look = now_s - self._looked_s > LOOK_S
        if is_time_to_look or self._has_missed_edge or self._socket_fd in ready:
            self._has_missed_edge = False
            self._look_at_workers()  # first: a request of a new worker wants its ring known as the new one's
            for inbound in self._socket.receive(0):
                self._take(inbound)
        if is_time_to_look or self._link_fd in ready:
            self._collect()
        if is_time_to_look:
            self._looked_s = now_s
            self._look_around(now_s)
        self._publish()
        self._tell_progress()

    def _look_around(self, now_s: float) -> None:
        """What need not be done with every step."""
        self._link.check()
        self._note_scheduled()
        for stream in [stream for stream in self._streams.values() if stream.deadline_s and stream.deadline_s < now_s]:
            self._fail(stream, FailureCode.DEADLINE, "not started by its deadline")
        has_work = bool(self._streams)
        if not has_work or self._controls.is_asleep:
            self._last_step_s = now_s
        if now_s - self._last_step_s > self._step_timeout_s:
            raise EngineGone(f"vLLM has requests and gave nothing for {self._step_timeout_s:g} s")
        self._counts.publish(has_work=has_work, num_full_waits=self._outbox.num_full_waits)

    def _note_scheduled(self) -> None:
        """vLLM says that a request is scheduled with its first token, but at every step how many run: those beyond the ones
        that have tokens are the first of the rest, in its order."""
        waiting = [stream for stream in self._streams.values() if not stream.has_started]
        num_prefilling = self._counts.latest.num_running_reqs - (len(self._streams) - len(waiting))
        if num_prefilling <= 0:
            return
        for stream in sorted(waiting, key=lambda stream: stream.priority)[:num_prefilling]:
            if not stream.is_scheduled:
                stream.be_scheduled()
                self._started.append(stream.stream_id)

    # ── from the broker ──────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, inbound: Inbound) -> None:
        match inbound.message:
            case Generate() as request:
                self._add(request.stream_id, request, inbound.prompt, num_delivered=0)
            case Resume() as message:
                self._add(message.stream_id, message.request, inbound.prompt, num_delivered=message.num_output_tokens)
            case Abort(stream_id=stream_id, wants_finish=wants_finish):
                stream = self._streams.get(_request_id(stream_id))
                if stream is not None and wants_finish:
                    self._stop([stream])
                elif stream is not None:
                    self._drop([stream])
            case AbortWorker(slot=slot, generation=generation):
                self._abort_slot(slot, generation)
            case Control(action=Action.ABORT_REQUESTS) as control:
                count = self._abort_requests(control)
                self._send(EngineAnswer(engine=self._index, ticket=control.ticket, count=count))
            case Control() as control:
                self._controls.obey(control)

    def _abort_requests(self, control: Control) -> int:
        """How many an operator has ended so."""
        ids = frozenset(control.request_ids)
        streams = [stream for stream in self._streams.values() if not ids or stream.client_request_id in ids]
        self._stop(streams)
        return len({stream.client_request_id for stream in streams})

    def _stop(self, streams: Sequence[Stream]) -> None:
        """End these now, each with a finish that has its counts."""
        self._drop(streams)
        for stream in streams:
            finish = stream.finish(FinishCode.ABORT, ended_s=self._engine_s)
            self._endings.append(Ending(stream.slot, finish, _output_ids(stream)))

    def _add(self, stream_id: int, request: Generate, ids: bytes, *, num_delivered: int) -> None:
        reader_generation = self._outbox.reader_generation(slot_of(stream_id))
        request_id = _request_id(stream_id)
        if reader_generation is None or request_id in self._streams or not ids:
            logger.error("request refused: unknown worker, stream in use or no prompt", extra={"stream_id": stream_id})
            return
        if reader_generation and reader_generation & 0xFFFF != generation_of(stream_id):  # it died on the way
            self._ended.append(stream_id)
            return
        num_prompt_tokens = len(ids) // 4 - num_delivered
        stream = Stream(request_id, stream_id, request, num_prompt_tokens, num_delivered)
        fault = fault_or_none(request, num_delivered, len(self._eos_token_ids)) or size_fault_or_none(
            request, num_prompt_tokens, num_delivered
        )
        if fault is not None:
            code = FailureCode.INTERNAL if num_delivered else FailureCode.GRAMMAR
            self._endings.append(Ending(stream.slot, Failure(stream.number, code, fault)))
            self._ended.append(stream_id)
            return
        if not self._streams:
            self._last_step_s = time.monotonic()
        self._streams[request_id] = stream
        self._link.add(
            self._wire.add(
                request_id,
                ids,
                self._sampling_of(request, num_delivered),
                priority=request.priority,
                cache_salt=request.block_hashes[:HASH_BYTES].hex() or None,  # equal for equal salts and first blocks
                lora=self._loras[request.vllm.lora] if request.vllm is not None and request.vllm.lora else None,
            )
        )

    def _sampling_of(self, request: Generate, num_delivered: int) -> Raw:
        """Most requests ask for what others have asked for."""
        if request.vllm is not None and request.vllm.kv_transfer_params:
            return self._wire.sampling(
                request.sampling,
                self._eos_token_ids,
                is_cached=bool(request.block_hashes),
                kv_transfer_params=request.vllm.kv_transfer_params,
            )
        key = request.sampling, bool(request.block_hashes), num_delivered
        encoded = self._sampling.get(key)
        if encoded is None:
            encoded = self._wire.sampling(
                request.sampling, self._eos_token_ids, num_delivered=num_delivered, is_cached=key[1]
            )
            self._sampling_bytes += len(memoryview(encoded))
            if self._sampling_bytes > MAX_SAMPLING_BYTES:
                self._sampling.clear()
                self._sampling_bytes = 0
            else:
                self._sampling[key] = encoded
        return encoded

    def _abort_slot(self, slot: int, generation: int) -> None:
        """The worker in this slot is of another generation now: older streams have no reader."""
        self._drop(
            [
                stream
                for stream in self._streams.values()
                if stream.slot == slot and generation_of(stream.stream_id) != generation & 0xFFFF
            ]
        )

    def _drop(self, streams: Sequence[Stream]) -> None:
        """Nobody wants more of these."""
        for stream in streams:
            del self._streams[stream.request_id]
            self._ended.append(stream.stream_id)
        if streams:
            self._link.abort(self._wire.abort([stream.request_id for stream in streams]))

    def _fail(self, stream: Stream, code: FailureCode, message: str) -> None:
        self._drop([stream])
        self._endings.append(Ending(stream.slot, Failure(stream.number, code, message)))

    def _look_at_workers(self) -> None:
        for slot, generation in self._outbox.new_readers():
            self._abort_slot(slot, generation)
        for slot in self._outbox.stalled_slots:
            for stream in [stream for stream in self._streams.values() if stream.slot == slot]:
                self._fail(stream, FailureCode.OVERFLOW, "the worker fell too far behind to be served")

    # ── from vLLM ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        """What has come, of any number of steps, to its lanes."""
        for frames in self._link.receive():
            if frames[0] == ENGINE_CORE_DEAD:
                raise EngineGone("vLLM's engine core died")
            outputs = self._wire.outputs(frames[0])
            self._num_computed = self._num_preemptions = num_tokens = 0
            stream_of, lanes = self._streams.get, self._lanes
            for output in outputs.outputs:
                stream = stream_of(output.request_id)
                if stream is None:  # aborted
                    continue
                ids = output.new_token_ids
                num_tokens += len(ids)
                stream.num_output += len(ids)
                if not stream.is_plain or output.finish_reason is not None or output.events is not None:
                    self._look_at(stream, output, outputs, frames)
                elif stream.is_streaming:
                    lane = lanes[stream.slot]
                    for token_id in ids:
                        lane.numbers.append(stream.number)
                        lane.token_ids.append(token_id)
                else:
                    stream.output_ids.extend(ids)
            if outputs.utility_output is not None:
                self._calls.take(outputs.utility_output)
            self._note_step(outputs, num_tokens)

    def _look_at(self, stream: Stream, output: Output, outputs: Outputs, frames: Sequence[bytes]) -> None:
        """An output that may be more than tokens to be sent."""
        ids = output.new_token_ids
        if output.events or output.prefill_stats is not None or not stream.has_started:
            self._note(stream, output, outputs)
        if stream.has_prompt_logprobs:
            self._scored += self._scored_prompt(stream, output, frames)
        stop_token_id = NO_STOP_TOKEN
        if output.finish_reason == FinishReason.STOP and ids:
            stop_token_id = ids.pop()
        if stream.has_logprobs:
            self._scored += self._scored_tokens(stream, output, frames, stop_token_id)
        elif stream.is_streaming:
            self._lanes[stream.slot].put(stream.number, ids)
        else:
            stream.output_ids.extend(ids)
        if output.finish_reason is not None:
            self._end(stream, output, stop_token_id, outputs.timestamp)

    def _note(self, stream: Stream, output: Output, outputs: Outputs) -> None:
        was_scheduled, num_preemptions = stream.is_scheduled, stream.num_preemptions
        stream.note(output, outputs.timestamp)
        self._num_preemptions += stream.num_preemptions - num_preemptions
        if output.prefill_stats is not None:
            self._num_computed += stream.num_computed
        if stream.is_scheduled and not was_scheduled:
            self._started.append(stream.stream_id)

    def _scored_tokens(
        self, stream: Stream, output: Output, frames: Sequence[bytes], stop_token_id: int
    ) -> list[tuple[int, Scored]]:
        found = step_logprobs_or_none(output.new_logprobs, frames)
        if found is None:
            return []
        last = len(found.ranks) - 1 if stop_token_id != NO_STOP_TOKEN else -1
        return [
            (
                stream.slot,
                Scored(
                    stream=stream.number,
                    token=int(found.ids[at, 0]),
                    is_stop=at == last,
                    rank=int(found.ranks[at]),
                    logprob=float(found.logprobs[at, 0]),
                    ids=found.ids[at, 1:].tolist(),
                    logprobs=found.logprobs[at, 1:].tolist(),
                ),
            )
            for at in range(len(found.ranks))
        ]

    def _scored_prompt(self, stream: Stream, output: Output, frames: Sequence[bytes]) -> list[tuple[int, Scored]]:
        """Of every prompt token but the first: vLLM keeps them until the prompt is computed."""
        found = step_logprobs_or_none(output.new_prompt_logprobs_tensors, frames)
        if found is None:
            return []
        stream.has_prompt_logprobs = False
        rows = zip(found.ids.tolist(), found.logprobs.tolist(), found.ranks.tolist(), strict=True)
        return [
            (
                stream.slot,
                Scored(stream.number, ids[0], False, rank, logprobs[0], ids[1:], logprobs[1:], prompt_place=place),
            )
            for place, (ids, logprobs, rank) in enumerate(rows, 1)
        ]

    def _end(self, stream: Stream, output: Output, stop_token_id: int, ended_s: float) -> None:
        del self._streams[stream.request_id]
        self._ended.append(stream.stream_id)
        match output.finish_reason:
            case FinishReason.STOP | FinishReason.LENGTH | FinishReason.ABORT:
                if output.finish_reason == FinishReason.ABORT and not self._controls.is_asleep:
                    raise EngineGone("vLLM aborts what it runs, unasked: it is being stopped")
                finish = stream.finish(FINISH_CODES[output.finish_reason], stop_token_id, ended_s=ended_s)
                self._endings.append(
                    Ending(stream.slot, finish, _output_ids(stream), attachment=self._attachment_or_none(output))
                )
            case FinishReason.ERROR:
                self._append_failure(stream, "vLLM ended the request because of an error of its own")
            case reason:
                self._append_failure(stream, f"vLLM ended the request for its reason {reason}")

    def _attachment_or_none(self, output: Output) -> bytes | None:
        if output.kv_transfer_params is None:
            return None
        content = msgspec.json.encode(output.kv_transfer_params)
        if len(content) > self._outbox.max_attachment_bytes:
            logger.error("kv_transfer_params are too long to be given back", extra={"num_bytes": len(content)})
            return None
        return content

    def _append_failure(self, stream: Stream, message: str) -> None:
        self._endings.append(Ending(stream.slot, Failure(stream.number, FailureCode.INTERNAL, message)))

    def _note_step(self, outputs: Outputs, num_tokens: int) -> None:
        now_s = time.monotonic()
        duration_s, self._last_step_s = now_s - self._last_step_s, now_s
        self._engine_s = outputs.timestamp
        self._counts.add(outputs.scheduler_stats, self._num_computed + num_tokens, self._num_preemptions, duration_s)

    def _publish(self) -> None:
        if self._scored:
            self._outbox.publish_scored(self._scored)
            self._scored = []
        endings, self._endings = self._endings, []
        self._outbox.publish_lanes(self._lanes, endings)

    def _tell_progress(self) -> None:
        if self._started or self._ended:
            started, ended = tuple(self._started), tuple(self._ended)
            self._started, self._ended = [], []
            self._send(Progress(engine=self._index, generation=self._generation, started=started, ended=ended))
        self._cell.has_work = bool(self._streams)

    def _send(self, message: FromEngine) -> None:
        self._socket.send(message)
        self._has_missed_edge = self._has_missed_edge or self._socket.has_message


def _request_id(stream_id: int) -> str:
    return f"{stream_id:x}"


def _output_ids(stream: Stream) -> "np.ndarray[tuple[int], np.dtype[np.int32]] | None":
    """Of a stream that gets everything at its end."""
    return None if stream.is_streaming else np.frombuffer(stream.output_ids, np.int32)
