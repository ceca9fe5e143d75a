"""What a GPU step reads: a pinned buffer filled by numpy and its twin on the device, sent in one copy.

Everything is 32 bits wide; a field's place is fixed at start, so that captured graphs find it. The block table comes last:
a step of n sequences sends what stands before it and n rows. Two pinned buffers take turns: one is filled while the
other may still be on its way.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core.attention.base import CudaMetadata, SharedPrefixes
from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array, Rows, StepPlan
from engine_core.prefix_groups import PrefixTiles, max_tiles

PER_TOKEN = ("token_ids", "positions", "slots")
PER_SEQUENCE = ("rows", "lengths")
PER_SAMPLE = (
    "sampled",
    "sampled_rows",
    "temperatures",
    "top_ks",
    "top_ps",
    "min_ps",
    "seeds_low",
    "seeds_high",
    "draws",
    "ruled",
    "scored",
)
APART_FROM = 64  # decodes in a pass with prefill, from which attention takes them by themselves
NO_SLOT = -1
NOT_KNOWN = -1  # a token that only the device knows


@dataclass(frozen=True, slots=True, eq=False)
class SpecialRows:
    """Places among a step's sampled rows of those that ask for more than a plain draw; the host samples none of them."""

    ruled: NDArray[np.intp]  # have rules of their own: engine_core.device_rules
    scored: NDArray[np.intp]  # ask for log-probabilities: engine_core.device_scores


class _Pinned:
    """One side of the pair on the host."""

    def __init__(self, sizes: dict[str, int], table_start: int, table_shape: tuple[int, int]) -> None:
        total = table_start + table_shape[0] * table_shape[1]
        self.memory = torch.zeros(total, dtype=torch.int32, pin_memory=True)
        self.is_sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        flat: Int32Array = self.memory.numpy()
        self.fields: dict[str, Int32Array] = {}
        at = 0
        for field, size in sizes.items():
            self.fields[field] = flat[at : at + size]
            at += size
        self.table = flat[table_start:].reshape(table_shape)


class StepBuffers:
    """Room for `max_tokens` tokens of `max_seqs` sequences. `device[field]` are views that stay where they are.

    `rows` are rows of BatchState; padding has the row behind the last one. Tiles of rows that share a prefix have room for
    `rows_per_tile` of them; with 0 there are no tiles. `knows_tokens`: of the tokens that decodes begin with those are sent
    that the host knows, drafts among them, and NOT_KNOWN for the others.
    """

    def __init__(
        self,
        state: BatchState,
        max_tokens: int,
        max_seqs: int,
        device: torch.device,
        *,
        rows_per_tile: int = 0,
        knows_tokens: bool = False,
    ) -> None:
        self._state, self._rows_per_tile, self._knows_tokens = state, rows_per_tile, knows_tokens
        sizes = dict.fromkeys(PER_TOKEN, max_tokens) | dict.fromkeys((*PER_SEQUENCE, *PER_SAMPLE), max_seqs)
        sizes["cu_seqlens"] = max_seqs + 1
        if rows_per_tile:
            sizes["shared_lens"], sizes["tile_lengths"] = max_seqs, max_tiles(max_seqs)
            sizes["members"] = max_tiles(max_seqs) * rows_per_tile
        self._table_start = -(-sum(sizes.values()) // 32) * 32  # kernels want the table aligned
        table_shape = (max_seqs, state.max_blocks)
        self._host, self._other = (_Pinned(sizes, self._table_start, table_shape) for _ in range(2))
        self._sent = torch.zeros_like(self._host.memory, device=device)
        self.device: dict[str, Tensor] = {}
        at = 0
        for field, size in sizes.items():
            self.device[field] = self._sent[at : at + size]
            at += size
        self._table = self._sent[self._table_start :].view(table_shape)

    def send_decodes(
        self, rows: Rows, contexts: Int32Array, special: SpecialRows, bucket: int, tiles: PrefixTiles | None = None
    ) -> None:
        """One token per sequence with this many before it, padded to `bucket` sequences that read block 0 and store nothing.
        The token itself is on the device already, or a row stands several times with drafts."""
        state = self._state
        host = self._take_turns()
        n, block_size = len(rows), state.block_size
        host["rows"][:n] = rows
        host["positions"][:n] = contexts
        host["slots"][:n] = state.block_table[rows, contexts // block_size] * block_size + contexts % block_size
        host["lengths"][:n] = contexts + 1
        if self._knows_tokens:
            host["token_ids"][:n], host["token_ids"][n:bucket] = self._known_tokens(rows, contexts), 0
        self._pad(n, bucket)
        if tiles is not None:
            self._put_tiles(tiles, bucket)
        self._put_sampling(rows, contexts + 1, special)
        self._put_table(rows, contexts + 1)
        self._send(bucket)

    def send_mixed(
        self, plan: StepPlan, special: SpecialRows, size: int, tiles: PrefixTiles | None = None
    ) -> CudaMetadata:
        """Any plan, its drafts as entries; returns where its K/V lies. The tokens of its decodes are on the device already.
        Behind its tokens are others up to `size`, which store nothing. `tiles` are of the decodes."""
        state, lens = self._state, plan.num_new_tokens
        host = self._take_turns()
        n, num_tokens, block_size = len(plan.rows), plan.num_tokens, state.block_size
        ends = np.cumsum(lens, dtype=np.int32)
        rows = np.repeat(plan.rows, lens)
        positions = np.arange(num_tokens, dtype=np.int32) - np.repeat(ends - lens - plan.context_lens, lens)
        host["token_ids"][:num_tokens] = state.token_ids[rows, positions]
        if self._knows_tokens:
            decodes = plan.rows[: plan.num_decodes]
            host["token_ids"][: len(decodes)] = self._known_tokens(decodes, plan.context_lens[: len(decodes)])
        host["positions"][:num_tokens] = positions
        host["slots"][:num_tokens] = (
            state.block_table[rows, positions // block_size] * block_size + positions % block_size
        )
        for field, padding in (("token_ids", 0), ("positions", 0), ("slots", NO_SLOT)):
            host[field][num_tokens:size] = padding
        totals = plan.context_lens + lens
        host["rows"][:n] = plan.rows
        host["lengths"][:n] = totals
        first = plan.num_decodes
        is_apart = tiles is not None or first >= APART_FROM
        num_before = first if is_apart else 0  # sequences that are not of the varlen call
        host["cu_seqlens"][0], host["cu_seqlens"][1 : n + 1 - num_before] = 0, ends[num_before:] - num_before
        if tiles is not None:
            self._put_tiles(tiles, first)
        host["sampled"][: np.count_nonzero(plan.samples)] = ends[plan.samples] - 1
        self._put_sampling(plan.sampled_rows, totals[plan.samples], special)
        self._put_table(plan.rows, totals)
        self._send(n)
        metadata = CudaMetadata(
            slot_mapping=self.device["slots"][:num_tokens],
            block_table=self._table[:n],
            lengths=self.device["lengths"][:n],
            cu_seqlens=self.device["cu_seqlens"][: n + 1 - num_before],
            num_decodes=first,
            new_lens=tuple(lens[first:].tolist()),
            total_lens=tuple(totals[first:].tolist()),
        )
        if not is_apart:
            return metadata
        behind = replace(
            metadata, block_table=metadata.block_table[first:], lengths=metadata.lengths[first:], num_decodes=0
        )
        shared = None if tiles is None else self._shared_prefixes(first)
        return replace(metadata, shared=shared, behind=behind)

    def decode_metadata(self, bucket: int, *, shares_prefixes: bool = False) -> CudaMetadata:
        """Where the K/V of any decode step of this bucket lies."""
        return CudaMetadata(
            slot_mapping=self.device["slots"][:bucket],
            block_table=self._table[:bucket],
            lengths=self.device["lengths"][:bucket],
            cu_seqlens=self.device["cu_seqlens"][: bucket + 1],
            num_decodes=bucket,
            new_lens=(),
            total_lens=(),
            shared=self._shared_prefixes(bucket) if shares_prefixes else None,
        )

    def _shared_prefixes(self, num_rows: int) -> SharedPrefixes:
        tiles, size = max_tiles(num_rows), self._rows_per_tile
        return SharedPrefixes(
            members=self.device["members"][: tiles * size].view(tiles, size),
            tile_lengths=self.device["tile_lengths"][:tiles],
            shared_lens=self.device["shared_lens"][:num_rows],
        )

    def send_padding(self, bucket: int) -> None:
        """A step of nothing but padding: what warming up and capturing read."""
        host = self._take_turns()
        self._host.table[:bucket] = 0
        self._pad(0, bucket)
        if self._rows_per_tile:
            host["shared_lens"][:bucket] = 0
            host["tile_lengths"][:] = 0
        self._send(bucket)

    def _take_turns(self) -> dict[str, Int32Array]:
        """The fields of the buffer that was sent before the last one."""
        self._host, self._other = self._other, self._host
        self._host.is_sent.synchronize()
        return self._host.fields

    def _pad(self, n: int, bucket: int) -> None:
        host, padding_row = self._host.fields, self._state.max_num_seqs
        host["rows"][n:bucket] = padding_row
        host["sampled_rows"][n:bucket] = padding_row
        host["positions"][n:bucket] = 0
        host["slots"][n:bucket] = NO_SLOT
        host["lengths"][n:bucket] = 1
        host["temperatures"][n:bucket] = 0
        host["top_ks"][n:bucket] = 0
        host["top_ps"].view(np.float32)[n:bucket] = 1.0
        host["min_ps"][n:bucket] = 0
        self._host.table[n:bucket, 0] = 0

    def _put_tiles(self, tiles: PrefixTiles, num_rows: int) -> None:
        """Of a step of so many rows, the last of which may be padding."""
        host, num_tiles, n = self._host.fields, len(tiles.tile_lengths), len(tiles.shared_lens)
        host["shared_lens"][:n], host["shared_lens"][n:num_rows] = tiles.shared_lens, 0
        host["tile_lengths"][:num_tiles], host["tile_lengths"][num_tiles:] = tiles.tile_lengths, 0
        host["members"][: tiles.members.size] = tiles.members.ravel()

    def _known_tokens(self, rows: Rows, contexts: Int32Array) -> Int32Array:
        is_known = self._state.num_in_flight[rows] == 0
        return np.where(is_known, self._state.token_ids[rows, contexts], NOT_KNOWN)

    def _put_sampling(self, rows: Rows, lengths: Int32Array, special: SpecialRows) -> None:
        """`lengths` are tokens before the one that is drawn."""
        state, host, m = self._state, self._host.fields, len(rows)
        host["sampled_rows"][:m] = rows
        host["temperatures"].view(np.float32)[:m] = state.temperature[rows]
        host["top_ks"][:m] = state.top_k[rows]
        host["top_ps"].view(np.float32)[:m] = state.top_p[rows]
        host["min_ps"].view(np.float32)[:m] = state.min_p[rows]
        words: NDArray[np.int32] = state.seed[rows].view(np.int32).reshape(m, 2)  # little-endian: low word first
        host["seeds_low"][:m], host["seeds_high"][:m] = words[:, 0], words[:, 1]
        host["draws"][:m] = lengths - state.num_prompt[rows]
        host["ruled"][: len(special.ruled)] = special.ruled
        host["scored"][: len(special.scored)] = special.scored

    def _put_table(self, rows: Rows, lengths: Int32Array) -> None:
        used = -(-int(lengths.max()) // self._state.block_size)
        self._host.table[: len(rows), :used] = self._state.block_table[rows, :used]

    def _send(self, num_rows: int) -> None:
        end = self._table_start + num_rows * self._state.max_blocks
        self._sent[:end].copy_(self._host.memory[:end], non_blocking=True)
        self._host.is_sent.record()
