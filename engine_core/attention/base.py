"""What a model needs from attention, whoever computes it.

The K/V pool of one layer is (num_slots, 2, num_kv_heads, head_dim): slot = block * block_size + offset; K and V of a token
lie side by side, so that storing a step is one indexed copy and a run of consecutive blocks is one strided view.
A backend with another page layout owns another pool shape: the model passes the pool through and never looks inside.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Physically consecutive slots of one sequence."""

    first_slot: int
    length: int  # tokens


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """A sequence with several new tokens in a step."""

    first_token: int  # where its new tokens start among the step's
    num_new: int
    context: tuple[Run, ...]  # K/V that was there before the step


@dataclass(frozen=True, slots=True, eq=False)
class SingleTokens:
    """The sequences with one new token, as a struct of m rows."""

    tokens: NDArray[np.int32]  # (m,) their tokens' places among the step's
    block_tables: NDArray[np.int32]  # (m, width) blocks in order; what lies behind a sequence's last one is undefined
    lengths: NDArray[np.int32]  # (m,) tokens to attend to, the new one included
    block_size: int


class StepMetadata(Protocol):
    """Shared by all layers of one step: what every kind of it has."""

    @property
    def slot_mapping(self) -> Tensor:
        """(num_tokens,): where each new token's K/V is stored"""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMetadata:
    """Where a step's K/V lies, for backends that are steered by the host."""

    singles: SingleTokens
    spans: tuple[SequenceSpan, ...]
    slot_mapping: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefixes:
    """Decodes by the prefix they share, as engine_core.prefix_groups.PrefixTiles on the device. Tensors int32."""

    members: Tensor  # (tiles, rows_per_tile)
    tile_lengths: Tensor  # (tiles,); 0 is padding
    shared_lens: Tensor  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class CudaMetadata:
    """Where a step's K/V lies, for kernels that read it on the device. n sequences; tensors int32."""

    slot_mapping: Tensor  # (num_tokens,), -1 is padding
    block_table: Tensor  # (n, width)
    lengths: Tensor  # (n,) tokens to attend to, the new ones included
    cu_seqlens: Tensor  # (n + 1,) prefix sums of the new tokens
    num_decodes: int  # sequences with one new token; they come first
    new_lens: tuple[int, ...]  # of the sequences behind them
    total_lens: tuple[int, ...]  # likewise: what `lengths` holds for them
    shared: SharedPrefixes | None = None  # of the decodes
    behind: "CudaMetadata | None" = None  # the sequences behind the decodes as a step of their own, if they are one


class AttentionBackend(Protocol):
    """Stores a step's K/V and attends. Scale is head_dim ** -0.5; causal by position."""

    def __call__(
        self, q: Tensor, kv: Tensor, pool: Tensor, metadata: Any
    ) -> Tensor:  # Any: a backend and its runner agree on the kind
        """q (num_tokens, num_heads, head_dim), kv (num_tokens, 2, num_kv_heads, head_dim) of the new tokens, pool of this
        layer → (num_tokens, num_heads * head_dim)."""
        ...
