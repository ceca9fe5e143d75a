"""Requests to vLLM's engine core as it reads them, and its outputs as we do. MessagePack; the layout says what stands where.

What vLLM says of a request's parameters is in `vllm/sampling_params.py`; they travel as a map, by name.
"""

import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Raw, Struct

from engine_core.vllm.layouts import Layout
from ipc.grammar import Grammar
from ipc.messages import NO_LOGPROBS, SamplingParams

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
ENGINE_CORE_DEAD = b"ENGINE_CORE_DEAD"
DELTA = 1  # RequestOutputKind: how a front end of vLLM would like its outputs; an engine core does not look
STRUCTURED_BACKEND = "guidance"  # llguidance, which has checked the grammar here

_LONG_PROMPT = 320  # tokens
_RAW_VIEW = 3  # MessagePack extension: the bytes of a small array


class FinishReason(IntEnum):
    """vLLM's numbers, here and below."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4


class EventType(IntEnum):
    QUEUED = 1
    SCHEDULED = 2
    PREEMPTED = 3


class Event(Struct):
    type: int
    timestamp: float  # the engine's monotonic clock, seconds


class PrefillStats(Struct):
    num_cached_tokens: int = 0


class PrefixCacheStats(Struct):
    queries: int = 0  # tokens, since the last message
    hits: int = 0


class DraftStats(Struct):
    """vLLM's SpecDecodingStats: since the last message."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = []


class SchedulerStats(Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_skipped_waiting_reqs: int = 0  # those that wait for something else than a place
    kv_cache_usage: float = 0.0
    prefix_cache_stats: PrefixCacheStats | None = None
    connector_prefix_cache_stats: PrefixCacheStats | None = None
    spec_decoding_stats: DraftStats | None = None


class LoraRequest(Struct, frozen=True, array_like=True):
    """An adapter as vLLM loads it."""

    name: str
    number: int  # from 1; the same in every engine
    path: str


class UtilityOutput(Struct, array_like=True):
    """What came of a call that is no request."""

    call_id: int
    failure_message: str | None = None
    result: Any = None  # a pair: nothing, and what the method returned. Any: whatever that is


class Output(Protocol):
    """EngineCoreOutput, as far as it is read."""

    request_id: str
    new_token_ids: list[int]
    new_logprobs: Any  # see step_logprobs_or_none. Any: whatever vLLM sends, here and below
    new_prompt_logprobs_tensors: Any  # of the whole prompt, with its first output
    finish_reason: int | None
    kv_transfer_params: Any  # with the last output, where there is a KV connector
    events: list[Event] | None
    prefill_stats: PrefillStats | None


class Outputs(Protocol):
    """EngineCoreOutputs, as far as they are read: what one step gave."""

    outputs: list[Output]
    scheduler_stats: SchedulerStats | None
    utility_output: UtilityOutput | None
    timestamp: float  # the engine's monotonic clock, seconds


class StepLogprobs(NamedTuple):
    """Of one request's tokens in a step. k alternatives."""

    ids: Any  # (tokens, 1 + k) int: the token itself, then the likeliest, descending. Any: numpy's own types, here and below
    logprobs: Any  # (tokens, 1 + k) float
    ranks: Any  # (tokens,) int


_REQUEST_TYPES: dict[str, tuple[Any, Any]] = {  # Any: types
    "request_id": (str, ""),
    "client_index": (int, 0),
    "current_wave": (int, 0),
    "priority": (int, 0),
}
_OUTPUT_TYPES: dict[str, tuple[Any, Any]] = {
    "request_id": (str, ""),
    "new_token_ids": (list[int], msgspec.field(default_factory=list)),
    "kv_transfer_params": (Any, None),
    "new_logprobs": (Any, None),
    "new_prompt_logprobs_tensors": (Any, None),
    "finish_reason": (int | None, None),
    "events": (list[Event] | None, None),
    "prefill_stats": (PrefillStats | None, None),
}
_OUTPUTS_TYPES: dict[str, tuple[Any, Any]] = {
    "scheduler_stats": (SchedulerStats | None, None),
    "utility_output": (UtilityOutput | None, None),
    "timestamp": (float, 0.0),
}


class Wire:
    """Both directions in one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._request = _struct("Request", layout.request, _REQUEST_TYPES)
        output = _struct("Output", layout.output, _OUTPUT_TYPES)
        outputs = _struct("Outputs", layout.outputs, {**_OUTPUTS_TYPES, "outputs": (list[output], ())})  # type: ignore[valid-type]
        self._decode = msgspec.msgpack.Decoder(outputs, ext_hook=_ext).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def add(
        self,
        request_id: str,
        prompt_ids: bytes,
        sampling: Raw,
        *,
        priority: int,
        cache_salt: str | None,
        lora: LoraRequest | None = None,
    ) -> bytes:
        """The data frame of an ADD. `prompt_ids` are little-endian u32."""
        request = self._request(
            request_id=request_id,
            prompt_token_ids=_ids(prompt_ids),
            sampling_params=sampling,
            arrival_time=time.time(),
            lora_request=lora,
            cache_salt=cache_salt,
            priority=priority,
        )
        return self._encode(request)

    def sampling(
        self,
        sampling: SamplingParams,
        eos_token_ids: Sequence[int],
        *,
        num_delivered: int = 0,
        is_cached: bool = True,
        kv_transfer_params: bytes = b"",
    ) -> Raw:
        """As `sampling_fields`, encoded; with what a KV connector is to read, encoded already."""
        fields = sampling_fields(sampling, eos_token_ids, num_delivered=num_delivered, is_cached=is_cached)
        if kv_transfer_params:
            fields["extra_args"] = {"kv_transfer_params": Raw(kv_transfer_params)}
        return Raw(self._encode(fields))

    def abort(self, request_ids: Sequence[str]) -> bytes:
        """The data frame of an ABORT."""
        return self._encode(request_ids)

    def utility(self, call_id: int, method: str, arguments: Sequence[Any]) -> bytes:
        """The data frame of a UTILITY: a method of the engine core."""
        return self._encode([0, call_id, method, arguments])

    def outputs(self, frame: bytes) -> Outputs:
        """Raises msgspec.MsgspecError: it is none."""
        outputs: Outputs = self._decode(frame)
        return outputs


def _ids(ids: bytes) -> list[int] | Raw:
    """Little-endian u32 as an array of MessagePack integers; of a long one all have the same width, and none becomes a
    Python object."""
    if len(ids) < 4 * _LONG_PROMPT:
        return memoryview(ids).cast("I").tolist()
    values = np.frombuffer(ids, "<u4")
    width, marker = (2, 0xCD) if values.max() < 1 << 16 else (4, 0xCE)
    encoded = np.empty((len(values), 1 + width), np.uint8)
    encoded[:, 0] = marker
    encoded[:, 1:] = values.astype(f">u{width}").view(np.uint8).reshape(-1, width)
    return Raw(_array_header(len(values)) + encoded.tobytes())


def _array_header(length: int) -> bytes:
    return b"\xdc" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xdd" + length.to_bytes(4, "big")


def _struct(
    name: str, fields: Sequence[str], types: dict[str, tuple[Any, Any]]
) -> Any:  # Any: a struct made of a layout
    """Up to the last field that is of interest: what stands behind it is neither written nor decoded."""
    last = max(fields.index(field) for field in types)
    shown = [(field, *types.get(field, (Any, None))) for field in fields[: last + 1]]
    return msgspec.defstruct(name, shown, array_like=True, gc=False)


def sampling_fields(
    sampling: SamplingParams, eos_token_ids: Sequence[int], *, num_delivered: int = 0, is_cached: bool = True
) -> dict[str, Any]:  # Any: parameters by name
    """vLLM's SamplingParams for what is left of a request once so many tokens are delivered. Not `is_cached`: nothing of it
    may come from the prefix cache."""
    ignores_eos = sampling.ignore_eos and sampling.grammar is None  # a form that is complete ends, whatever is asked
    first_eos, *more_eos = eos_token_ids or (None,)
    stop_ids = set(sampling.stop_token_ids) | (set() if ignores_eos else set(more_eos))
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens - num_delivered,
        "min_tokens": max(0, sampling.min_tokens - num_delivered),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": ignores_eos,
        "detokenize": False,
        "output_kind": DELTA,
        "_all_stop_token_ids": sorted(stop_ids.union(eos_token_ids)),  # what min_tokens puts off, ignored or not
    }
    if not ignores_eos:
        fields["_eos_token_id"] = first_eos
    if sampling.temperature < 1e-5:
        fields |= {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}  # as vLLM's own front end
    asks_prompt = sampling.num_prompt_logprobs != NO_LOGPROBS and not num_delivered  # they come before the first token
    if asks_prompt:
        fields["prompt_logprobs"] = sampling.num_prompt_logprobs
    if asks_prompt or not is_cached:
        fields["skip_reading_prefix_cache"] = True
    if sampling.logit_bias:
        fields["logit_bias"] = dict(sampling.logit_bias)
    if sampling.allowed_token_ids:
        fields["allowed_token_ids"] = list(sampling.allowed_token_ids)
    if sampling.bad_words:
        fields["_bad_words_token_ids"] = [list(word) for word in sampling.bad_words]
    if sampling.num_logprobs != NO_LOGPROBS:
        fields["logprobs"] = sampling.num_logprobs
    if sampling.grammar is not None:
        fields["structured_outputs"] = _structured_outputs(sampling.grammar)
    return fields


def _structured_outputs(grammar: Grammar) -> dict[str, Any]:  # Any: parameters by name
    """vLLM's StructuredOutputsParams."""
    match grammar.kind:
        case "json_object":
            asked: dict[str, Any] = {"json_object": True}
        case "json_schema":
            asked = {"json": grammar.known_source}
        case "choice":
            asked = {"choice": msgspec.json.decode(grammar.source)}
        case "ebnf":
            asked = {"grammar": grammar.source}
        case "regex" | "structural_tag":
            asked = {grammar.kind: grammar.known_source}
    if grammar.is_compact:
        asked["disable_any_whitespace"] = True
    return {**asked, "_backend": STRUCTURED_BACKEND}


def step_logprobs_or_none(decoded: Any, frames: Sequence[bytes]) -> StepLogprobs | None:  # Any: what vLLM sends
    """`new_logprobs` or `new_prompt_logprobs_tensors` of an output; larger arrays stand in the message's frames
    behind the first one."""
    return None if decoded is None else StepLogprobs(*(_array(entry, frames) for entry in decoded[:3]))


def _array(encoded: Sequence[Any], frames: Sequence[bytes]) -> Any:  # Any: numpy's own types
    dtype, shape, content = encoded
    return np.frombuffer(frames[content] if isinstance(content, int) else content, dtype).reshape(shape)


def _ext(code: int, content: memoryview) -> bytes | None:
    """Small arrays; None for what vLLM encodes in other ways, of which nothing is read."""
    return bytes(content) if code == _RAW_VIEW else None
