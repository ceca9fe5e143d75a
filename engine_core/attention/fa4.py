"""flash-attn-4: the compiled kernels, called directly. Hopper. Any page size; 128 tokens take its TMA path, which is a tenth
faster.

The package's own entry costs 62 to 95 us of Python a call, the compiled function 6.5 us: the first call of each kind goes
through the entry and is recorded, later ones call what was recorded with tensors of their own. So do later processes
(engine_core.attention.kept_kernels), which import the package only for a kernel they have never had. The kernel reads
whole pages: K/V behind a sequence's end must be finite, so pools are zeroed when they are allocated.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from engine_core.attention.kept_kernels import SWITCH, Kernel, kept_kernels_or_none

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
OURS = frozenset((Q, K, V, OUT, CU_SEQLENS_Q, SEQUSED_K, PAGE_TABLE))
VARLEN_MAX_Q = 1024  # a hint that picks the tiles of prefill


class Fa4:
    def __init__(self) -> None:
        os.environ.setdefault(SWITCH, "1")  # 2 to 4 s each; the package reads it when it is imported
        self._kept = kept_kernels_or_none()
        self._held: dict[str, Kernel] = {}

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """See triton_decode.paged_decode."""
        out = torch.empty_like(q) if out is None else out
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
        if kind not in self._held:
            chosen_by = _chosen_by(kind, q, k, v, block_table, options)
            if not self._takes_kept(kind, chosen_by):
                call = _recorded_call(q, k, v, out, cu_seqlens, lengths, block_table, options)
                self._hold(kind, chosen_by, call)
                return
        function, template = self._held[kind]
        arguments = list(template)
        arguments[Q], arguments[K], arguments[V], arguments[OUT] = q, k, v, out
        arguments[CU_SEQLENS_Q], arguments[SEQUSED_K], arguments[PAGE_TABLE] = cu_seqlens, lengths, block_table
        function(*arguments)

    def _takes_kept(self, kind: str, chosen_by: tuple[object, ...]) -> bool:
        kept = None if self._kept is None else self._kept.kernel_or_none(chosen_by)
        if kept is not None:
            self._held[kind] = kept
        logger.info("flash-attn-4 kernel", extra={"kind": kind, "is_kept": kept is not None})
        return kept is not None

    def _hold(self, kind: str, chosen_by: tuple[object, ...], call: "_Call") -> None:
        """Only a call whose tensors are all known can be repeated with others."""
        others = [n for n, value in enumerate(call.arguments) if torch.is_tensor(value) and n not in OURS]
        if others:
            logger.warning("flash-attn-4 is called through its interface", extra={"kind": kind, "tensors": others})
            return
        template = [None if place in OURS else value for place, value in enumerate(call.arguments)]
        self._held[kind] = call.function, template
        if self._kept is not None and call.object_file is not None:
            self._kept.keep(chosen_by, call.object_file, call.libraries, template)


def _chosen_by(
    kind: str, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, options: dict[str, Any]
) -> tuple[object, ...]:
    """All that the package may choose a kernel by, but how many blocks there are."""
    device = torch.cuda.get_device_properties(q.device)
    shapes = (q.shape, q.stride(), k.shape[1:], k.stride(), v.stride(), block_table.shape)
    return kind, device.name, device.multi_processor_count, q.dtype, *map(tuple, shapes), *sorted(options.items())


@dataclass(frozen=True, slots=True)
class _Call:
    """How the package called a compiled function, and where that one lies on disk."""

    function: Callable[..., Any]
    arguments: list[Any]
    object_file: Path | None
    libraries: list[str]  # that the object file needs


def _recorded_call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor,
    cu_seqlens: Tensor | None, lengths: Tensor, block_table: Tensor, options: dict[str, Any],
) -> _Call:  # fmt: skip
    """Through the package's entry, which compiles it unless the package's own cache has it."""
    interface: Any = import_module("flash_attn.cute.interface")  # 7 s. Any: the package is untyped
    forward = interface._flash_attn_fwd
    cache = _Recording(forward.compile_cache)
    forward.compile_cache = cache
    try:
        forward(q, k, v, cu_seqlens_q=cu_seqlens, seqused_k=lengths, page_table=block_table, out=out, **options)
    finally:
        forward.compile_cache = cache.real
    [(key, function, arguments)] = cache.calls
    libraries = interface.cute.runtime.find_runtime_libraries(enable_tvm_ffi=False)
    return _Call(function, arguments, cache.object_file_or_none(key), libraries)


class _Recording:
    """A compile cache that notes what is called with which arguments."""

    def __init__(self, real: Any) -> None:  # Any: the package's JITCache
        self.real = real
        self.calls: list[tuple[object, Callable[..., Any], list[Any]]] = []

    def __contains__(self, key: object) -> bool:
        return key in self.real

    def __setitem__(self, key: object, function: Callable[..., Any]) -> None:
        self.real[key] = function

    def __getitem__(self, key: object) -> Callable[..., Any]:
        function: Callable[..., Any] = self.real[key]

        def noted(*arguments: Any) -> Any:
            self.calls.append((key, function, list(arguments)))
            return function(*arguments)

        return noted

    def object_file_or_none(self, key: object) -> Path | None:
        """None: this cache is in memory alone."""
        folder = getattr(self.real, "cache_path", None)
        return None if folder is None else Path(folder) / f"{self.real._key_to_hash(key)}.o"
