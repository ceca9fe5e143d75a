"""flash-attn-4: the compiled kernels, called directly. Hopper. Any page size; 128 tokens take its TMA path, which is a tenth
faster.

The package's own entry costs 62 to 95 us of Python a call, the compiled function 6.5 us: the first call of each kind
goes through the entry and is recorded, later ones call what was recorded with tensors of their own. The kernel reads
whole pages: K/V behind a sequence's end must be finite, so pools are zeroed when they are allocated.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata

logger = logging.getLogger(__name__)

Q, K, V, OUT, CU_SEQLENS_Q, SEQUSED_K, PAGE_TABLE = (
    0,
    1,
    2,
    3,
    6,
    9,
    10,
)  # places among the compiled function's arguments
CACHE_SWITCH = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"  # keeps compiled kernels on disk, 2 to 4 s each
VARLEN_MAX_Q = 1024  # a hint that picks the tiles of prefill


class Fa4:
    def __init__(self) -> None:
        os.environ.setdefault(CACHE_SWITCH, "1")  # read when the package is imported
        from flash_attn.cute import interface

        self._interface: Any = interface  # Any: the package is untyped
        self._held: dict[str, tuple[Callable[..., Any], list[Any]]] = {}

    def decode(self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor) -> Tensor:
        """See triton_decode.paged_decode."""
        out = torch.empty_like(q)
        options = {"causal": False, "max_seqlen_k": block_table.shape[1] * k.shape[1]}
        self._call("decode", q.unsqueeze(1), k, v, out.unsqueeze(1), None, lengths, block_table, options)
        return out

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, out: Tensor) -> None:
        """Sequences with any number of new tokens, causal from the end."""
        options = {
            "causal": True, "max_seqlen_q": VARLEN_MAX_Q, "max_seqlen_k": metadata.block_table.shape[1] * k.shape[1],
        }  # fmt: skip
        self._call("mixed", q, k, v, out, metadata.cu_seqlens, metadata.lengths, metadata.block_table, options)

    def _call(
        self, kind: str, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
        cu_seqlens: Tensor | None, lengths: Tensor, block_table: Tensor, options: dict[str, Any],
    ) -> None:  # fmt: skip
        if kind in self._held:
            function, template = self._held[kind]
            arguments = list(template)
            arguments[Q], arguments[K], arguments[V], arguments[OUT] = q, k, v, out
            arguments[CU_SEQLENS_Q], arguments[SEQUSED_K], arguments[PAGE_TABLE] = cu_seqlens, lengths, block_table
            function(*arguments)
            return
        forward = self._interface._flash_attn_fwd
        cache = _Recording(forward.compile_cache)
        forward.compile_cache = cache
        try:
            forward(
                q, k, v, cu_seqlens_q=cu_seqlens, seqused_k=lengths, page_table=block_table, out=out, **options
            )  # fmt: skip
        finally:
            forward.compile_cache = cache.real
        self._hold(kind, cache)

    def _hold(self, kind: str, cache: "_Recording") -> None:
        """Only a call whose tensors are all known can be repeated with others."""
        [(function, arguments)] = cache.calls
        known = {Q, K, V, OUT, CU_SEQLENS_Q, SEQUSED_K, PAGE_TABLE}
        others = [place for place, value in enumerate(arguments) if torch.is_tensor(value) and place not in known]
        if others:
            logger.warning("flash-attn-4 is called through its interface", extra={"kind": kind, "tensors": others})
            return
        self._held[kind] = (function, arguments)


class _Recording:
    """A compile cache that notes what is called with which arguments."""

    def __init__(self, real: Any) -> None:  # Any: the package's JITCache
        self.real = real
        self.calls: list[tuple[Callable[..., Any], list[Any]]] = []

    def __contains__(self, key: object) -> bool:
        return key in self.real

    def __setitem__(self, key: object, function: Callable[..., Any]) -> None:
        self.real[key] = function

    def __getitem__(self, key: object) -> Callable[..., Any]:
        function: Callable[..., Any] = self.real[key]

        def noted(*arguments: Any) -> Any:
            self.calls.append((function, list(arguments)))
            return function(*arguments)

        return noted
