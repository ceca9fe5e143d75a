"""The attention backends through the engine's own interface: decode and prefill by shape, and the floor.

    python -m loadtests.gpu.attention

One layer. Decodes are CUDA graphs of several calls, each with K/V of its own, so that nothing stays in the L2; their floor is
reading the K/V as fast as this device copies.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from engine_core.attention.choice import BLOCK_SIZES, Name, has_packages
from engine_core.attention.cuda import CudaAttention
from loadtests import report
from loadtests.gpu import ceilings

HEADS = [(16, 8, 128), (32, 8, 64), (32, 8, 128)]  # Qwen3-0.6B, Llama-3.2-1B, Llama-3.1-8B
DECODES = [(1, 1024), (1, 4096), (8, 1024), (8, 4096), (64, 1024), (64, 4096), (256, 300), (256, 1024), (1024, 300)]
PREFILLS = [(1, 8192, 0), (16, 512, 0), (1, 2048, 6144)]  # sequences, new tokens, tokens before them
DISTINCT_BYTES = 600 << 20  # of K/V in one graph: ten times the L2


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    limits = ceilings.measured()
    print(f"{torch.cuda.get_device_name()}: {limits}\n")
    names: list[Name] = [name for name in ("fa4", "fa2", "triton") if has_packages(name)]
    rows = []
    for heads in HEADS:
        for batch, context in DECODES:
            floor_us = batch * context * 2 * heads[1] * heads[2] * 2 / limits.bytes_per_s * 1e6
            times = [decode_us(name, heads, batch, context) for name in names]
            rows.append([shape(heads), str(batch), str(context), f"{floor_us:.1f}", *(f"{us:.1f}" for us in times)])
    print(report.table(["heads", "batch", "context", "floor us", *names], rows))
    rows = []
    for heads in HEADS:
        for number, new, before in PREFILLS:
            flops = 4 * number * heads[0] * heads[2] * (new * before + new * new / 2)
            cells = []
            for name in names:
                us = prefill_us(name, heads, number, new, before)
                cells.append(f"{us:.0f} us, {flops / us / 1e6:.0f} TF/s")
            rows.append([shape(heads), f"{number} x {new}" + (f" on {before}" if before else ""), *cells])
    print(report.table(["heads", "prefill", *names], rows))


def shape(heads: tuple[int, int, int]) -> str:
    return f"{heads[0]}/{heads[1]} x {heads[2]}"


def metadata_of(number: int, new: int, before: int, page: int, at_block: int) -> CudaMetadata:
    """Sequences of as many new tokens, on so many old ones, in consecutive blocks from this one on."""
    blocks = -(-(new + before) // page)
    table = torch.arange(number * blocks, dtype=torch.int32, device="cuda").view(number, blocks) + at_block
    lengths = torch.full((number,), new + before, dtype=torch.int32, device="cuda")
    is_decode = new == 1
    return CudaMetadata(
        slot_mapping=lengths[:0],
        block_table=table,
        lengths=lengths,
        cu_seqlens=torch.arange(number + 1, dtype=torch.int32, device="cuda") * new,
        num_decodes=number if is_decode else 0,
        new_lens=() if is_decode else (new,) * number,
        total_lens=() if is_decode else (new + before,) * number,
    )


def pool_of(num_blocks: int, page: int, heads: tuple[int, int, int]) -> Tensor:
    planes = torch.randn((2, num_blocks * page, heads[1], heads[2]), dtype=torch.bfloat16, device="cuda")
    return planes.transpose(0, 1)


@torch.inference_mode()
def decode_us(name: Name, heads: tuple[int, int, int], batch: int, context: int) -> float:
    page = BLOCK_SIZES[name]
    attention = CudaAttention(name, page)
    blocks = batch * -(-context // page)
    bytes_a_call = batch * context * 2 * heads[1] * heads[2] * 2
    num_calls = min(28, max(2, DISTINCT_BYTES // bytes_a_call))
    pool = pool_of(num_calls * blocks, page, heads)
    q = torch.randn((batch, heads[0], heads[2]), dtype=torch.bfloat16, device="cuda")
    steps = [metadata_of(batch, 1, context - 1, page, call * blocks) for call in range(num_calls)]
    return graphed_ms(lambda: [attention(q, q, pool, step) for step in steps]) / num_calls * 1e3


@torch.inference_mode()
def prefill_us(name: Name, heads: tuple[int, int, int], number: int, new: int, before: int) -> float:
    page = BLOCK_SIZES[name]
    attention, step = CudaAttention(name, page), metadata_of(number, new, before, page, 0)
    pool = pool_of(number * -(-(new + before) // page), page, heads)
    q = torch.randn((number * new, heads[0], heads[2]), dtype=torch.bfloat16, device="cuda")
    return ceilings.timed_ms(lambda: attention(q, q, pool, step), 20) * 1e3


def graphed_ms(run: Callable[[], object]) -> float:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return ceilings.timed_ms(graph.replay, 20)


if __name__ == "__main__":
    main()
