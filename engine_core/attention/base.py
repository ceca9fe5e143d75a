"""What a model needs from attention, whoever computes it.

The K/V pool of one layer is (num_slots, 2, num_kv_heads, head_dim): slot = block * block_size + offset; K and V of a token
lie side by side, so that storing a step is one indexed copy and a run of consecutive blocks is one strided view.
A backend with another page layout owns another pool shape: the model passes the pool through and never looks inside.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Physically consecutive slots of one sequence."""

    first_slot: int
    length: int  # tokens


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's part of a step."""

    first_token: int  # where its new tokens start among the step's
    num_new: int
    context: tuple[Run, ...]  # K/V that was there before the step; for a single new token that token's slot is included


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Shared by all layers of one step."""

    spans: tuple[SequenceSpan, ...]
    slot_mapping: Tensor  # (num_tokens,) int64: where each new token's K/V is stored


class AttentionBackend(Protocol):
    """Stores a step's K/V and attends. Scale is head_dim ** -0.5; causal by position."""

    def __call__(self, q: Tensor, kv: Tensor, pool: Tensor, metadata: AttentionMetadata) -> Tensor:
        """q (num_tokens, num_heads, head_dim), kv (num_tokens, 2, num_kv_heads, head_dim) of the new tokens, pool of this
        layer → (num_tokens, num_heads * head_dim)."""
        ...
