"""Decode passes captured once per batch bucket and replayed: the host's part of a step is one launch."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)


def buckets_up_to(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then every 16, every 32 from 256 and every 64 from 512, and the maximum itself: padding costs little, a
    graph some 0.04 s of the start."""
    sizes = (1, 2, 4, 8, *range(16, 256, 16), *range(256, 512, 32), *range(512, max(513, max_num_seqs), 64))
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


@contextmanager
def no_collections() -> Iterator[None]:
    """A collection may free device memory that nobody uses any more, which a capture does not survive. One before all
    captures, not before each: it looks at every object there is."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class DecodeGraphs:
    """`run(bucket)` computes what the buffers hold; `capture` comes first."""

    def __init__(self, buckets: list[int], run_pass: Callable[[int], None]) -> None:
        self._run_pass = run_pass
        self._bucket_of = [next(size for size in buckets if size >= n) for n in range(1, buckets[-1] + 1)]
        self._buckets = buckets
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.pool: Any = None  # of the graphs' memory. Any: torch's handle has no public type

    def bucket(self, num_seqs: int) -> int:
        return self._bucket_of[num_seqs - 1]

    def capture(
        self, prepare: Callable[[int], None], beat: Callable[[], None], beside: "DecodeGraphs | None" = None
    ) -> None:
        """All buckets, largest first: the smaller ones live in its memory, or all in that of the graphs captured before.
        `prepare` fills the buffers with padding."""
        started_s = time.monotonic()
        self.pool = torch.cuda.graph_pool_handle() if beside is None else beside.pool
        with no_collections():
            for bucket in reversed(self._buckets):
                prepare(bucket)
                self._run_pass(bucket)  # compiles what a capture must not
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self._run_pass(bucket)
                self._graphs[bucket] = graph
                beat()
        torch.cuda.synchronize()
        logger.info(
            "decode graphs captured",
            extra={"num_graphs": len(self._graphs), "seconds": round(time.monotonic() - started_s, 2)},
        )

    def run(self, bucket: int, *, is_eager: bool = False) -> None:
        if is_eager:
            self._run_pass(bucket)
        else:
            self._graphs[bucket].replay()
