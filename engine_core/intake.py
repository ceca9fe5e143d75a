"""What the broker sends, turned into sequences. The last check of a request before it shares a batch with others.

Workers validate; what a worker of this fleet could not have sent is still refused here, request by request, because one
token id outside the vocabulary would take down the whole step. Runs in the engine's step loop.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import chain

import numpy as np
from llguidance import LLMatcher
from msgspec import structs

from engine_core.grammar import GrammarCompiler, GrammarError
from engine_core.scheduler import Scheduler
from engine_core.sequence import Sequence
from ipc.block_hash import HASH_BYTES
from ipc.messages import NO_LOGPROBS, Abort, AbortWorker, Control, Generate, Pooling, Resume, generation_of, slot_of
from ipc.record import FailureCode
from ipc.sockets import Inbound

logger = logging.getLogger(__name__)

_POOLINGS = frozenset(Pooling)


class Intake:
    """Feeds one scheduler. `reader_generation(slot)` is the generation that reads the slot's ring: 0 nobody yet, None
    when there is no such slot."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        vocab_size: int,
        enable_prefix_caching: bool,
        reader_generation: Callable[[int], int | None],
        grammars: GrammarCompiler,
    ) -> None:
        self._scheduler = scheduler
        self._grammars = grammars
        self._uncompiled: dict[int, tuple[Sequence, Future[LLMatcher]]] = {}  # by stream id: wait for their grammars
        self._vocab_size = vocab_size
        self._enable_prefix_caching = enable_prefix_caching
        self._reader_generation = reader_generation
        state = scheduler.state
        self._block_size = state.block_size
        # The K/V of the last token is never needed, so one more token fits than the pool has slots.
        self._max_total_len = min(state.max_model_len, scheduler.blocks.num_blocks * state.block_size + 1)
        self._num_arrivals = 0
        self.controls: list[Control] = []
        """What an operator wants, for engine_core.control: the engine takes it between two steps."""

    @property
    def uncompiled(self) -> list[int]:
        """Streams that wait for their grammar to be compiled: the scheduler does not know them yet."""
        return list(self._uncompiled)

    def take(self, inbound: Iterable[Inbound]) -> None:
        """Handle messages in their order, and what has got its grammar meanwhile."""
        if self._uncompiled:
            self._admit_compiled()
        for message, prompt in inbound:
            match message:
                case Generate():
                    self._generate(message, prompt)
                case Resume():
                    self._resume(message, prompt)
                case Abort(wants_finish=True):
                    self._release(message.stream_id)
                    self._scheduler.stop(message.stream_id)
                case Abort():
                    self._release(message.stream_id)
                    self._scheduler.abort(message.stream_id)
                case Control():
                    self.controls.append(message)
                case AbortWorker():
                    for stream_id in self.uncompiled:
                        if (
                            slot_of(stream_id) == message.slot
                            and generation_of(stream_id) != message.generation & 0xFFFF
                        ):
                            self._release(stream_id)
                    self._scheduler.abort_slot(message.slot, message.generation)

    def stop_requests(self, request_ids: frozenset[str]) -> int:
        """As the scheduler's, and of those that wait for their grammars too."""
        for stream_id, (sequence, _) in list(self._uncompiled.items()):
            if not request_ids or sequence.request_id in request_ids:
                self._release(stream_id)
        return self._scheduler.stop_requests(request_ids)

    def _release(self, stream_id: int) -> None:
        """To the scheduler without its grammar, to be ended there at once."""
        waiting = self._uncompiled.pop(stream_id, None)
        if waiting is not None:
            self._scheduler.add(waiting[0])

    def _admit_compiled(self) -> None:
        ready = [stream_id for stream_id, (_, compiled) in self._uncompiled.items() if compiled.done()]
        for stream_id in ready:
            sequence, compiled = self._uncompiled.pop(stream_id)
            if self._is_read(stream_id):
                self._add(sequence, compiled)

    def _is_read(self, stream_id: int) -> bool:
        """Whether the stream's worker still lives; if not, its end is reported."""
        generation = self._reader_generation(slot_of(stream_id))
        if generation and generation & 0xFFFF != generation_of(stream_id):
            self._scheduler.drop(stream_id)
            return False
        return True

    def _add(self, sequence: Sequence, compiled: "Future[LLMatcher]") -> None:
        try:
            sequence.matcher = self._grammars.matcher_of(compiled)
        except GrammarError as error:
            self._scheduler.refuse(sequence, FailureCode.GRAMMAR, str(error))
            return
        self._scheduler.add(sequence)

    def _resume(self, message: Resume, ids: bytes) -> None:
        """As a preempted sequence comes back: prompt and output are computed again, and it goes on behind them."""
        num_output_tokens = message.num_output_tokens
        if not 0 <= num_output_tokens < len(ids) // 4:
            logger.error("resumption refused: no prompt", extra={"stream_id": message.stream_id})
            return
        prompt_bytes = len(ids) - 4 * num_output_tokens
        deadline_s = None if num_output_tokens else message.request.deadline_s  # it had started in time
        self._generate(
            structs.replace(message.request, stream_id=message.stream_id, deadline_s=deadline_s),
            ids[:prompt_bytes],
            output=ids[prompt_bytes:],
            seed_stream_id=message.request.stream_id,
        )

    def _generate(
        self, message: Generate, prompt: bytes, *, output: bytes = b"", seed_stream_id: int | None = None
    ) -> None:
        scheduler, stream_id = self._scheduler, message.stream_id
        is_known = scheduler.has(stream_id) or stream_id in self._uncompiled
        if is_known or self._reader_generation(slot_of(stream_id)) is None:
            logger.error("request refused: unknown worker or stream in use", extra={"stream_id": stream_id})
            return
        if not self._is_read(stream_id):  # it died on the way
            return
        sequence = self._sequence(message, prompt)
        if seed_stream_id is not None:
            sequence.token_ids = np.frombuffer(prompt + output, "<i4")
            sequence.num_delivered, sequence.seed_stream_id = len(output) // 4, seed_stream_id
        fault = self._fault_or_none(message, prompt, output)
        if fault is not None:
            scheduler.refuse(sequence, FailureCode.INTERNAL, fault)
            return
        if message.sampling.grammar is None:
            scheduler.add(sequence)
            return
        compiled = self._grammars.compile(message.sampling.grammar)
        if compiled.done():
            self._add(sequence, compiled)
        else:
            self._uncompiled[stream_id] = sequence, compiled

    def _sequence(self, message: Generate, prompt: bytes) -> Sequence:
        num_tokens = len(prompt) // 4
        self._num_arrivals += 1
        return Sequence(
            stream_id=message.stream_id,
            request_id=message.request_id,
            sampling=message.sampling,
            token_ids=np.frombuffer(prompt, "<i4", num_tokens),
            num_prompt_tokens=num_tokens,
            max_total_len=min(num_tokens + message.sampling.max_tokens, self._max_total_len),
            arrival=self._num_arrivals,
            arrival_ns=time.monotonic_ns(),
            block_links=_split(message.block_hashes),
            is_cacheable=self._enable_prefix_caching
            and bool(message.block_hashes)
            and not _needs_whole_prompt(message),
            is_streaming=message.is_streaming,
            priority=message.priority,
            fair_key=message.fair_key,
            deadline_s=message.deadline_s,
            pooling=message.pooling,
        )

    def _fault_or_none(self, message: Generate, prompt: bytes, output: bytes) -> str | None:
        """What makes this request impossible to run, in one line. `output` is what a resumed one has been given."""
        if not prompt or len(prompt) % 4:
            return f"the prompt frame has {len(prompt)} bytes, not whole token ids"
        if message.sampling.max_tokens < 1:
            return f"max_tokens is {message.sampling.max_tokens}, at least 1 is needed"
        if message.pooling and (message.pooling not in _POOLINGS or message.sampling.max_tokens > 1):
            return f"pooling {message.pooling} with max_tokens {message.sampling.max_tokens}: an embedding is one pass"
        largest = int(np.frombuffer(prompt + output, "<u4").max())
        if largest >= self._vocab_size:
            return f"token id {largest} is outside the vocabulary of {self._vocab_size}"
        if message.sampling.num_logprobs != NO_LOGPROBS and not message.is_streaming:
            return "logprobs travel with streamed tokens only"
        if not all(message.sampling.bad_words):
            return "a bad word has no tokens"
        named = [*message.sampling.logprob_token_ids, *chain.from_iterable(message.sampling.bad_words)]
        if named and not 0 <= min(named) <= max(named) < self._vocab_size:
            return f"a token of bad_words or logprob_token_ids is outside the vocabulary of {self._vocab_size}"
        allowed = message.sampling.allowed_token_ids
        if allowed and not 0 <= min(allowed) <= max(allowed) < self._vocab_size:
            return f"an allowed token id is outside the vocabulary of {self._vocab_size}"
        for token_id, _ in message.sampling.logit_bias:
            if not 0 <= token_id < self._vocab_size:
                return f"logit_bias token id {token_id} is outside the vocabulary of {self._vocab_size}"
        if (thinking := message.sampling.thinking) is not None:
            markers = (*thinking.start_ids, *thinking.end_ids)
            if not (thinking.start_ids and thinking.end_ids and 0 <= min(markers) <= max(markers) < self._vocab_size):
                return f"the markers of thinking are no tokens of the vocabulary of {self._vocab_size}"
        num_links = len(message.block_hashes) / HASH_BYTES
        if message.block_hashes and num_links != len(prompt) // 4 // self._block_size:
            return f"{num_links:g} block hashes for {len(prompt) // 4} tokens in blocks of {self._block_size}"
        return None


def _needs_whole_prompt(message: Generate) -> bool:
    """Whether every prompt token's hidden state is needed: the cache has none."""
    return message.pooling == Pooling.MEAN or message.sampling.num_prompt_logprobs != NO_LOGPROBS


def _split(block_hashes: bytes) -> list[bytes]:
    return [block_hashes[at : at + HASH_BYTES] for at in range(0, len(block_hashes), HASH_BYTES)]
