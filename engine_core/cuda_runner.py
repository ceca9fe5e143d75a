"""Computes plans on a GPU: decode steps as captured graphs, steps with prefill eagerly, tokens drawn on the device.

A step is one copy in, the pass, one copy out and an event that `result` waits for. What a row drew last stays on the
device, where its next step reads it: the next plan is launched before the host knows the tokens. Rows that ask for what
only `engine_core.sampler` does (penalties, biases, min_tokens, grammars, limits, logprobs) are sampled again from their
logits by it; while one runs, the runner does not run ahead, because its next draw depends on what the host knows of the
last one.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core import device_sampler
from engine_core.attention.base import CudaMetadata
from engine_core.batch_state import BatchState
from engine_core.cuda_graphs import DecodeGraphs, buckets_up_to
from engine_core.kv_cache import KvCache
from engine_core.models.decoder import Decoder
from engine_core.plan import NO_FINITE_LOGITS, Int32Array, PromptScores, Rows, StepPlan, StepResult
from engine_core.pooler import Pooler
from engine_core.prefix_groups import PrefixGroups, PrefixTiles, rows_per_tile
from engine_core.prompt_scorer import PromptScorer
from engine_core.sampler import Sampler
from engine_core.step_buffers import StepBuffers
from ipc.messages import NO_LOGPROBS

logger = logging.getLogger(__name__)

GRAPH_MARGIN_BYTES = 1 << 30  # for captured graphs, kernels and what their libraries take
SHARING_BUCKETS = slice(5, None, 4)  # of the others: from 32 rows, and fewer, for each is 0.2 s of the start
NOT_FINITE = -1  # the device sampler's id for a row without finite logits


class _Returned:
    """Where the ids of one step arrive."""

    def __init__(self, max_num_seqs: int) -> None:
        self.memory = torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=True)
        self.token_ids: Int32Array = self.memory.numpy()
        self.is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, eq=False)
class CudaStep:
    """A pass under way."""

    rows: Rows  # in the order of computing
    order: NDArray[np.intp] | None  # their places among the plan's sampled rows, if it is another
    returned: _Returned
    resampled: StepResult | None
    resampled_at: NDArray[np.intp]
    embeddings: dict[int, NDArray[np.float32]]
    prompt_scores: dict[int, PromptScores]

    def result(self) -> StepResult:
        self.returned.is_done.synchronize()
        token_ids = self.returned.token_ids[: len(self.rows)].copy()
        failures, scores = {}, {}
        if self.resampled is not None:
            scores = self.resampled.scores
            token_ids[self.resampled_at] = self.resampled.token_ids
            failures = dict(self.resampled.failures)
        if len(token_ids) and token_ids.min() == NOT_FINITE:
            is_bad = token_ids == NOT_FINITE
            failures |= dict.fromkeys(self.rows[is_bad].tolist(), NO_FINITE_LOGITS)
            token_ids[is_bad] = 0
        if self.order is not None:
            token_ids[self.order] = token_ids.copy()
        return StepResult(token_ids, failures, scores, self.embeddings, self.prompt_scores)


class CudaRunner:
    """engine_core.plan.Runner over a Decoder whose attention is a CudaAttention."""

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KvCache,
        state: BatchState,
        device: torch.device,
        *,
        max_batched_tokens: int,
        shares_prefixes: bool,
        beat: Callable[[], None],
    ) -> None:
        """`shares_prefixes`: rows may have blocks in common, and attention reads those once for many rows."""
        self.num_blocks = kv_cache.num_blocks
        self.kv_cache = kv_cache
        self.is_eager = False  # tests compare
        self._decoder, self._pools, self._state, self._beat = decoder, kv_cache.pools, state, beat
        self._device = device
        max_seqs, dtype = state.max_num_seqs, kv_cache.pools[0].dtype
        tile = rows_per_tile(decoder.config.num_heads, decoder.config.num_kv_heads) if shares_prefixes else 0
        self._groups = PrefixGroups(state, tile) if shares_prefixes else None
        self._decodes = StepBuffers(state, max_seqs, max_seqs, device, rows_per_tile=tile)
        self._mixed = StepBuffers(state, max(max_batched_tokens, max_seqs), max_seqs, device, rows_per_tile=tile)
        buckets = buckets_up_to(max_seqs)
        self._graphs = DecodeGraphs(buckets, self._decode_pass)
        self._sharing_graphs = DecodeGraphs(
            sorted({*buckets[SHARING_BUCKETS], max_seqs}), partial(self._decode_pass, shares_prefixes=True)
        )
        self._logits = torch.zeros((max_seqs, decoder.config.vocab_size), dtype=dtype, device=device)
        self._drawn = torch.zeros(max_seqs, dtype=torch.int32, device=device)
        self._last_tokens = torch.zeros(max_seqs + 1, dtype=torch.int32, device=device)  # by row; one more for padding
        self._returned, self._other = (_Returned(max_seqs) for _ in range(2))
        self._host_sampler = Sampler(state)
        self._pooler = Pooler(state)
        self._prompt_scorer = PromptScorer(state, decoder.logits)
        self._is_narrow = dtype.itemsize == 2
        self._needs_host = np.zeros(max_seqs, np.bool_)  # rows that the device sampler does not do alone

    @property
    def runs_ahead(self) -> bool:
        return not self._needs_host.any()

    @torch.inference_mode()
    def warm_up(self) -> None:
        self._graphs.capture(self._decodes.send_padding, self._beat)
        if self._groups is not None:
            self._sharing_graphs.capture(self._decodes.send_padding, self._beat, beside=self._graphs)
        torch.cuda.synchronize()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> CudaStep:
        self._note_changes(plan)
        rows, order = plan.sampled_rows, None
        embeddings: dict[int, NDArray[np.float32]] = {}
        prompt_scores: dict[int, PromptScores] = {}
        if plan.num_decodes == len(plan.rows):
            order = np.argsort(-plan.context_lens, kind="stable")  # longest first: the device ends evenly
            rows, contexts = rows[order], plan.context_lens[order]
            tiles = self._tiles_or_none(rows, contexts)
            graphs = self._graphs if tiles is None else self._sharing_graphs
            bucket = graphs.bucket(len(rows))
            self._decodes.send_decodes(rows, contexts, bucket, tiles)
            graphs.run(bucket, is_eager=self.is_eager)
        else:
            hidden = self._mixed_pass(plan, len(rows))
            if self._state.num_pooled:
                embeddings = self._pooler.pool(plan, hidden)
            if self._state.num_scored_prompts:
                prompt_scores = self._prompt_scorer.score(plan, hidden)
        resampled_at = np.flatnonzero(self._needs_host[rows])
        resampled = self._resample(rows, resampled_at) if len(resampled_at) else None
        self._returned, self._other = self._other, self._returned
        self._returned.memory[: len(rows)].copy_(self._drawn[: len(rows)], non_blocking=True)
        self._returned.is_done.record()
        return CudaStep(rows, order, self._returned, resampled, resampled_at, embeddings, prompt_scores)

    def _tiles_or_none(self, rows: Rows, contexts: Int32Array) -> PrefixTiles | None:
        return None if self._groups is None else self._groups.tiles_or_none(rows, contexts)

    def _decode_pass(self, bucket: int, *, shares_prefixes: bool = False) -> None:
        fields = self._decodes.device
        token_ids = self._last_tokens.index_select(0, fields["rows"][:bucket])
        metadata = self._decodes.decode_metadata(bucket, shares_prefixes=shares_prefixes)
        self._draw(self._decoder(token_ids, fields["positions"][:bucket], self._pools, metadata), fields)

    def _mixed_pass(self, plan: StepPlan, num_sampled: int) -> Tensor:
        """(num_tokens, hidden_size), of which embeddings and the scores of prompts are made: never of rows that decode."""
        fields, num_tokens, num_decodes = self._mixed.device, plan.num_tokens, plan.num_decodes
        tiles = self._tiles_or_none(plan.rows[:num_decodes], plan.context_lens[:num_decodes])
        metadata = self._mixed.send_mixed(plan, tiles)
        token_ids = fields["token_ids"][:num_tokens]
        if num_decodes:
            torch.index_select(self._last_tokens, 0, fields["rows"][:num_decodes], out=token_ids[:num_decodes])
        hidden = self._decoder(token_ids, fields["positions"][:num_tokens], self._pools, metadata)
        if num_sampled:
            self._draw(hidden.index_select(0, fields["sampled"][:num_sampled]), fields)
        return hidden

    def _draw(self, hidden: Tensor, fields: dict[str, Tensor]) -> None:
        logits = self._logits[: len(hidden)]
        self._decoder.narrow_logits(hidden, out=logits)
        if self._is_narrow:
            device_sampler.sample(logits, fields, self._last_tokens, self._drawn)

    def _resample(self, rows: Rows, at: NDArray[np.intp]) -> StepResult:
        logits = self._logits[torch.from_numpy(at).to(self._device)].float()
        result = self._host_sampler.sample(logits, rows[at])
        places = torch.from_numpy(rows[at]).to(self._device)
        self._last_tokens[places] = torch.from_numpy(result.token_ids).to(self._device)
        return result

    def _note_changes(self, plan: StepPlan) -> None:
        state = self._state
        if self._groups is not None and len(plan.changed_rows):
            self._groups.forget()
        self._needs_host[plan.freed_rows] = False
        for row in plan.changed_rows.tolist():
            self._needs_host[row] = not self._is_narrow or (
                state.presence_penalty[row] != 0.0
                or state.frequency_penalty[row] != 0.0
                or state.repetition_penalty[row] != 1.0
                or state.min_tokens[row] > 0
                or bool(state.logit_bias[row])
                or bool(state.is_restricted[row])
                or bool(state.has_bad_words[row])
                or bool(state.has_thinking_limit[row])
                or bool(state.has_grammar[row])
                or state.num_logprobs[row] != NO_LOGPROBS
            )


@torch.inference_mode()
def pass_bytes(
    decoder: Decoder, state: BatchState, scratch: KvCache, max_batched_tokens: int, device: torch.device
) -> int:
    """What the largest pass takes beside weights and K/V: measured by running one whose K/V goes nowhere."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    num_seqs = min(max(1, -(-max_batched_tokens // state.max_model_len)), state.max_num_seqs)
    lens = [min(state.max_model_len, max_batched_tokens)] * num_seqs
    lens[-1] = min(lens[-1], max(2, max_batched_tokens - sum(lens[:-1])))
    num_tokens = sum(lens)
    zeros = torch.zeros(num_tokens, dtype=torch.int32, device=device)
    lengths = torch.tensor(lens, dtype=torch.int32, device=device)
    metadata = CudaMetadata(
        slot_mapping=zeros - 1,
        block_table=torch.zeros((num_seqs, state.max_blocks), dtype=torch.int32, device=device),
        lengths=lengths,
        cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        num_decodes=0,
        new_lens=tuple(lens),
        total_lens=tuple(lens),
    )
    decoder.narrow_logits(decoder(zeros, zeros, scratch.pools, metadata)[: state.max_num_seqs])
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before + GRAPH_MARGIN_BYTES
    torch.cuda.empty_cache()
    logger.info("largest pass measured", extra={"num_tokens": num_tokens, "mib": taken >> 20})
    return taken
