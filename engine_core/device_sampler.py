"""Sampling on the device, inside a captured graph, with no host in between: greedy, temperature, min_p, top_k and top_p.

A draw is that of engine_core.sampler: it inverts the row's cumulative distribution, in token order, at the Philox number of
the row's seed and position; chunks of the vocabulary are weighed side by side, and one of them is looked into. Cuts need
no sort: a logit of b bits has 2^b values, so that b halvings find the k-th largest, and b more the smallest set that
reaches a mass of top_p. Ties with the last one are kept. A row whose logits are not finite gets the id -1.

The rows of `logits` are the step's, or, with `places`, those of a few of them: engine_core.device_rules draws so from what
their rules made of the logits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_core import sampler

CHUNK = 4096  # tokens of the vocabulary per program
GREEDY_BELOW = tl.constexpr(sampler.GREEDY_BELOW)


@triton.jit
def _place_of(PLACES, row, HAS_PLACES: tl.constexpr):
    return tl.load(PLACES + row).to(tl.int64) if HAS_PLACES else row


@triton.jit
def _value_of(key, like, BITS: tl.constexpr):
    """The float of so many bits at this int64 place of their order, in which negative numbers come first, as float32."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    bits = tl.where(key < HALF, 2 * HALF - 1 - key, key - HALF)
    bits = bits.to(tl.int32) if BITS == 32 else bits.to(tl.int16)
    return bits.to(like, bitcast=True).to(tl.float32)


@triton.jit
def _cuts(
    LOGITS, PLACES, TEMPERATURES, TOP_KS, TOP_PS, MIN_PS, CUTS, VOCAB, row_stride,
    BLOCK: tl.constexpr, BITS: tl.constexpr, HAS_PLACES: tl.constexpr,
):  # fmt: skip
    """Per row the smallest logit that may be drawn."""
    row = tl.program_id(0).to(tl.int64)
    place = _place_of(PLACES, row, HAS_PLACES)
    temperature, k = tl.load(TEMPERATURES + place), tl.load(TOP_KS + place)
    p, min_p = tl.load(TOP_PS + place), tl.load(MIN_PS + place)
    zero = row * 0
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
            low, high = zero, zero + (1 << BITS)  # at least k logits are as large as the value of key `low`
            for _ in range(BITS):
                middle = (low + high) // 2
                threshold = _value_of(middle, LOGITS.dtype.element_ty, BITS)
                counts = tl.zeros([BLOCK], tl.int32)
                for start in range(0, VOCAB, BLOCK):
                    x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                    counts += ((x >= threshold) & (start + at < VOCAB)).to(tl.int32)
                is_enough = tl.sum(counts, 0) >= k
                low = tl.where(is_enough, middle, low)
                high = tl.where(is_enough, high, middle)
            cut = tl.maximum(cut, _value_of(low, LOGITS.dtype.element_ty, BITS))
        if p < 1.0:
            masses = tl.zeros([BLOCK], tl.float32)
            for start in range(0, VOCAB, BLOCK):
                x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                masses += tl.where(x >= cut, tl.exp((x - peak) * inverse), 0.0)
            wanted = tl.sum(masses, 0) * p
            low, high = zero, zero + (1 << BITS)
            for _ in range(BITS):
                middle = (low + high) // 2
                threshold = tl.maximum(_value_of(middle, LOGITS.dtype.element_ty, BITS), cut)
                masses = tl.zeros([BLOCK], tl.float32)
                for start in range(0, VOCAB, BLOCK):
                    x = tl.load(base + start + at, mask=start + at < VOCAB, other=float("-inf")).to(tl.float32)
                    masses += tl.where(x >= threshold, tl.exp((x - peak) * inverse), 0.0)
                is_enough = tl.sum(masses, 0) >= wanted
                low = tl.where(is_enough, middle, low)
                high = tl.where(is_enough, high, middle)
            cut = tl.maximum(cut, tl.minimum(_value_of(low, LOGITS.dtype.element_ty, BITS), peak))
    tl.store(CUTS + row, cut)


@triton.jit
def _weigh(
    LOGITS, PLACES, TEMPERATURES, CUTS, PEAKS, IDS, SUMS, VOCAB, row_stride, NUM_CHUNKS,
    CHUNK: tl.constexpr, HAS_PLACES: tl.constexpr,
):  # fmt: skip
    """Of one chunk of a row: the largest logit, its id (-1 when the chunk is not finite) and the sum of the weights."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(TEMPERATURES + _place_of(PLACES, row, HAS_PLACES))
    cut = tl.load(CUTS + row)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    is_in = token < VOCAB
    x = tl.load(LOGITS + row * row_stride + token, mask=is_in, other=float("-inf")).to(tl.float32)
    num_bad = tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
    peak = tl.max(x, 0)
    peak_id = tl.min(tl.where((x == peak) & is_in, token, 2147483647), 0)
    inverse = 1.0 / tl.where(temperature < GREEDY_BELOW, 1.0, temperature)
    shift = tl.where(peak == float("-inf"), 0.0, peak)  # nothing of this chunk may be drawn
    weights = tl.where((x >= cut) & is_in, tl.exp((x - shift) * inverse), 0.0)
    at = row * NUM_CHUNKS + chunk
    tl.store(PEAKS + at, peak)
    tl.store(IDS + at, tl.where(num_bad > 0, -1, peak_id))
    tl.store(SUMS + at, tl.sum(weights, 0))


@triton.jit
def _draw(
    LOGITS, PLACES, TEMPERATURES, CUTS, SEEDS_LOW, SEEDS_HIGH, DRAWS, ROWS, PEAKS, IDS, SUMS, LAST_TOKENS, DRAWN,
    VOCAB, row_stride, NUM_CHUNKS, CHUNK: tl.constexpr, BLOCK: tl.constexpr, HAS_PLACES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = _place_of(PLACES, row, HAS_PLACES)
    temperature, cut = tl.load(TEMPERATURES + place), tl.load(CUTS + row)
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
        target = _uniform(SEEDS_LOW, SEEDS_HIGH, DRAWS, place) * tl.max(cumulative, 0)
        chunk = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), 0), NUM_CHUNKS - 1)
        before = tl.max(tl.where(at < chunk, cumulative, 0.0), 0)
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(LOGITS + row * row_stride + token, mask=token < VOCAB, other=float("-inf")).to(tl.float32)
        weights = tl.where(x >= cut, tl.exp((x - peak) * inverse), 0.0)
        is_behind = (before + tl.cumsum(weights, 0) > target) & (weights > 0.0)
        last = tl.max(tl.where(weights > 0.0, token, 0), 0)  # rounding may leave nothing behind the target
        chosen = tl.minimum(tl.min(tl.where(is_behind, token, 2147483647), 0), last)
    tl.store(DRAWN + place, tl.where(is_bad, -1, chosen))
    tl.store(
        LAST_TOKENS + tl.load(ROWS + place), tl.where(is_bad, 0, chosen)
    )  # 0: the row ends, but is computed once more


@triton.jit
def _uniform(SEEDS_LOW, SEEDS_HIGH, DRAWS, place):
    """engine_core.philox.uniforms, rounded to float32 and below 1."""
    low = tl.load(SEEDS_LOW + place).to(tl.int64) & 0xFFFFFFFF
    seed = (tl.load(SEEDS_HIGH + place).to(tl.int64) << 32) | low
    position = tl.load(DRAWS + place)
    zero = position * 0
    word, _, _, _ = tl.philox(seed, position, zero, zero, zero)
    return tl.minimum((word.to(tl.int64) & 0xFFFFFFFF).to(tl.float32) * 2.3283064365386963e-10, 0.99999994)


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """What the kernels of one call leave for each other; calls on one stream may share it."""

    cuts: Tensor  # (rows,) float32
    peaks: Tensor  # (rows, chunks) float32
    sums: Tensor  # likewise
    ids: Tensor  # (rows, chunks) int32


def scratch_for(num_rows: int, vocab_size: int, device: torch.device) -> Scratch:
    chunks = (num_rows, triton.cdiv(vocab_size, CHUNK))
    peaks, sums = (torch.empty(chunks, dtype=torch.float32, device=device) for _ in range(2))
    cuts = torch.empty(num_rows, dtype=torch.float32, device=device)
    return Scratch(cuts, peaks, sums, torch.empty(chunks, dtype=torch.int32, device=device))


def sample(
    logits: Tensor,
    fields: dict[str, Tensor],
    last_tokens: Tensor,
    drawn: Tensor,
    scratch: Scratch,
    places: Tensor | None = None,
) -> None:
    """logits (m, vocab_size) in 16 or 32 bits, unit stride; `fields` are those of StepBuffers, 32 bits each. The ids go to
    drawn (m,) int32 and to `last_tokens[fields["sampled_rows"]]`; with (m,) `places`, row i stands for `fields` and `drawn`
    at places[i]."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    temperatures, top_ps, min_ps = (fields[name].view(torch.float32) for name in ("temperatures", "top_ps", "min_ps"))
    has_places = places is not None
    at = fields["sampled_rows"] if places is None else places  # not read without places
    _cuts[(num_rows,)](
        logits, at, temperatures, fields["top_ks"], top_ps, min_ps, scratch.cuts, vocab_size, logits.stride(0),
        BLOCK=2 * CHUNK, BITS=8 * logits.element_size(), HAS_PLACES=has_places, num_warps=8,
    )  # fmt: skip
    _weigh[(num_rows, num_chunks)](
        logits, at, temperatures, scratch.cuts, scratch.peaks, scratch.ids, scratch.sums, vocab_size, logits.stride(0),
        num_chunks, CHUNK=CHUNK, HAS_PLACES=has_places, num_warps=4,
    )  # fmt: skip
    _draw[(num_rows,)](
        logits, at, temperatures, scratch.cuts, fields["seeds_low"], fields["seeds_high"], fields["draws"],
        fields["sampled_rows"], scratch.peaks, scratch.ids, scratch.sums, last_tokens, drawn, vocab_size, logits.stride(0),
        num_chunks, CHUNK=CHUNK, BLOCK=triton.next_power_of_2(num_chunks), HAS_PLACES=has_places, num_warps=4,
    )  # fmt: skip
