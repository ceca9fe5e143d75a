"""A request's own rules on the device, for all rows of a step that have some: allowed tokens, bad words, min_tokens, logit
bias and penalties, in the order and with the results of engine_core.sampler.

A row of BatchState has a record here, written when it gets an occupant with rules (engine_core.rule_records). What was
drawn is noted on the device too, as counts per token and as the last tokens of the output, so that neither waits for the
other: a step needs nothing of the host but which of its places have rules. Their logits are widened to float32, edited and
drawn from (engine_core.device_sampler) some rows at a time: a penalty may be smaller than the step between two 16-bit
logits.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from engine_core import device_sampler, rule_records
from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array
from engine_core.rule_records import RECORD_WORDS

MAX_EDITED_ROWS = 128  # at a time: 78 MB for a vocabulary of 152 000
CHUNK = 4096  # tokens of the vocabulary per program
LANES = 128
IN_PROMPT = tl.constexpr(1 << 30)  # in a token's count: it stands in the prompt
HAS_PENALTIES = tl.constexpr(rule_records.HAS_PENALTIES)
PRESENCE = tl.constexpr(rule_records.PRESENCE)
FREQUENCY = tl.constexpr(rule_records.FREQUENCY)
REPETITION = tl.constexpr(rule_records.REPETITION)
MIN_TOKENS = tl.constexpr(rule_records.MIN_TOKENS)
IS_RESTRICTED = tl.constexpr(rule_records.IS_RESTRICTED)
NUM_BIASES = tl.constexpr(rule_records.NUM_BIASES)
NUM_STOPS = tl.constexpr(rule_records.NUM_STOPS)
NUM_WORDS = tl.constexpr(rule_records.NUM_WORDS)
RING = tl.constexpr(rule_records.RING)
RING_TOKENS = tl.constexpr(rule_records.RING_TOKENS)
ENTRIES = tl.constexpr(rule_records.ENTRIES)


@triton.jit
def _ruled(x, bias, token, is_in, record, allowed, counts):
    """What a row's rules make of these logits, but for min_tokens and bad words."""
    if tl.load(record + IS_RESTRICTED) != 0:
        bits = tl.load(allowed + token // 32, mask=is_in, other=0)
        x = tl.where(((bits >> (token % 32)) & 1) != 0, x, float("-inf"))
    x += bias
    if tl.load(record + HAS_PENALTIES) != 0:
        presence = tl.load(record + PRESENCE).to(tl.float32, bitcast=True)
        frequency = tl.load(record + FREQUENCY).to(tl.float32, bitcast=True)
        repetition = tl.load(record + REPETITION).to(tl.float32, bitcast=True)
        seen = tl.load(counts + token, mask=is_in, other=0)
        x = tl.where(seen != 0, tl.where(x > 0, x / repetition, x * repetition), x)
        times = seen & (IN_PROMPT - 1)
        x = tl.where(times > 0, x - (presence + frequency * times.to(tl.float32)), x)
    return x


@triton.jit
def _edit(
    LOGITS, PLACES, ROWS, RECORDS, ALLOWED, COUNTS, EDITED, VOCAB, row_stride, record_stride, allowed_stride,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """All tokens of a row as if it had no bias, bad words or min_tokens."""
    number, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(PLACES + number).to(tl.int64)
    row = tl.load(ROWS + place).to(tl.int64)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    is_in = token < VOCAB
    x = tl.load(LOGITS + place * row_stride + token, mask=is_in, other=float("-inf")).to(tl.float32)
    record, allowed, counts = RECORDS + row * record_stride, ALLOWED + row * allowed_stride, COUNTS + row * VOCAB
    tl.store(EDITED + number * VOCAB + token, _ruled(x, 0.0, token, is_in, record, allowed, counts), mask=is_in)


@triton.jit
def _edit_some(
    LOGITS, PLACES, ROWS, DRAWS, RECORDS, ALLOWED, COUNTS, EDITED, VOCAB, row_stride, record_stride, allowed_stride,
    LANES: tl.constexpr,
):  # fmt: skip
    """The tokens that a row names."""
    number = tl.program_id(0).to(tl.int64)
    place = tl.load(PLACES + number).to(tl.int64)
    row = tl.load(ROWS + place).to(tl.int64)
    draw = tl.load(DRAWS + place)
    record, allowed, counts = RECORDS + row * record_stride, ALLOWED + row * allowed_stride, COUNTS + row * VOCAB
    edited, lane = EDITED + number * VOCAB, tl.arange(0, LANES)
    at = record + ENTRIES
    num_biases = tl.load(record + NUM_BIASES)
    for start in range(0, num_biases, LANES):
        is_in = start + lane < num_biases
        token = tl.load(at + start + lane, mask=is_in, other=0)
        bias = tl.load(at + num_biases + start + lane, mask=is_in, other=0).to(tl.float32, bitcast=True)
        x = tl.load(LOGITS + place * row_stride + token, mask=is_in, other=0.0).to(tl.float32)
        tl.store(edited + token, _ruled(x, bias, token, is_in, record, allowed, counts), mask=is_in)
    tl.debug_barrier()  # a token may have a bias and be forbidden
    at += 2 * num_biases
    num_stops = tl.load(record + NUM_STOPS)
    if draw < tl.load(record + MIN_TOKENS):
        for start in range(0, num_stops, LANES):
            is_in = start + lane < num_stops
            token = tl.load(at + start + lane, mask=is_in, other=0)
            tl.store(edited + token, tl.full([LANES], float("-inf"), tl.float32), mask=is_in)
    at += num_stops
    num_words = tl.load(record + NUM_WORDS)
    for start in range(0, num_words, LANES):
        is_in = start + lane < num_words
        word = record + tl.load(at + start + lane, mask=is_in, other=0)
        num_before = tl.load(word, mask=is_in, other=1) - 1  # tokens of the word before its last
        is_next = is_in & (num_before <= draw)
        for index in range(tl.max(num_before, 0)):
            is_before = is_next & (index < num_before)
            wanted = tl.load(word + 1 + index, mask=is_before, other=0)
            drawn = tl.load(record + RING + (draw - num_before + index) % RING_TOKENS, mask=is_before, other=0)
            is_next = is_next & (wanted == drawn)
        last = tl.load(word + 1 + num_before, mask=is_next, other=0)
        tl.store(edited + last, tl.full([LANES], float("-inf"), tl.float32), mask=is_next)


@triton.jit
def _note(PLACES, ROWS, DRAWS, DRAWN, RECORDS, COUNTS, VOCAB, record_stride):
    """What was drawn, for the next draw of the row."""
    place = tl.load(PLACES + tl.program_id(0)).to(tl.int64)
    row = tl.load(ROWS + place).to(tl.int64)
    token = tl.load(DRAWN + place)
    record = RECORDS + row * record_stride
    if token >= 0:
        tl.store(record + RING + tl.load(DRAWS + place) % RING_TOKENS, token)
        if tl.load(record + HAS_PENALTIES) != 0:
            tl.atomic_add(COUNTS + row * VOCAB + token, 1)


@triton.jit(do_not_specialize=["num_prompt", "num_tokens"], do_not_specialize_on_alignment=["TOKENS", "counts"])
def _count(TOKENS, counts, num_prompt, num_tokens, LANES: tl.constexpr):
    """A row's tokens, into counts that are zero."""
    place = tl.program_id(0) * LANES + tl.arange(0, LANES)
    token = tl.load(TOKENS + place, mask=place < num_tokens, other=0)
    tl.atomic_or(counts + token, tl.full([LANES], IN_PROMPT, tl.int32), mask=place < num_prompt)
    is_output = (place >= num_prompt) & (place < num_tokens)
    tl.atomic_add(counts + token, tl.full([LANES], 1, tl.int32), mask=is_output)


class DeviceRules:
    """The records of all rows, and drawing by them."""

    def __init__(self, state: BatchState, vocab_size: int, device: torch.device) -> None:
        self._state, self._vocab_size = state, vocab_size
        self._is_cuda = device.type == "cuda"
        rows, words = state.max_num_seqs, -(-vocab_size // 32)
        self._host_records, self._host_allowed = self._host(rows, RECORD_WORDS), self._host(rows, words)
        self._host_tokens = self._host(max(1 << 18, state.max_model_len))
        self.records, self._allowed, self._tokens = (
            torch.zeros_like(host, device=device)
            for host in (self._host_records, self._host_allowed, self._host_tokens)
        )
        self._counts = torch.zeros((rows, vocab_size), dtype=torch.int32, device=device)
        num_edited = min(rows, MAX_EDITED_ROWS)
        self._edited = torch.zeros((num_edited, vocab_size), dtype=torch.float32, device=device)
        self._scratch = device_sampler.scratch_for(num_edited, vocab_size, device)
        self._is_sent = torch.cuda.Event() if self._is_cuda else None

    def _host(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int32, pin_memory=self._is_cuda)

    def send(self, records: dict[int, Int32Array]) -> None:
        """The records of these rows, which have new occupants. Before the pass that first draws for them."""
        num_staged = 0
        self._wait_until_sent()
        for row, record in records.items():
            self._send(self._host_records[row, : len(record)], record, self.records[row])
            if record[rule_records.IS_RESTRICTED]:
                bits = np.zeros(32 * self._allowed.shape[1], np.bool_)
                bits[list(self._state.allowed_token_ids[row])] = True
                packed = np.packbits(bits, bitorder="little").view(np.int32)
                self._send(self._host_allowed[row], packed, self._allowed[row])
            if record[rule_records.HAS_PENALTIES]:
                tokens = self._state.token_ids[row, : self._state.num_tokens[row]]
                if num_staged + len(tokens) > len(self._tokens):
                    self._note_sent()
                    self._wait_until_sent()
                    num_staged = 0
                staged = slice(num_staged, num_staged + len(tokens))
                self._send(self._host_tokens[staged], tokens, self._tokens[staged])
                self._counts[row].zero_()
                _count[(triton.cdiv(len(tokens), LANES),)](
                    self._tokens[staged], self._counts[row], int(self._state.num_prompt[row]), len(tokens), LANES=LANES
                )
                num_staged += len(tokens)
        self._note_sent()

    def _send(self, host: Tensor, content: NDArray[np.int32], device: Tensor) -> None:
        host.numpy()[:] = content
        device[: len(host)].copy_(host, non_blocking=True)

    def _note_sent(self) -> None:
        if self._is_sent is not None:
            self._is_sent.record()

    def _wait_until_sent(self) -> None:
        """What is on its way must not be written over."""
        if self._is_sent is not None:
            self._is_sent.synchronize()

    def sample(
        self, logits: Tensor, fields: dict[str, Tensor], places: Tensor, last_tokens: Tensor, drawn: Tensor
    ) -> None:
        """Draw for the (m,) int32 places of a step, as device_sampler.sample does for all of it, by their rules."""
        for first in range(0, len(places), len(self._edited)):
            self._sample(logits, fields, places[first : first + len(self._edited)], last_tokens, drawn)

    def _sample(
        self, logits: Tensor, fields: dict[str, Tensor], places: Tensor, last_tokens: Tensor, drawn: Tensor
    ) -> None:
        m, vocab_size = len(places), self._vocab_size
        edited, rows, draws = self._edited[:m], fields["sampled_rows"], fields["draws"]
        tables = (self.records, self._allowed, self._counts, edited)
        strides = (vocab_size, logits.stride(0), RECORD_WORDS, self._allowed.shape[1])
        chunks = triton.cdiv(vocab_size, CHUNK)
        _edit[(m, chunks)](logits, places, rows, *tables, *strides, CHUNK=CHUNK, num_warps=4)
        _edit_some[(m,)](logits, places, rows, draws, *tables, *strides, LANES=LANES, num_warps=4)
        device_sampler.sample(edited, fields, last_tokens, drawn, self._scratch, places)
        _note[(m,)](places, rows, draws, drawn, self.records, self._counts, vocab_size, RECORD_WORDS, num_warps=1)
