"""What one step takes: decode by batch size, its parts and its floor, host time that the device waits for, and prefill.

    python -m loadtests.gpu.steps --shape llama-3.1-8b [--batch 1 64 256] [--context 1024] [--trace trace.json]

`wall` is the engine's own pace over 100 steps, `device` the same captured graph replayed back to back; the difference is
what the host adds. The floor is the step's dense layers through cuBLAS (graphed, other weights in every call) plus reading
the K/V as fast as this device copies. A share of a prefill is of the rate of a large product here.
"""

import argparse
import time
from typing import Any

import torch

from config.settings import EngineSettings
from ipc.messages import SamplingParams
from loadtests.gpu import ceilings, shapes
from loadtests.gpu.rig import EngineRig

NUM_STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-0.6b", choices=sorted(shapes.SHAPES))
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefill", type=int, default=8192, help="0: none")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--trace", help="write the largest batch's steps as a Chrome trace")
    arguments = parser.parse_args()
    fields: dict[str, Any] = {"attention_backend": arguments.attention_backend, "block_size": arguments.block_size}
    longest = max(arguments.prefill, arguments.context) + 3 * NUM_STEPS + 64
    rig = EngineRig(
        arguments.shape,
        EngineSettings(device="cuda", max_num_seqs=max(arguments.batch), max_num_batched_tokens=8192, **fields),
        max_model_len=longest,
    )
    print(f"{arguments.shape}: start {rig.start_s:.1f} s, {torch.cuda.memory_allocated() >> 20} MiB", flush=True)
    limits = ceilings.measured()
    print(f"{torch.cuda.get_device_name()}: {limits}", flush=True)
    for batch in arguments.batch:
        decode(rig, arguments.shape, batch, arguments.context, limits.bytes_per_s, arguments.trace)
    if arguments.prefill:
        prefill(rig, arguments.shape, arguments.prefill, limits.flops)


def decode(rig: EngineRig, shape: str, batch: int, context: int, bytes_per_s: float, trace: str | None) -> None:
    for number in range(batch):
        prompt = [(number * 7919 + place) % 100_000 for place in range(context - NUM_STEPS)]
        rig.submit(prompt, SamplingParams(temperature=0.6, max_tokens=3 * NUM_STEPS, ignore_eos=True))
    rig.turn()
    while rig.scheduler.num_waiting or int(rig.scheduler.state.is_decoding.sum()) < batch:
        rig.turn()
    for _ in range(NUM_STEPS // 2):
        rig.turn()
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(NUM_STEPS):
        rig.turn()
    torch.cuda.synchronize()
    wall_ms = (time.perf_counter() - started_s) / NUM_STEPS * 1e3
    if trace:
        write_trace(rig, f"{trace}.{shape}.{batch}.json")
    bucket = rig.runner._graphs.bucket(batch)
    device_ms = ceilings.timed_ms(lambda: rig.runner._graphs.run(bucket))
    dense_ms = gemm_ms(shape, batch)
    kv_ms = batch * context * shapes.kv_bytes_per_token(shape) / bytes_per_s * 1e3
    print(
        f"decode B={batch} context={context}: wall {wall_ms:.3f} ms, device {device_ms:.3f}, "
        f"host adds {wall_ms - device_ms:.3f}; "
        f"GEMMs {dense_ms:.3f} + KV {kv_ms:.3f} = {dense_ms + kv_ms:.3f}: {wall_ms / (dense_ms + kv_ms):.2f} times",
        flush=True,
    )
    rig.run()


def prefill(rig: EngineRig, shape: str, num_tokens: int, peak_flops: float) -> None:
    durations = []
    for run in range(4):
        rig.submit([(run * 31 + place) % 100_000 for place in range(num_tokens)], SamplingParams(max_tokens=1))
        durations.append(rig.run())
    best_s = sorted(durations[1:])[1]
    share = shapes.prefill_flops(shape, num_tokens) / best_s / peak_flops
    print(
        f"prefill {num_tokens}: {best_s * 1e3:.1f} ms, {share:.2f} of {peak_flops / 1e12:.0f} TFLOP/s {durations}",
        flush=True,
    )


@torch.inference_mode()
def gemm_ms(shape: str, batch: int) -> float:
    """All dense layers of a step through cuBLAS, in one graph. As many weights as the model has, so none is in the cache."""
    sizes = [(n, k) for n, k, times in shapes.gemms(shape) for _ in range(times)]
    largest = max(n * k for n, k in sizes)
    memory = torch.empty(min(sum(n * k for n, k in sizes), max(largest, 2 << 30)), dtype=torch.bfloat16, device="cuda")
    memory.normal_(0, 0.02)
    weights, at = [], 0
    for n, k in sizes:
        at = 0 if at + n * k > len(memory) else at
        weights.append(memory[at : at + n * k].view(n, k))
        at += n * k
    inputs = {k: torch.randn(batch, k, dtype=torch.bfloat16, device="cuda") for _, k in sizes}

    def step() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.t())

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return ceilings.timed_ms(graph.replay, 20)


def write_trace(rig: EngineRig, path: str) -> None:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        for _ in range(5):
            rig.turn()
        torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=18, max_name_column_width=60))
    profile.export_chrome_trace(path)


if __name__ == "__main__":
    main()
