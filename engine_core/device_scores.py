"""Log-probabilities of drawn tokens on the device, for the rows of a step that asked: the model's own, before any rule, as
engine_core.sampler gives them. They come back beside the step's tokens; nobody waits for them."""

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from engine_core import rule_records
from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array, Rows, TokenScores

BLOCK = 4096
LANES = 128
ROWS_AT_ONCE = 64  # whose largest logits are looked for: bounds the memory that takes
MAX_WORDS = 2 + 2 * 20 + 128  # of one row: see apiserver.logprobs.MAX_LOGPROBS and MAX_LOGPROB_TOKEN_IDS
ENTRIES = tl.constexpr(rule_records.ENTRIES)
NUM_BIASES = tl.constexpr(rule_records.NUM_BIASES)
NUM_STOPS = tl.constexpr(rule_records.NUM_STOPS)
NUM_WORDS = tl.constexpr(rule_records.NUM_WORDS)
NUM_ASKED = tl.constexpr(rule_records.NUM_ASKED)


@triton.jit(do_not_specialize=["found_stride", "first_asked"])
def _score(
    LOGITS, PLACES, ROWS, DRAWN, RECORDS, LOG_SUMS, FOUND, VOCAB, row_stride, record_stride, found_stride, first_asked,
    BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The drawn token's log-probability and rank, and the log-probabilities of the tokens that the row asks for."""
    number = tl.program_id(0).to(tl.int64)
    place = tl.load(PLACES + number).to(tl.int64)
    row = tl.load(ROWS + place).to(tl.int64)
    logits, at = LOGITS + place * row_stride, tl.arange(0, BLOCK)
    own = tl.load(logits + tl.maximum(tl.load(DRAWN + place), 0)).to(tl.float32)
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    num_larger = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
        peaks = tl.maximum(peaks, x)
        num_larger += (x > own).to(tl.int32)
    peak = tl.max(peaks, 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        x = tl.load(logits + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
        sums += tl.exp(x - peak)
    log_sum = peak + tl.log(tl.sum(sums, 0))
    found = FOUND + number * found_stride
    tl.store(LOG_SUMS + number, log_sum)
    tl.store(found, (own - log_sum).to(tl.int32, bitcast=True))
    tl.store(found + 1, tl.sum(num_larger, 0) + 1)
    record = RECORDS + row * record_stride
    num_asked = tl.load(record + NUM_ASKED)
    asked = (
        record + ENTRIES + 2 * tl.load(record + NUM_BIASES) + tl.load(record + NUM_STOPS) + tl.load(record + NUM_WORDS)
    )
    lane = tl.arange(0, LANES)
    for start in range(0, num_asked, LANES):
        is_in = start + lane < num_asked
        token = tl.load(asked + start + lane, mask=is_in, other=0)
        x = tl.load(logits + token, mask=is_in, other=0.0).to(tl.float32)
        tl.store(found + first_asked + start + lane, (x - log_sum).to(tl.int32, bitcast=True), mask=is_in)


@dataclass(frozen=True, slots=True, eq=False)
class PendingScores:
    """Of one step; `found` is on its way."""

    rows: Rows  # (m,) of BatchState
    at: NDArray[np.intp]  # (m,) their places among the step's tokens
    counts: list[int]  # of the likeliest tokens, that each asked for
    asked: list[tuple[int, ...]]  # tokens that each asked for
    num_likeliest: int
    found: Int32Array  # (m, words)

    def scores(self, token_ids: Int32Array) -> dict[int, TokenScores]:
        """By row. `token_ids` are the step's; they have arrived."""
        values, k = self.found.view(np.float32), self.num_likeliest
        scores = {}
        drawn = token_ids[self.at].tolist()
        for entry, (row, token, count, asked) in enumerate(
            zip(self.rows.tolist(), drawn, self.counts, self.asked, strict=True)
        ):
            logprob, rank = float(values[entry, 0]), int(self.found[entry, 1])
            ids, logprobs = self.found[entry, 2 : 2 + count].tolist(), values[entry, 2 + k : 2 + k + count].tolist()
            if asked:
                of_asked = values[entry, 2 + 2 * k : 2 + 2 * k + len(asked)].tolist()
                beside = {token: logprob} | {own: of_asked[place] for place, own in enumerate(asked) if own != token}
                ids, logprobs = list(beside), list(beside.values())
            scores[row] = TokenScores(logprob, rank, ids, logprobs)
        return scores


class DeviceScorer:
    def __init__(self, state: BatchState, records: Tensor, max_draws: int) -> None:
        """`records` are those of engine_core.device_rules; a row that is scored has one."""
        self._state, self._records = state, records
        is_cuda = records.is_cuda
        self._host, self._other = (
            torch.zeros(max_draws * MAX_WORDS, dtype=torch.int32, pin_memory=is_cuda) for _ in range(2)
        )
        self._log_sums = torch.zeros(max_draws, dtype=torch.float32, device=records.device)

    def score(
        self, logits: Tensor, fields: dict[str, Tensor], places: Tensor, drawn: Tensor, rows: Rows, at: NDArray[np.intp]
    ) -> PendingScores:
        """Of the (m,) int32 places of a step, which are `at` on the host and of these rows; their tokens are `drawn`."""
        counts = self._state.num_logprobs[rows].tolist()
        asked = [self._state.logprob_token_ids[row] for row in rows.tolist()]
        m, k = len(rows), max(counts)
        found = torch.empty((m, 2 + 2 * k + max(map(len, asked))), dtype=torch.int32, device=logits.device)
        log_sums = self._log_sums[:m]
        _score[(m,)](
            logits, places, fields["sampled_rows"], drawn, self._records, log_sums, found, logits.shape[1],
            logits.stride(0), self._records.stride(0), found.stride(0), 2 + 2 * k, BLOCK=BLOCK, LANES=LANES, num_warps=8,
        )  # fmt: skip
        if k:
            for first in range(0, m, ROWS_AT_ONCE):
                some = slice(first, first + ROWS_AT_ONCE)
                values, ids = logits.index_select(0, places[some]).topk(k, dim=-1)
                found[some, 2 : 2 + k] = ids
                found[some, 2 + k : 2 + 2 * k] = (values.float() - log_sums[some, None]).view(torch.int32)
        self._host, self._other = self._other, self._host
        arriving = self._host[: found.numel()].view(found.shape)
        arriving.copy_(found, non_blocking=True)
        return PendingScores(rows, at, counts, asked, k, arriving.numpy())
