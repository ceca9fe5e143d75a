"""Sampling on the device, inside a captured graph, with no host in between: greedy, temperature, min_p, top_k and top_p.

A draw is that of engine_core.sampler: it inverts the row's cumulative distribution, in token order, at the Philox number of
the row's seed and position; chunks of the vocabulary are weighed side by side, and one of them is looked into. Cuts need
no sort: a 16-bit logit has 65 536 values, so that 16 halvings find the k-th largest, and 16 more the smallest set that
reaches a mass of top_p. Ties with the last one are kept. A row whose logits are not finite gets the id -1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_core import sampler

CHUNK = 4096  # tokens of the vocabulary per program
GREEDY_BELOW = tl.constexpr(sampler.GREEDY_BELOW)


@triton.jit
def _value_of(key, like):
    """The 16-bit float at this place of their order, in which negative numbers come first, as float32."""
    bits = tl.where(key < 32768, 65535 - key, key - 32768).to(tl.int16)
    return bits.to(like, bitcast=True).to(tl.float32)


@triton.jit
def _cuts(
    LOGITS, TEMPERATURES, TOP_KS, TOP_PS, MIN_PS, CUTS, VOCAB, row_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """Per row the smallest logit that may be drawn."""
    row = tl.program_id(0).to(tl.int64)
    temperature, k = tl.load(TEMPERATURES + row), tl.load(TOP_KS + row)
    p, min_p = tl.load(TOP_PS + row), tl.load(MIN_PS + row)
    cut = tl.full([], float("-inf"), tl.float32)
    cuts_k = (k > 0) & (k < VOCAB)
    if (temperature >= GREEDY_BELOW) & (cuts_k | (p < 1.0) | (min_p > 0.0)):
        base = LOGITS + row * row_stride
        at = tl.arange(0, BLOCK)
        inverse = 1.0 / temperature
        peaks = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
            peaks = tl.maximum(peaks, x)
        peak = tl.max(peaks, 0)
        if min_p > 0.0:
            cut = peak + temperature * tl.log(min_p)
        if cuts_k:
            low, high = 0, 65536  # at least k logits are as large as the value of key `low`
            for _ in range(16):
                middle = (low + high) // 2
                threshold = _value_of(middle, LOGITS.dtype.element_ty)
                counts = tl.zeros([BLOCK], tl.int32)
                for start in range(0, VOCAB, BLOCK):
                    x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                    counts += ((x >= threshold) & (start + at < VOCAB)).to(tl.int32)
                is_enough = tl.sum(counts, 0) >= k
                low = tl.where(is_enough, middle, low)
                high = tl.where(is_enough, high, middle)
            cut = tl.maximum(cut, _value_of(low, LOGITS.dtype.element_ty))
        if p < 1.0:
            masses = tl.zeros([BLOCK], tl.float32)
            for start in range(0, VOCAB, BLOCK):
                x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                masses += tl.where(x >= cut, tl.exp((x - peak) * inverse), 0.0)
            wanted = tl.sum(masses, 0) * p
            low, high = 0, 65536
            for _ in range(16):
                middle = (low + high) // 2
                threshold = tl.maximum(_value_of(middle, LOGITS.dtype.element_ty), cut)
                masses = tl.zeros([BLOCK], tl.float32)
                for start in range(0, VOCAB, BLOCK):
                    x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                    masses += tl.where(x >= threshold, tl.exp((x - peak) * inverse), 0.0)
                is_enough = tl.sum(masses, 0) >= wanted
                low = tl.where(is_enough, middle, low)
                high = tl.where(is_enough, high, middle)
            cut = tl.maximum(cut, tl.minimum(_value_of(low, LOGITS.dtype.element_ty), peak))
    tl.store(CUTS + row, cut)


@triton.jit
def _weigh(LOGITS, TEMPERATURES, CUTS, PEAKS, IDS, SUMS, VOCAB, row_stride, NUM_CHUNKS, CHUNK: tl.constexpr):
    """Of one chunk of a row: the largest logit, its id (-1 when the chunk is not finite) and the sum of the weights."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature, cut = tl.load(TEMPERATURES + row), tl.load(CUTS + row)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    is_in = token < VOCAB
    x = tl.load(LOGITS + row * row_stride + token, mask=is_in, other=float("-inf")).to(tl.float32)
    num_bad = tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
    peak = tl.max(x, 0)
    peak_id = tl.min(tl.where((x == peak) & is_in, token, 2147483647), 0)
    inverse = 1.0 / tl.where(temperature < GREEDY_BELOW, 1.0, temperature)
    weights = tl.where((x >= cut) & is_in, tl.exp((x - peak) * inverse), 0.0)
    at = row * NUM_CHUNKS + chunk
    tl.store(PEAKS + at, peak)
    tl.store(IDS + at, tl.where(num_bad > 0, -1, peak_id))
    tl.store(SUMS + at, tl.sum(tl.where(peak == float("-inf"), 0.0, weights), 0))


@triton.jit
def _draw(
    LOGITS, TEMPERATURES, CUTS, SEEDS_LOW, SEEDS_HIGH, DRAWS, ROWS, PEAKS, IDS, SUMS, LAST_TOKENS, DRAWN,
    VOCAB, row_stride, NUM_CHUNKS, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature, cut = tl.load(TEMPERATURES + row), tl.load(CUTS + row)
    at = tl.arange(0, BLOCK)
    peaks = tl.load(PEAKS + row * NUM_CHUNKS + at, mask=at < NUM_CHUNKS, other=float("-inf"))
    ids = tl.load(IDS + row * NUM_CHUNKS + at, mask=at < NUM_CHUNKS, other=2147483647)
    peak = tl.max(peaks, 0)
    chosen = tl.min(tl.where(peaks == peak, ids, 2147483647), 0)
    is_bad = (tl.min(ids, 0) < 0) | (peak == float("-inf"))
    if (temperature >= GREEDY_BELOW) & (is_bad == 0):
        inverse = 1.0 / temperature
        sums = tl.load(SUMS + row * NUM_CHUNKS + at, mask=at < NUM_CHUNKS, other=0.0)
        cumulative = tl.cumsum(sums * tl.exp((peaks - peak) * inverse), 0)
        target = _uniform(SEEDS_LOW, SEEDS_HIGH, DRAWS, row) * tl.max(cumulative, 0)
        chunk = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), 0), NUM_CHUNKS - 1)
        before = tl.max(tl.where(at < chunk, cumulative, 0.0), 0)
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(LOGITS + row * row_stride + token, mask=token < VOCAB, other=float("-inf")).to(tl.float32)
        weights = tl.where(x >= cut, tl.exp((x - peak) * inverse), 0.0)
        is_behind = (before + tl.cumsum(weights, 0) > target) & (weights > 0.0)
        last = tl.max(tl.where(weights > 0.0, token, 0), 0)  # rounding may leave nothing behind the target
        chosen = tl.minimum(tl.min(tl.where(is_behind, token, 2147483647), 0), last)
    tl.store(DRAWN + row, tl.where(is_bad, -1, chosen))
    tl.store(
        LAST_TOKENS + tl.load(ROWS + row), tl.where(is_bad, 0, chosen)
    )  # 0: the row ends, but is computed once more


@triton.jit
def _uniform(SEEDS_LOW, SEEDS_HIGH, DRAWS, row):
    """engine_core.philox.uniforms, rounded to float32 and below 1."""
    low = tl.load(SEEDS_LOW + row).to(tl.int64) & 0xFFFFFFFF
    seed = (tl.load(SEEDS_HIGH + row).to(tl.int64) << 32) | low
    position = tl.load(DRAWS + row)
    zero = position * 0
    word, _, _, _ = tl.philox(seed, position, zero, zero, zero)
    return tl.minimum((word.to(tl.int64) & 0xFFFFFFFF).to(tl.float32) * 2.3283064365386963e-10, 0.99999994)


def sample(logits: Tensor, fields: dict[str, Tensor], last_tokens: Tensor, drawn: Tensor) -> None:
    """logits (m, vocab_size) in 16 bits, unit stride; `fields` are those of StepBuffers, 32 bits each. The ids go to
    drawn (m,) int32 and to `last_tokens[fields["sampled_rows"]]`."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    temperatures, top_ps, min_ps = (fields[name].view(torch.float32) for name in ("temperatures", "top_ps", "min_ps"))
    cuts = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    peaks, sums = (torch.empty((num_rows, num_chunks), dtype=torch.float32, device=logits.device) for _ in range(2))
    ids = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=logits.device)
    _cuts[(num_rows,)](
        logits, temperatures, fields["top_ks"], top_ps, min_ps, cuts, vocab_size, logits.stride(0),
        BLOCK=2 * CHUNK, num_warps=8,
    )  # fmt: skip
    _weigh[(num_rows, num_chunks)](
        logits, temperatures, cuts, peaks, ids, sums, vocab_size, logits.stride(0), num_chunks, CHUNK=CHUNK, num_warps=4
    )  # fmt: skip
    _draw[(num_rows,)](
        logits, temperatures, cuts, fields["seeds_low"], fields["seeds_high"], fields["draws"], fields["sampled_rows"],
        peaks, ids, sums, last_tokens, drawn, vocab_size, logits.stride(0), num_chunks,
        CHUNK=CHUNK, BLOCK=triton.next_power_of_2(num_chunks), num_warps=4,
    )  # fmt: skip
