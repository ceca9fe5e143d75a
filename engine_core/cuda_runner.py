"""Computes plans on a GPU: decode steps as captured graphs, steps with prefill as graphs between the layers' attention or, if
they are large, eagerly; tokens are drawn on the device.

A step is one copy in, the pass, one copy out and an event that `result` waits for. What a row drew last stays on the
device, where its next step reads it: the next plan is launched before the host knows the tokens. Rows with rules of their
own are drawn again by them, behind the captured pass (engine_core.device_rules), and log-probabilities are found there too
(engine_core.device_scores). Rows that ask for what only `engine_core.sampler` does (grammars, limits on thinking, rules of
uncommon size) are sampled again from their logits by it; while one runs, the runner does not run ahead, because its next
draw depends on what the host knows of the last one.

A draft is an entry of its own in a step: it attends to what its row's entries before it have stored.
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
from engine_core.attention.cuda import CudaAttention
from engine_core.batch_state import BatchState
from engine_core.cuda_graphs import DecodeGraphs, buckets_up_to
from engine_core.device_rules import DeviceRules
from engine_core.device_scores import DeviceScorer, PendingScores
from engine_core.drafting import Draws, draws_of, in_single_tokens
from engine_core.kv_cache import KvCache
from engine_core.models.decoder import Decoder
from engine_core.plan import DEAD_END, NO_FINITE_LOGITS, Int32Array, PromptScores, Rows, StepPlan, StepResult
from engine_core.pooler import Pooler
from engine_core.prefill_graphs import PrefillGraphs
from engine_core.prefix_groups import MIN_ROWS, PrefixGroups, PrefixTiles, rows_per_tile
from engine_core.prompt_scorer import PromptScorer
from engine_core.rehearsal import rehearse
from engine_core.rule_records import has_rules, record_of_or_none
from engine_core.sampler import Sampler
from engine_core.step_buffers import SpecialRows, StepBuffers
from ipc.messages import NO_LOGPROBS

logger = logging.getLogger(__name__)

GRAPH_MARGIN_BYTES = 1 << 30  # for captured graphs, kernels and what their libraries take
SHARING_BUCKETS = slice(5, None, 4)  # of the others, from 32 rows: each is 0.2 s of the start with its kernels
MANY_CUTS = 128  # rows up to which kernels for shared prefixes are cut in ever other ways: passes with prefill take any
NOT_FINITE = -1  # the device sampler's id for a row without finite logits


class _Returned:
    """Where the ids of one step arrive."""

    def __init__(self, max_draws: int) -> None:
        self.memory = torch.zeros(max_draws, dtype=torch.int32, pin_memory=True)
        self.token_ids: Int32Array = self.memory.numpy()
        self.is_done = torch.cuda.Event()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, eq=False)
class CudaStep:
    """A pass under way."""

    rows: Rows  # in the order of computing
    order: NDArray[np.intp] | None  # their places among the plan's sampled rows, if it is another
    returned: _Returned
    is_held: NDArray[np.bool_]  # by row: where no finite logit may be the request's own doing
    pending_scores: PendingScores | None
    draws: Draws | None  # of a plan with drafts
    resampled: StepResult | None
    resampled_at: NDArray[np.intp]
    embeddings: dict[int, NDArray[np.float32]]
    prompt_scores: dict[int, PromptScores]

    def result(self) -> StepResult:
        self.returned.is_done.synchronize()
        token_ids = self.returned.token_ids[: len(self.rows)].copy()
        scores = {} if self.pending_scores is None else self.pending_scores.scores(token_ids)
        failures, num_accepted = {}, None
        if self.resampled is not None:
            scores |= self.resampled.scores
            token_ids[self.resampled_at] = self.resampled.token_ids
            failures = dict(self.resampled.failures)
        if len(token_ids) and token_ids.min() == NOT_FINITE:
            is_bad = token_ids == NOT_FINITE
            for row in self.rows[is_bad].tolist():
                failures[row] = DEAD_END if self.is_held[row] else NO_FINITE_LOGITS
            token_ids[is_bad] = 0
        if self.order is not None:
            token_ids[self.order] = token_ids.copy()
        if self.draws is not None:
            num_accepted, token_ids = self.draws.verified(token_ids)
        return StepResult(token_ids, failures, scores, self.embeddings, self.prompt_scores, num_accepted)


class CudaRunner:
    """engine_core.plan.Runner over a Decoder whose attention this is."""

    def __init__(
        self,
        decoder: Decoder,
        attention: CudaAttention,
        kv_cache: KvCache,
        state: BatchState,
        rules: DeviceRules,
        device: torch.device,
        *,
        max_batched_tokens: int,
        max_drafts: int,
        shares_prefixes: bool,
        beat: Callable[[], None],
    ) -> None:
        """`shares_prefixes`: rows may have blocks in common, and attention reads those once for many rows."""
        self.num_blocks = kv_cache.num_blocks
        self.kv_cache = kv_cache
        self.is_eager = False  # tests compare
        self._decoder, self._pools, self._state, self._beat = decoder, kv_cache.pools, state, beat
        self._rules, self._device = rules, device
        self._takes_drafts = max_drafts > 0
        max_seqs, dtype = state.max_num_seqs, kv_cache.pools[0].dtype
        max_draws = max_seqs + max_drafts
        tile = rows_per_tile(decoder.config.num_heads, decoder.config.num_kv_heads) if shares_prefixes else 0
        self._groups = PrefixGroups(state, tile) if shares_prefixes else None
        self._decodes, self._mixed = (
            StepBuffers(state, size, max_draws, device, rows_per_tile=tile, knows_tokens=self._takes_drafts)
            for size in (max_draws, max(max_batched_tokens, max_draws))
        )
        buckets = buckets_up_to(max_draws)
        self._graphs = DecodeGraphs(buckets, self._decode_pass)
        self._sharing_graphs = DecodeGraphs(
            sorted({*buckets[SHARING_BUCKETS], max_draws}), partial(self._decode_pass, shares_prefixes=True)
        )
        self._prefill_graphs = PrefillGraphs(decoder, attention, kv_cache.pools, self._mixed.device, max_batched_tokens)
        self._cut_buckets = [size for size in buckets if MIN_ROWS <= size <= MANY_CUTS]
        vocab_size = decoder.config.vocab_size
        self._logits = torch.zeros((max_draws, vocab_size), dtype=dtype, device=device)
        self._scratch = device_sampler.scratch_for(max_draws, vocab_size, device)
        self._drawn = torch.zeros(max_draws, dtype=torch.int32, device=device)
        self._last_tokens = torch.zeros(max_seqs + 1, dtype=torch.int32, device=device)  # by row; one more for padding
        self._returned, self._other = (_Returned(max_draws) for _ in range(2))
        self._scorer = DeviceScorer(state, rules.records, max_draws)
        self._host_sampler = Sampler(state)
        self._pooler = Pooler(state)
        self._prompt_scorer = PromptScorer(state, decoder.logits)
        self._needs_host = np.zeros(max_seqs, np.bool_)  # rows that the device does not sample alone
        self._is_ruled, self._is_scored = np.zeros(max_seqs, np.bool_), np.zeros(max_seqs, np.bool_)  # of the others

    @property
    def runs_ahead(self) -> bool:
        return not self._needs_host.any()

    @torch.inference_mode()
    def warm_up(self) -> None:
        self._graphs.capture(self._decodes.send_padding, self._beat)
        if self._groups is not None:
            self._sharing_graphs.capture(self._decodes.send_padding, self._beat, beside=self._graphs)
            for bucket in self._cut_buckets:
                self._decodes.send_padding(bucket)
                self._decode_pass(bucket, shares_prefixes=True)
        self._prefill_graphs.capture(self._graphs.pool, self._beat)
        rehearse(self, self._state)
        torch.cuda.synchronize()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> CudaStep:
        self._note_changes(plan)
        draws = None if plan.num_drafts is None else draws_of(plan, self._state)
        plan = in_single_tokens(plan)
        rows, order = plan.sampled_rows, None
        embeddings: dict[int, NDArray[np.float32]] = {}
        prompt_scores: dict[int, PromptScores] = {}
        if plan.num_decodes == len(plan.rows):
            order = np.argsort(-plan.context_lens, kind="stable")  # longest first: the device ends evenly
            rows, contexts = rows[order], plan.context_lens[order]
            special, fields = self._special_rows(rows), self._decodes.device
            tiles = self._tiles_or_none(rows, contexts)
            graphs = self._graphs if tiles is None else self._sharing_graphs
            bucket = graphs.bucket(len(rows))
            self._decodes.send_decodes(rows, contexts, special, bucket, tiles)
            graphs.run(bucket, is_eager=self.is_eager)
        else:
            special, fields = self._special_rows(rows), self._mixed.device
            hidden = self._mixed_pass(plan, special, len(rows))
            if self._state.num_pooled:
                embeddings = self._pooler.pool(plan, hidden)
            if self._state.num_scored_prompts:
                prompt_scores = self._prompt_scorer.score(plan, hidden)
        pending_scores = self._treat(special, rows, fields)
        resampled_at = np.flatnonzero(self._needs_host[rows])
        resampled = self._resample(rows, resampled_at) if len(resampled_at) else None
        self._returned, self._other = self._other, self._returned
        self._returned.memory[: len(rows)].copy_(self._drawn[: len(rows)], non_blocking=True)
        self._returned.is_done.record()
        return CudaStep(
            rows, order, self._returned, self._state.has_bad_words, pending_scores, draws, resampled, resampled_at,
            embeddings, prompt_scores,
        )  # fmt: skip

    def _tiles_or_none(self, rows: Rows, contexts: Int32Array) -> PrefixTiles | None:
        return None if self._groups is None else self._groups.tiles_or_none(rows, contexts)

    def _decode_pass(self, bucket: int, *, shares_prefixes: bool = False) -> None:
        fields = self._decodes.device
        token_ids = self._first_tokens(fields, bucket)
        metadata = self._decodes.decode_metadata(bucket, shares_prefixes=shares_prefixes)
        self._draw(self._decoder(token_ids, fields["positions"][:bucket], self._pools, metadata), fields)

    def _first_tokens(self, fields: dict[str, Tensor], num_decodes: int) -> Tensor:
        """(num_decodes,) what each decode begins with: what its row drew last, or what the host sent."""
        drawn = self._last_tokens.index_select(0, fields["rows"][:num_decodes])
        if not self._takes_drafts:
            return drawn
        sent = fields["token_ids"][:num_decodes]
        return torch.where(sent < 0, drawn, sent)

    def _mixed_pass(self, plan: StepPlan, special: SpecialRows, num_sampled: int) -> Tensor:
        """(num_tokens, hidden_size), of which embeddings and the scores of prompts are made: never of rows that decode."""
        fields, num_tokens, num_decodes = self._mixed.device, plan.num_tokens, plan.num_decodes
        tiles = self._tiles_or_none(plan.rows[:num_decodes], plan.context_lens[:num_decodes])
        size = self._prefill_graphs.size_or_none(num_tokens)
        metadata = self._mixed.send_mixed(plan, special, size or num_tokens, tiles)
        token_ids = fields["token_ids"][:num_tokens]
        if num_decodes:
            token_ids[:num_decodes] = self._first_tokens(fields, num_decodes)
        if size is None:
            hidden = self._decoder(token_ids, fields["positions"][:num_tokens], self._pools, metadata)
        else:
            hidden = self._prefill_graphs.run(num_tokens, size, metadata, is_eager=self.is_eager)
        if num_sampled:
            self._draw(hidden.index_select(0, fields["sampled"][:num_sampled]), fields)
        return hidden

    def _draw(self, hidden: Tensor, fields: dict[str, Tensor]) -> None:
        logits = self._logits[: len(hidden)]
        self._decoder.narrow_logits(hidden, out=logits)
        device_sampler.sample(logits, fields, self._last_tokens, self._drawn, self._scratch)

    def _special_rows(self, rows: Rows) -> SpecialRows:
        return SpecialRows(np.flatnonzero(self._is_ruled[rows]), np.flatnonzero(self._is_scored[rows]))

    def _treat(self, special: SpecialRows, rows: Rows, fields: dict[str, Tensor]) -> PendingScores | None:
        """What the rows of a pass that is launched ask for beside a plain draw."""
        if len(special.ruled):
            places = fields["ruled"][: len(special.ruled)]
            self._rules.sample(self._logits, fields, places, self._last_tokens, self._drawn)
        if not len(special.scored):
            return None
        places = fields["scored"][: len(special.scored)]
        return self._scorer.score(self._logits, fields, places, self._drawn, rows[special.scored], special.scored)

    def _resample(self, rows: Rows, at: NDArray[np.intp]) -> StepResult:
        logits = self._logits[torch.from_numpy(at).to(self._device)].float()
        result = self._host_sampler.sample(logits, rows[at])
        places = torch.from_numpy(rows[at]).to(self._device)
        self._last_tokens[places] = torch.from_numpy(result.token_ids).to(self._device)
        return result

    def _note_changes(self, plan: StepPlan) -> None:
        state, changed = self._state, plan.changed_rows
        for kind in (self._needs_host, self._is_ruled, self._is_scored):
            kind[plan.freed_rows] = False
            kind[changed] = False
        if not len(changed):
            return
        if self._groups is not None:
            self._groups.forget()
        self._needs_host[changed] = state.has_thinking_limit[changed] | state.has_grammar[changed]
        self._is_ruled[changed] = has_rules(state, changed)
        self._is_scored[changed] = state.num_logprobs[changed] != NO_LOGPROBS
        records = {}
        for row in changed[(self._is_ruled | self._is_scored)[changed] & ~self._needs_host[changed]].tolist():
            record = record_of_or_none(state, row)
            if record is None:
                self._needs_host[row] = True
            else:
                records[row] = record
        self._is_ruled &= ~self._needs_host
        self._is_scored &= ~self._needs_host
        if records:
            self._rules.send(records)


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
