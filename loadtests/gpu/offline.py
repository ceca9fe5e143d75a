"""The engine without a server: nano-vllm's bench workload, and one stream alone.

    python -m loadtests.gpu.offline [--runs 3] [--attention-backend auto] [--block-size 128]

nano-vllm's `bench.py`: 256 requests at once, 100 to 1024 tokens in and out (seed 0), temperature 0.6, end of text ignored,
random weights of the Qwen3-0.6B shape. Other token ids in every run: nothing is served from the prefix cache.
"""

import argparse
import random
import statistics
from typing import Any

import torch

from config.settings import EngineSettings
from ipc.messages import SamplingParams
from loadtests.gpu.rig import EngineRig

SHAPE = "qwen3-0.6b"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--block-size", type=int, default=128)
    arguments = parser.parse_args()
    fields: dict[str, Any] = {"attention_backend": arguments.attention_backend, "block_size": arguments.block_size}
    rig = EngineRig(
        SHAPE,
        EngineSettings(device="cuda", max_num_seqs=256, max_num_batched_tokens=16384, **fields),
        max_model_len=4096,
    )
    print(
        f"start {rig.start_s:.1f} s, {torch.cuda.memory_allocated() >> 20} MiB allocated, {rig.runner.num_blocks} blocks"
    )
    crowd = [many(rig, run) for run in range(arguments.runs)]
    alone = [one(rig, run) for run in range(arguments.runs)]
    print(f"256 requests: {statistics.median(crowd):.0f} output tok/s {[round(x) for x in crowd]}")
    print(f"one stream 512/512: {statistics.median(alone):.0f} tok/s {[round(x) for x in alone]}")


def many(rig: EngineRig, run: int) -> float:
    """Output tokens per second of the whole workload."""
    source = random.Random(0)
    prompts = [
        [source.randint(0, 10000) + 11000 * run for _ in range(source.randint(100, 1024))] for _ in range(256)
    ]  # fmt: skip
    lengths = [source.randint(100, 1024) for _ in range(256)]
    for prompt, length in zip(prompts, lengths, strict=True):
        rig.submit(prompt, SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True))
    before = rig.num_tokens
    duration_s = rig.run()
    assert rig.num_tokens - before == sum(lengths)
    print(f"  run {run}: {duration_s:.2f} s for {sum(map(len, prompts))} tokens in and {sum(lengths)} out", flush=True)
    return sum(lengths) / duration_s


def one(rig: EngineRig, run: int) -> float:
    rig.submit([50 + run] * 512, SamplingParams(temperature=0.6, max_tokens=512, ignore_eos=True))
    return 512 / rig.run()


if __name__ == "__main__":
    main()
