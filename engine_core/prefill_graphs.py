"""Passes with prefill in pieces: all that stands between two layers' attention is one captured graph per number of tokens;
attention itself, whose kernels depend on the sequences, is launched in between.

Launched kernel by kernel, such a pass costs the host 14 ms (Qwen3-0.6B, an H200's host), whatever the device computes in
it. A pass is padded to the next size, so that larger ones, which keep the device busy for longer than that, are not
captured.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from engine_core.attention.cuda import CudaAttention
from engine_core.cuda_graphs import no_collections
from engine_core.models.decoder import Decoder, DecoderConfig

logger = logging.getLogger(__name__)

MAX_TOKENS = 2048
MAX_FLOPS = 8e12  # of a pass: 12 ms on a Hopper GPU


def sizes_up_to(max_tokens: int) -> list[int]:
    """16, 32, then every 64, every 128 from 512 and every 256 from 1024."""
    sizes = (16, 32, *range(64, 512, 64), *range(512, 1024, 128), *range(1024, MAX_TOKENS + 1, 256))
    return [size for size in sizes if size <= max_tokens]


def most_tokens(config: DecoderConfig) -> int:
    """Of a pass that is worth capturing."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    weights = config.num_layers * config.hidden_size * (heads + 3 * config.intermediate_size)
    return min(MAX_TOKENS, int(MAX_FLOPS / (2 * weights)))


class PrefillGraphs:
    """`run` computes what the buffers hold; `capture` comes first."""

    def __init__(
        self,
        decoder: Decoder,
        attention: CudaAttention,
        pools: list[Tensor],
        fields: dict[str, Tensor],
        max_tokens: int,
    ) -> None:
        """`fields` are those of the StepBuffers that passes with prefill read."""
        self._decoder, self._attention, self._pools, self._fields = decoder, attention, pools, fields
        config, dtype, device = decoder.config, pools[0].dtype, pools[0].device
        self._sizes = sizes_up_to(min(max_tokens, most_tokens(config)))
        largest = max(self._sizes, default=0)
        self._q, self._attended = (
            torch.zeros((largest, config.num_heads, config.head_dim), dtype=dtype, device=device) for _ in range(2)
        )
        self._normed = torch.zeros((largest, config.hidden_size), dtype=dtype, device=device)
        self._graphs: dict[int, list[torch.cuda.CUDAGraph]] = {}
        self._between: dict[int, list[Tensor]] = {}  # by size: what lives from one piece to the next

    def size_or_none(self, num_tokens: int) -> int | None:
        """What such a pass is padded to; None: it is not captured."""
        return next((size for size in self._sizes if size >= num_tokens), None)

    def capture(self, pool: Any, beat: Callable[[], None]) -> None:  # Any: torch's handle of graphs' memory has no type
        """All sizes, largest first. What the buffers hold is computed; its K/V goes to blocks that nobody owns yet."""
        started_s = time.monotonic()
        with no_collections():
            for size in reversed(self._sizes):
                for piece in self._pieces(size, []):  # compiles what a capture must not
                    piece()
                torch.cuda.synchronize()
                self._graphs[size], self._between[size] = [], []
                for piece in self._pieces(size, self._between[size]):
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=pool):
                        piece()
                    self._graphs[size].append(graph)
                beat()
        torch.cuda.synchronize()
        seconds = round(time.monotonic() - started_s, 2)
        logger.info("prefill graphs captured", extra={"num_sizes": len(self._sizes), "seconds": seconds})

    def run(self, num_tokens: int, size: int, metadata: CudaMetadata, *, is_eager: bool = False) -> Tensor:
        """(num_tokens, hidden_size), normalized; valid until the next pass."""
        q, attended = self._q[:num_tokens], self._attended[:num_tokens]
        pieces = self._pieces(size, []) if is_eager else (graph.replay for graph in self._graphs[size])
        for piece, pool in zip(pieces, [*self._pools, None], strict=True):
            piece()
            if pool is not None:
                self._attention.mixed(q, pool, metadata, attended)
        return self._normed[:num_tokens]

    def _pieces(self, size: int, between: list[Tensor]) -> Iterator[Callable[[], None]]:
        """In their order, the first one before the first layer's attention. `between` is empty."""
        for number in range(len(self._pools) + 1):
            yield partial(self._piece, number, size, between)

    def _piece(self, number: int, size: int, between: list[Tensor]) -> None:
        fields, layers = self._fields, self._decoder.layers
        if number == 0:
            between += self._decoder.enter(fields["token_ids"][:size], fields["positions"][:size])
        hidden, cos, sin = between
        if number > 0:
            added = layers[number - 1].after_attention(self._attended[:size].flatten(1), hidden)
            assert added.data_ptr() == hidden.data_ptr(), "the next piece reads where the first one wrote"
        if number < len(layers):
            q, _ = layers[number].before_attention(hidden, cos, sin, self._pools[number], fields["slots"][:size])
            self._q[:size].copy_(q)
        else:
            self._normed[:size].copy_(self._decoder.norm(hidden))
