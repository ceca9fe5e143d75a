"""What the processes say to each other over ZMQ. Tokens do not travel here: see `ipc.record` and `ipc.ring`.

    worker  ── Generate, Resume, Abort, Announce ──►  broker  ── Generate, Resume, Abort, AbortWorker ──►  engine
    worker  ◄── Rejected, EngineLost, EngineReady ──  broker  ◄── EngineHello, Progress ─────────────────  engine

    worker  ── Control ──►  broker  ── Control ──►  every engine and every worker
    worker  ◄── Answered ─  broker  ◄── EngineAnswer ──  every engine

A request travels as a parcel (ipc.parcel): the envelope (fixed bytes, all that the broker reads), the body (MessagePack,
`Generate` or another message), and for `Generate` and `Resume` token ids (raw little-endian u32). The broker forwards
body and ids unopened.

Every accepted Generate or Resume ends in exactly one finish or failure record on the worker's ring, or one Rejected or
EngineLost message: never both, never none.
"""

import struct
from enum import IntEnum
from typing import NewType

from msgspec import Struct

from ipc.grammar import Grammar

PROTOCOL_VERSION = 6

StreamId = NewType("StreamId", int)
"""64 bits: worker slot (16), worker generation (16), number within the generation (32)."""


def make_stream_id(slot: int, generation: int, number: int) -> StreamId:
    return StreamId((slot & 0xFFFF) << 48 | (generation & 0xFFFF) << 32 | (number & 0xFFFFFFFF))


def slot_of(stream_id: int) -> int:
    return stream_id >> 48


def generation_of(stream_id: int) -> int:
    return stream_id >> 32 & 0xFFFF


def number_of(stream_id: int) -> int:
    return stream_id & 0xFFFFFFFF


NO_LOGPROBS = -1


NO_LIMIT = -1


class Thinking(Struct, frozen=True, array_like=True, kw_only=True):
    """Where one sequence reasons, and for how long: then the end marker is drawn, whatever the model would draw."""

    max_tokens: int = NO_LIMIT  # between the markers
    end_ids: tuple[int, ...]  # at least one
    start_ids: tuple[int, ...]  # at least one
    waits_for_start: bool  # reasoning begins behind the start marker; else with the output, which may begin with it


class SamplingParams(Struct, frozen=True, array_like=True, kw_only=True):
    """How the next tokens of one sequence are chosen. Already valid: the worker checked every bound.

    Semantics are vLLM's: temperature below 1e-5 is greedy; top_k 0 is off; repetition_penalty sees prompt and output,
    presence and frequency penalties see the output only; min_tokens masks eos and stop ids until reached.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False  # eos_token_ids of the model do not stop; stop_token_ids still do
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int = NO_LOGPROBS  # alternatives beside each token's own logprob
    allowed_token_ids: tuple[int, ...] = ()  # nothing else is drawn; (): everything may be
    thinking: Thinking | None = None  # None: nothing depends on it
    grammar: Grammar | None = None  # the output, less what is thinking, matches it or is cut short by its length
    num_prompt_logprobs: int = NO_LOGPROBS  # alternatives beside each prompt token's own, from its second token on
    bad_words: tuple[tuple[int, ...], ...] = ()  # none of these runs of tokens is completed
    logprob_token_ids: tuple[
        int, ...
    ] = ()  # the alternatives are these tokens, behind the one drawn; then num_logprobs is 0


class Pooling(IntEnum):
    """What becomes of the hidden states of a prompt, behind the last norm: nothing, or the sequence's one vector."""

    NONE = 0
    LAST = 1  # that of the last token
    MEAN = 2  # of all tokens


class VllmExtras(Struct, frozen=True, array_like=True, kw_only=True):
    """Of a request: what the engine `vllm` alone understands."""

    lora: str = ""  # name of the adapter, one of --lora-modules; "": none
    kv_transfer_params: bytes = b""  # for vLLM's KV connector: a MessagePack map; b"": none


class Generate(Struct, frozen=True, array_like=True, tag=1, kw_only=True):
    """Compute one sequence. The prompt's token ids stand behind it in its parcel."""

    stream_id: int
    request_id: str  # the client's X-Request-Id, for logs
    sampling: SamplingParams
    block_hashes: bytes = b""  # 16 bytes per full block of the prompt, chained (ipc.block_hash); b"" if caching is off
    is_streaming: bool = True  # False: the engine delivers all tokens once, at the end
    priority: int = 0  # lower runs first, as in vLLM
    deadline_s: float | None = None  # CLOCK_MONOTONIC; not started by then: failed without prefill
    fair_key: int = 0  # requests of a key share the engine fairly with those of other keys; 0: no key
    pooling: int = Pooling.NONE  # else the answer is an embedding; then max_tokens is 1, and its token means nothing
    vllm: VllmExtras | None = None


class Abort(Struct, frozen=True, array_like=True, tag=2, kw_only=True):
    """The worker no longer wants this stream. Without `wants_finish` no record for it needs to follow."""

    stream_id: int
    wants_finish: bool = False  # end it with a Finish of code ABORT: its counts are still of interest


class Announce(Struct, frozen=True, array_like=True, tag=3, kw_only=True):
    """A worker's first word to a (new) broker: who it is and which streams it has in flight."""

    slot: int
    generation: int
    stream_ids: tuple[int, ...] = ()


class Rejected(Struct, frozen=True, array_like=True, tag=4, kw_only=True):
    """The broker refused a Generate: no engine saw it."""

    stream_id: int
    reason: str  # metric label: max_num_queued_reqs, max_num_queued_tokens, key_share, deadline, no_engine
    retry_after_s: int


class EngineLost(Struct, frozen=True, array_like=True, tag=5, kw_only=True):
    """The engine that ran these streams died; they will produce nothing more."""

    engine: int
    stream_ids: tuple[int, ...]


class EngineHello(Struct, frozen=True, array_like=True, tag=6, kw_only=True):
    """An engine's first word to a (new) broker, and its answer to nothing: it can generate now."""

    engine: int
    generation: int
    protocol_version: int
    stream_ids: tuple[int, ...] = ()  # what it runs already, when the broker is the one that is new


class Progress(Struct, frozen=True, array_like=True, tag=7, kw_only=True):
    """What left the waiting queue and what ended since the last one: at most one a step, only when something did."""

    engine: int
    generation: int
    started: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()


class AbortWorker(Struct, frozen=True, array_like=True, tag=8, kw_only=True):
    """Abort every stream of this worker slot that is older than `generation`."""

    slot: int
    generation: int


class Resume(Struct, frozen=True, array_like=True, tag=9, kw_only=True):
    """Go on with a sequence whose engine was lost. Behind it in its parcel: the prompt's ids, then the delivered ones.

    It has a stream of its own, so that nothing the lost engine may still say can be taken for its output.
    """

    stream_id: int
    request: Generate  # as it was first sent; its stream id seeds the draws of a request that brought no seed
    num_output_tokens: int  # of the ids behind it: the client has them, they are not sent again


class EngineReady(Struct, frozen=True, array_like=True, tag=10, kw_only=True):
    """An engine takes requests: what was lost with another may be resumed. Comes behind the EngineLost it answers."""

    engine: int


class Action(IntEnum):
    """What an operator may ask of the whole fleet."""

    ABORT_REQUESTS = 1  # with a finish of code ABORT
    RESET_PREFIX_CACHE = 2  # no later request finds K/V of an earlier one; running requests go on
    START_PROFILE = 3
    STOP_PROFILE = 4
    SLEEP = 5  # give memory back, as an engine `vllm` can; requests wait
    WAKE_UP = 6
    IS_SLEEPING = 7
    PAUSE = 8  # run nothing, and keep the memory
    RESUME = 9
    IS_PAUSED = 10
    RELEASE_KV_CACHE = 11  # of one that is paused and has nothing left; until it is woken


class ProfileOptions(Struct, frozen=True, array_like=True, kw_only=True):
    """Of one profile. Steps are an engine's."""

    prefix: str = ""  # of the names of its files
    delay_iterations: int = 0  # steps before it begins
    max_iterations: int = 0  # steps until it ends; 0: when it is stopped


class ResetOptions(Struct, frozen=True, array_like=True, kw_only=True):
    """What a reset takes along that the engine `vllm` would else keep."""

    running: bool = False  # K/V of running requests, which compute it again
    external: bool = False  # what a KV connector holds


class SleepOptions(Struct, frozen=True, array_like=True, kw_only=True):
    level: int = 1  # 0: nothing runs; 1: weights go to the host's memory, K/V is dropped; 2: weights are dropped too
    mode: str = "abort"  # what becomes of running requests: abort, wait (until they end), keep; of PAUSE too
    tags: tuple[str, ...] = ()  # WAKE_UP: what comes back; (): everything
    clears_cache: bool = True  # PAUSE: no later request finds K/V of an earlier one


class Control(Struct, frozen=True, array_like=True, tag=11, kw_only=True):
    """An operator's word, through any worker, to all engines and all workers."""

    ticket: int  # a stream id of the worker that asks, which names the question and where the answers go
    action: int
    request_ids: tuple[str, ...] = ()  # ABORT_REQUESTS: those of these ids; (): all
    profile: ProfileOptions = ProfileOptions()
    reset: ResetOptions = ResetOptions()
    sleep: SleepOptions = SleepOptions()


class EngineAnswer(Struct, frozen=True, array_like=True, tag=12, kw_only=True):
    """What came of a Control in one engine."""

    engine: int
    ticket: int
    count: int = (
        0  # requests aborted, blocks forgotten, traces begun or written; 1: it sleeps, is paused, or is awake again
    )
    fault: str = ""  # why it could not be done, in one line


class Answered(Struct, frozen=True, array_like=True, tag=13, kw_only=True):
    """What came of a Control in all engines that were there and still are."""

    ticket: int
    answers: tuple[EngineAnswer, ...] = ()


Message = (
    Generate | Abort | Announce | Rejected | EngineLost | EngineHello | Progress | AbortWorker | Resume | EngineReady
    | Control | EngineAnswer | Answered
)  # fmt: skip
FromWorker = Generate | Resume | Abort | Control
FromEngine = Progress | EngineAnswer
ForWorker = Rejected | EngineLost | EngineReady | Control | Answered
ForEngine = Generate | Resume | Abort | AbortWorker | Control
ForBroker = Announce | EngineHello | Progress | EngineAnswer
"""Of which it opens the body."""


class Kind(IntEnum):
    """First byte of an envelope: which message the body holds. Equal to the message's tag."""

    GENERATE = 1
    ABORT = 2
    ANNOUNCE = 3
    REJECTED = 4
    ENGINE_LOST = 5
    ENGINE_HELLO = 6
    PROGRESS = 7
    ABORT_WORKER = 8
    RESUME = 9
    ENGINE_READY = 10
    CONTROL = 11
    ENGINE_ANSWER = 12
    ANSWERED = 13


_ENVELOPE = struct.Struct("<BBHiIIQQdI")


class Envelope(Struct, frozen=True):
    """What stands in front of every body, for routing: 44 bytes, little endian.

    offset  size  field              meaning
         0     1  kind               Kind
         1     1  version            PROTOCOL_VERSION
         2     2  engine             engine index, or 0xFFFF: the broker chooses
         4     4  priority           lower runs first
         8     4  num_prompt_tokens
        12     4  max_tokens
        16     8  stream_id
        24     8  prefix_key         equal for prompts that share their first blocks; 0: no affinity
        32     8  deadline_s         CLOCK_MONOTONIC, 0.0: none
        40     4  fair_key           whose share of the queue it takes, 0: nobody's
    """

    kind: int
    stream_id: int = 0
    num_prompt_tokens: int = 0
    max_tokens: int = 0
    prefix_key: int = 0
    priority: int = 0
    deadline_s: float = 0.0
    fair_key: int = 0
    engine: int = 0xFFFF

    def pack(self) -> bytes:
        return _ENVELOPE.pack(
            self.kind, PROTOCOL_VERSION, self.engine, self.priority, self.num_prompt_tokens, self.max_tokens,
            self.stream_id, self.prefix_key, self.deadline_s, self.fair_key,
        )  # fmt: skip

    @classmethod
    def unpack(cls, frame: bytes) -> "Envelope":
        """Raises ValueError on another size or protocol version."""
        if len(frame) != _ENVELOPE.size:
            raise ValueError(f"envelope of {len(frame)} bytes, expected {_ENVELOPE.size}")
        kind, version, engine, priority, num_prompt, max_tokens, stream_id, prefix_key, deadline_s, fair_key = (
            _ENVELOPE.unpack(frame)
        )
        if version != PROTOCOL_VERSION:
            raise ValueError(f"envelope of protocol version {version}, this process speaks {PROTOCOL_VERSION}")
        return cls(kind, stream_id, num_prompt, max_tokens, prefix_key, priority, deadline_s, fair_key, engine)
