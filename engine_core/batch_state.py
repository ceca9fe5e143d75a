"""The running sequences as columns of numpy arrays: one row each, from start to end or preemption. No torch here.

The scheduler writes, the runner reads. A pass that is under way counts already: `num_tokens` includes the tokens it draws,
whose places in `token_ids` are stored to when it is over. A steady decode step touches these arrays as whole columns
and no Sequence at all.
"""

import numpy as np
from numpy.typing import NDArray

from engine_core.grammar import Matcher
from engine_core.plan import Int32Array, Rows
from engine_core.sequence import NO_ROW, Sequence, SequenceState
from ipc.messages import NO_LIMIT, NO_LOGPROBS, SamplingParams, Thinking

NO_STOP_ID = -1  # pads stop_ids: equal to no token id
NEVER = np.iinfo(np.int32).max

_U64 = (1 << 64) - 1


class BatchState:
    """Columns of `max_num_seqs` rows. A row without occupant holds leftovers; only `is_running` is kept true for it."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        eos_token_ids: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)  # blocks of the longest sequence
        self.eos_token_ids = eos_token_ids
        self._seed = seed

        rows = max_num_seqs
        # Tokens and K/V. np.zeros: untouched pages of long contexts cost no memory.
        self.token_ids = np.zeros((rows, max_model_len), np.int32)  # prompt, then output
        self.num_tokens = np.zeros(rows, np.int32)  # valid in token_ids
        self.num_in_flight = np.zeros(
            rows, np.int32
        )  # of them the last ones that a pass under way draws: not known yet
        self.num_computed = np.zeros(rows, np.int32)  # of them with K/V in the blocks, passes under way included
        self.num_prompt = np.zeros(rows, np.int32)
        self.block_table = np.zeros((rows, self.max_blocks), np.int32)  # physical block of each logical one
        self.num_blocks = np.zeros(rows, np.int32)  # valid in block_table

        # Sampling: read by the sampler for the rows in StepPlan.changed_rows.
        self.temperature = np.zeros(rows, np.float32)  # below 1e-5: greedy
        self.top_p = np.ones(rows, np.float32)
        self.top_k = np.zeros(rows, np.int32)  # 0: off
        self.min_p = np.zeros(rows, np.float32)
        self.presence_penalty = np.zeros(rows, np.float32)
        self.frequency_penalty = np.zeros(rows, np.float32)
        self.repetition_penalty = np.ones(rows, np.float32)
        self.seed = np.zeros(rows, np.uint64)  # always set; a row's draw depends on it and the position only
        self.min_tokens = np.zeros(rows, np.int32)  # put_off_ids are masked while num_tokens - num_prompt is below
        self.put_off_ids: list[tuple[int, ...]] = [()] * rows  # stop ids, and those that end other requests, as in vLLM
        self.stop_ids = np.full(
            (rows, max(1, len(eos_token_ids))), NO_STOP_ID, np.int32
        )  # eos and stop ids; may be widened
        self.logit_bias: list[tuple[tuple[int, float], ...]] = [()] * rows
        self.allowed_token_ids: list[tuple[int, ...]] = [()] * rows
        self.is_restricted = np.zeros(rows, np.bool_)  # to the allowed token ids
        self.thinking: list[Thinking | None] = [None] * rows
        self.has_thinking_limit = np.zeros(rows, np.bool_)
        self.has_grammar = np.zeros(rows, np.bool_)  # the sequence has a matcher
        self.num_logprobs = np.full(rows, NO_LOGPROBS, np.int32)
        self.logprob_token_ids: list[tuple[int, ...]] = [()] * rows
        self.bad_words: list[tuple[tuple[int, ...], ...]] = [()] * rows
        self.has_bad_words = np.zeros(rows, np.bool_)
        self.num_prompt_logprobs = np.full(rows, NO_LOGPROBS, np.int32)
        self.num_scored_prompts = 0  # running rows whose prompt is scored
        self.pooling = np.zeros(rows, np.int8)  # ipc.messages.Pooling
        self.num_pooled = 0  # running rows that pool

        # Stop checks and the way back.
        self.max_total_len = np.zeros(rows, np.int32)
        self.is_running = np.zeros(rows, np.bool_)
        self.is_decoding = np.zeros(rows, np.bool_)  # prompt computed: one new token per step
        self.is_streaming = np.zeros(rows, np.bool_)
        self.next_link_len = np.full(
            rows, NEVER, np.int32
        )  # computed tokens at which the prefix cache is offered a block
        self.slot = np.zeros(rows, np.int32)  # worker
        self.number = np.zeros(rows, np.uint32)  # stream number within the worker's generation
        self.sequences: list[Sequence | None] = [None] * rows
        self.tenancy = np.zeros(rows, np.int64)  # changes whenever the row is given out or taken back

        self._free_rows = list(range(rows - 1, -1, -1))
        self._freed_rows: list[int] = []
        self._changed_rows: list[int] = []

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    @property
    def num_running(self) -> int:
        return self.max_num_seqs - len(self._free_rows)

    def add(self, sequence: Sequence) -> int:
        """Give a waiting sequence a free row; nothing of it is computed yet. There must be one."""
        row = self._free_rows.pop()
        num_tokens = len(sequence.token_ids)
        self.token_ids[row, :num_tokens] = sequence.token_ids
        self.num_tokens[row] = num_tokens
        self.num_in_flight[row] = 0
        self.num_computed[row] = 0
        self.num_prompt[row] = sequence.num_prompt_tokens
        self.num_blocks[row] = 0
        self.next_link_len[row] = NEVER
        self.max_total_len[row] = sequence.max_total_len
        self.is_running[row] = True
        self.is_decoding[row] = False
        self.is_streaming[row] = sequence.is_streaming
        self.slot[row] = sequence.slot
        self.number[row] = sequence.number
        seed_stream_id = sequence.stream_id if sequence.seed_stream_id is None else sequence.seed_stream_id
        self._set_sampling(row, sequence.sampling, seed_stream_id)
        self.pooling[row] = sequence.pooling
        self.num_pooled += bool(sequence.pooling)
        self.num_scored_prompts += sequence.sampling.num_prompt_logprobs != NO_LOGPROBS
        self.sequences[row] = sequence
        self.tenancy[row] += 1
        self._changed_rows.append(row)
        sequence.row = row
        sequence.state = SequenceState.RUNNING
        return row

    def remove(self, row: int) -> Sequence:
        """Take the row back. Its tokens stay readable until the row is given out again. The blocks are the caller's."""
        sequence = self.sequences[row]
        assert sequence is not None
        self.sequences[row] = None
        self.tenancy[row] += 1
        self.is_running[row] = False
        self.is_decoding[row] = False
        sequence.row = NO_ROW
        self.num_pooled -= bool(sequence.pooling)
        self.num_scored_prompts -= sequence.sampling.num_prompt_logprobs != NO_LOGPROBS
        self._free_rows.append(row)
        self._freed_rows.append(row)
        return sequence

    def matcher_of(self, row: int) -> Matcher:
        """Of a row that `has_grammar`."""
        sequence = self.sequences[row]
        assert sequence is not None and sequence.matcher is not None
        return sequence.matcher

    def num_known(self, row: int) -> int:
        """Tokens of this row that no pass under way is still to draw."""
        return int(self.num_tokens[row] - self.num_in_flight[row])

    def output_ids(self, row: int) -> Int32Array:
        """A copy of what was generated in this row."""
        return self.token_ids[row, self.num_prompt[row] : self.num_known(row)].copy()

    def take_freed_rows(self) -> Rows:
        """Rows given up since the last call."""
        freed, self._freed_rows = self._freed_rows, []
        return np.array(freed, np.intp)

    def take_changed_rows(self) -> Rows:
        """Rows with a new occupant since the last call; one that has left again is not among them."""
        changed, self._changed_rows = self._changed_rows, []
        return np.array([row for row in dict.fromkeys(changed) if self.is_running[row]], np.intp)

    def _set_sampling(self, row: int, sampling: SamplingParams, stream_id: int) -> None:
        self.temperature[row] = sampling.temperature
        self.top_p[row] = sampling.top_p
        self.top_k[row] = sampling.top_k
        self.min_p[row] = sampling.min_p
        self.presence_penalty[row] = sampling.presence_penalty
        self.frequency_penalty[row] = sampling.frequency_penalty
        self.repetition_penalty[row] = sampling.repetition_penalty
        self.seed[row] = _mix(self._seed, stream_id) if sampling.seed is None else sampling.seed & _U64
        self.min_tokens[row] = sampling.min_tokens
        self.logit_bias[row] = sampling.logit_bias
        self.allowed_token_ids[row] = sampling.allowed_token_ids
        self.is_restricted[row] = bool(sampling.allowed_token_ids)
        thinking = sampling.thinking
        self.thinking[row] = thinking
        self.has_thinking_limit[row] = thinking is not None and thinking.max_tokens != NO_LIMIT
        self.has_grammar[row] = sampling.grammar is not None
        self.num_logprobs[row] = sampling.num_logprobs
        self.logprob_token_ids[row] = sampling.logprob_token_ids
        self.bad_words[row] = sampling.bad_words
        self.has_bad_words[row] = bool(sampling.bad_words)
        self.num_prompt_logprobs[row] = sampling.num_prompt_logprobs
        ignores_eos = sampling.ignore_eos and sampling.grammar is None  # a grammar has no other end
        self.put_off_ids[row] = (*self.eos_token_ids, *sampling.stop_token_ids)
        stop_ids = sampling.stop_token_ids if ignores_eos else self.put_off_ids[row]
        self._widen_stop_ids(len(stop_ids))
        self.stop_ids[row, : len(stop_ids)] = stop_ids
        self.stop_ids[row, len(stop_ids) :] = NO_STOP_ID

    def _widen_stop_ids(self, width: int) -> None:
        missing = width - self.stop_ids.shape[1]
        if missing > 0:
            pad: NDArray[np.int32] = np.full((self.max_num_seqs, missing), NO_STOP_ID, np.int32)
            self.stop_ids = np.concatenate((self.stop_ids, pad), axis=1)


def _mix(seed: int, stream_id: int) -> int:
    """The 64-bit seed of a request that brought none: splitmix64 of the engine's seed and the stream."""
    z = (seed * 0x9E3779B97F4A7C15 + stream_id + 0x9E3779B97F4A7C15) & _U64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _U64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _U64
    return z ^ z >> 31
