"""One turn between the broker and vLLM: requests in, what its steps gave out to the workers' rings.

Requests that vLLM cannot run as they were asked are refused with a line that says so. One that outlived its engine goes on
where that gives the text it would have had: its output so far becomes prompt, which for a greedy request changes nothing.
"""

import logging
import time
from array import array
from collections.abc import Sequence

import numpy as np
import zmq

from engine_core.metrics import EngineMetrics
from engine_core.outbox import MAX_OVERFLOW_BYTES, Outbox
from engine_core.step_output import NO_TOKENS, Ending, SampledTokens
from engine_core.vllm.link import EngineGone, EngineLink
from engine_core.vllm.stream import Stream
from engine_core.vllm.wire import (
    ENGINE_CORE_DEAD,
    FinishReason,
    Output,
    Outputs,
    SchedulerStats,
    UtilityOutput,
    Wire,
    sampling_fields,
    step_logprobs,
)
from ipc.block_hash import HASH_BYTES
from ipc.fleet_page import Cell
from ipc.messages import (
    NO_LIMIT,
    Abort,
    AbortWorker,
    Action,
    Control,
    EngineAnswer,
    Generate,
    Progress,
    Resume,
    generation_of,
    slot_of,
)
from ipc.record import NO_STOP_TOKEN, SCORED_WORDS, Failure, FailureCode, FinishCode, Scored
from ipc.sockets import EngineSocket, Inbound

logger = logging.getLogger(__name__)

IDLE_MS = 200  # longest wait: heartbeat and stop flag are looked at this often
OVERFLOW_RETRY_MS = 3
LOOK_S = 0.15  # between two looks at what changes rarely
GREEDY_BELOW = 1e-5
MAX_SCORED_PROMPT_BYTES = MAX_OVERFLOW_BYTES // 4  # vLLM gives them all at once; a worker has to hold them


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
    ) -> None:
        self._index, self._generation = index, generation
        self._socket, self._link, self._wire, self._outbox = socket, link, wire, outbox
        self._cell, self._metrics, self._eos_token_ids = cell, metrics, eos_token_ids
        self._step_timeout_s = step_timeout_s
        self._poller = zmq.Poller()
        for pollable in (socket.pollable, link.output):
            self._poller.register(pollable, zmq.POLLIN)
        self._streams: dict[str, Stream] = {}  # by vLLM's request id
        self._resets: dict[int, int] = {}  # tickets by vLLM's call id: it has not answered yet
        self._num_calls = 0
        self._endings: list[Ending] = []
        self._started: list[int] = []
        self._ended: list[int] = []
        self._num_steps = 0
        self._looked_s = self._last_step_s = time.monotonic()
        self._stats = SchedulerStats()

    @property
    def stream_ids(self) -> list[int]:
        return [stream.stream_id for stream in self._streams.values()]

    def turn(self) -> None:
        """Wait for a message or an output, at most IDLE_MS. Raises EngineGone."""
        self._cell.beat()
        readable = dict(self._poller.poll(OVERFLOW_RETRY_MS if self._outbox.has_overflow else IDLE_MS))
        now_s = time.monotonic()
        is_time_to_look = now_s - self._looked_s > LOOK_S
        if is_time_to_look or self._socket.pollable in readable:
            for inbound in self._socket.receive(0):
                self._take(inbound)
        self._look_at_workers()
        tokens = self._collect()
        if is_time_to_look:
            self._looked_s = now_s
            self._look_around(now_s)
        endings, self._endings = self._endings, []
        self._outbox.publish(tokens, endings)
        self._tell_progress()

    def _look_around(self, now_s: float) -> None:
        """What need not be done with every step."""
        self._link.check()
        for stream in [stream for stream in self._streams.values() if stream.deadline_s and stream.deadline_s < now_s]:
            self._fail(stream, FailureCode.DEADLINE, "not started by its deadline")
        has_work = bool(self._streams)
        if has_work and now_s - self._last_step_s > self._step_timeout_s:
            raise EngineGone(f"vLLM has requests and gave nothing for {self._step_timeout_s:g} s")
        stats = self._stats if has_work else SchedulerStats()
        self._metrics.on_load(
            stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage, self._outbox.num_full_waits
        )

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
            case Control(action=Action.RESET_PREFIX_CACHE, ticket=ticket):
                self._num_calls += 1
                self._resets[self._num_calls] = ticket
                self._link.utility(self._wire.utility(self._num_calls, "reset_prefix_cache"))
            case Control() as control:
                count = self._abort_requests(control) if control.action == Action.ABORT_REQUESTS else 0
                self._socket.send(EngineAnswer(engine=self._index, ticket=control.ticket, count=count))

    def _abort_requests(self, control: Control) -> int:
        """How many an operator has ended so."""
        ids = frozenset(control.request_ids)
        streams = [stream for stream in self._streams.values() if not ids or stream.client_request_id in ids]
        self._stop(streams)
        return len({stream.client_request_id for stream in streams})

    def _on_utility(self, output: UtilityOutput) -> None:
        """vLLM refuses to forget while it runs requests: whoever asked may ask again."""
        ticket = self._resets.pop(output.call_id, None)
        if ticket is None:
            return
        is_done = output.failure_message is None and bool(output.result and output.result[1])
        fault = "" if is_done else output.failure_message or "vLLM keeps its prefix cache while requests use it"
        self._socket.send(EngineAnswer(engine=self._index, ticket=ticket, fault=fault))

    def _stop(self, streams: Sequence[Stream]) -> None:
        """End these now, each with a finish that has its counts."""
        self._drop(streams)
        for stream in streams:
            finish = stream.finish(FinishCode.ABORT, ended_s=time.monotonic())
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
        stream = Stream(request_id, stream_id, request, num_prompt_tokens, num_delivered, time.monotonic())
        fault = fault_or_none(request, num_delivered) or _size_fault_or_none(stream, request, num_prompt_tokens)
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
                array("I", ids).tolist(),
                sampling_fields(
                    request.sampling,
                    self._eos_token_ids,
                    num_delivered=num_delivered,
                    is_cached=bool(request.block_hashes),
                ),
                priority=request.priority,
                cache_salt=request.block_hashes[:HASH_BYTES].hex() or None,  # equal for equal salts and first blocks
            )
        )

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

    def _collect(self) -> SampledTokens:
        """What has come, of any number of steps."""
        slots, numbers, token_ids = array("i"), array("I"), array("i")
        scored: list[tuple[int, Scored]] = []
        for frames in self._link.receive():
            if frames[0] == ENGINE_CORE_DEAD:
                raise EngineGone("vLLM's engine core died")
            outputs = self._wire.outputs(frames[0])
            num_tokens = 0
            for output in outputs.outputs:
                stream = self._streams.get(output.request_id)
                if stream is None:  # aborted
                    continue
                if output.events or output.prefill_stats is not None or not stream.has_started:
                    self._note(stream, output, outputs)
                ids = output.new_token_ids
                num_tokens += len(ids)
                if stream.has_prompt_logprobs:
                    scored += self._scored_prompt(stream, output, frames)
                stream.num_output += len(ids)
                stop_token_id = NO_STOP_TOKEN
                if output.finish_reason == FinishReason.STOP and ids:
                    stop_token_id = ids.pop()
                if stream.has_logprobs:
                    scored += self._scored(stream, output, frames, stop_token_id)
                elif stream.is_streaming:
                    for token_id in ids:
                        slots.append(stream.slot)
                        numbers.append(stream.number)
                        token_ids.append(token_id)
                else:
                    stream.output_ids.extend(ids)
                if output.finish_reason is not None:
                    self._end(stream, output.finish_reason, stop_token_id, outputs.timestamp)
            if outputs.utility_output is not None:
                self._on_utility(outputs.utility_output)
            self._note_step(outputs, num_tokens)
        if not token_ids and not scored:
            return NO_TOKENS
        columns = np.frombuffer(slots, np.int32), np.frombuffer(numbers, np.uint32), np.frombuffer(token_ids, np.int32)
        return SampledTokens(*columns, tuple(scored))

    def _note(self, stream: Stream, output: Output, outputs: Outputs) -> None:
        had_started = stream.has_started
        stream.note(output, outputs.timestamp)
        if stream.has_started and not had_started:
            self._started.append(stream.stream_id)

    def _scored(
        self, stream: Stream, output: Output, frames: Sequence[bytes], stop_token_id: int
    ) -> list[tuple[int, Scored]]:
        found = step_logprobs(output.new_logprobs, frames)
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
        found = step_logprobs(output.new_prompt_logprobs_tensors, frames)
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

    def _end(self, stream: Stream, reason: int, stop_token_id: int, ended_s: float) -> None:
        del self._streams[stream.request_id]
        self._ended.append(stream.stream_id)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            code = FinishCode.STOP if reason == FinishReason.STOP else FinishCode.LENGTH
            finish = stream.finish(code, stop_token_id, ended_s=ended_s)
            self._endings.append(Ending(stream.slot, finish, _output_ids(stream)))
            return
        message = "vLLM ended the request because of an error of its own" if reason == FinishReason.ERROR else (
            f"vLLM ended the request for its reason {reason}"
        )  # fmt: skip
        self._endings.append(Ending(stream.slot, Failure(stream.number, FailureCode.INTERNAL, message)))

    def _note_step(self, outputs: Outputs, num_tokens: int) -> None:
        now_s = time.monotonic()
        if num_tokens:
            self._num_steps += 1
            self._cell.steps = self._num_steps
            self._metrics.on_step(num_tokens, now_s - self._last_step_s)
        self._last_step_s = now_s
        stats = outputs.scheduler_stats
        if stats is not None:
            self._stats = stats
            if stats.prefix_cache_stats is not None:
                self._metrics.on_counts(0, stats.prefix_cache_stats.queries, stats.prefix_cache_stats.hits)

    def _tell_progress(self) -> None:
        if self._started or self._ended:
            started, ended = tuple(self._started), tuple(self._ended)
            self._started, self._ended = [], []
            self._socket.send(Progress(engine=self._index, generation=self._generation, started=started, ended=ended))
        self._cell.has_work = bool(self._streams)


def fault_or_none(request: Generate, num_delivered: int) -> str | None:
    """Why vLLM cannot answer this request as it was asked, in one line."""
    sampling = request.sampling
    if request.pooling:
        return "embeddings are not served by the engine vllm: it runs vLLM's generation"
    if sampling.logprob_token_ids:
        return "logprob_token_ids are not served by the engine vllm"
    if sampling.thinking is not None:
        if sampling.thinking.max_tokens != NO_LIMIT:
            return "thinking_token_budget is not served by the engine vllm"
        if sampling.grammar is not None:
            return "the engine vllm cannot hold an answer to a form behind its reasoning: switch reasoning off"
    if num_delivered and not _goes_on_exactly(request):
        return "the engine was lost; vLLM cannot go on with a request that is sampled, penalized or held to a form"
    return None


def _size_fault_or_none(stream: Stream, request: Generate, num_prompt_tokens: int) -> str | None:
    if not stream.has_prompt_logprobs:
        return None
    num_bytes = 4 * num_prompt_tokens * (SCORED_WORDS + 2 * request.sampling.num_prompt_logprobs)
    if num_bytes <= MAX_SCORED_PROMPT_BYTES:
        return None
    return (
        f"the logprobs of this prompt take {num_bytes} bytes, the engine vllm gives at most {MAX_SCORED_PROMPT_BYTES}: "
        "ask for fewer alternatives or a shorter prompt"
    )


def _goes_on_exactly(request: Generate) -> bool:
    """Whether prompt and output together, as a prompt, are followed by what would have followed the output."""
    sampling = request.sampling
    is_greedy = sampling.temperature < GREEDY_BELOW
    counts_output = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    return is_greedy and not counts_output and sampling.grammar is None and not sampling.bad_words


def _request_id(stream_id: int) -> str:
    return f"{stream_id:x}"


def _output_ids(stream: Stream) -> "np.ndarray[tuple[int], np.dtype[np.int32]] | None":
    """Of a stream that gets everything at its end."""
    return None if stream.is_streaming else np.frombuffer(stream.output_ids, np.int32)
