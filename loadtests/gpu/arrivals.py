"""What a pass with a little prefill costs beside many decodes.

    python -m loadtests.gpu.arrivals [--decodes 60 250 1000] [--per-turn 4]

So many rows decode, for a while alone, and then beside prompts of 32 tokens that come some at a time, for two tokens each.
Random weights of the Qwen3-0.6B shape. A step's time goes from its launch to the next one: what a pass takes on the device
stands partly under the kind of step behind it.
"""

import argparse
import time

import torch

from config.settings import EngineSettings
from ipc.messages import SamplingParams
from loadtests.gpu.offline import SHAPE, show_timeline
from loadtests.gpu.rig import EngineRig

NUM_TURNS = 60
PROMPT_TOKENS = 32
LIFE = 5 * NUM_TURNS  # tokens of a row that decodes: longer than its phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, nargs="*", default=[60, 250, 1000])
    parser.add_argument("--per-turn", type=int, default=4)
    arguments = parser.parse_args()
    num_rows = max(arguments.decodes) + 8 * arguments.per_turn
    settings = EngineSettings(device="cuda", max_num_seqs=num_rows, max_num_batched_tokens=16384, block_size=128)
    rig = EngineRig(SHAPE, settings, max_model_len=4096)
    for num_decodes in arguments.decodes:
        phase(rig, num_decodes, arguments.per_turn)


def phase(rig: EngineRig, num_decodes: int, per_turn: int) -> None:
    arrive(rig, num_decodes, LIFE)
    turns(rig)
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    turns(rig)
    torch.cuda.synchronize()
    alone_ms = (time.perf_counter() - started_s) / NUM_TURNS * 1e3
    print(f"{num_decodes} decodes: {alone_ms:.2f} ms a turn alone; with {per_turn} prompts in each:", flush=True)
    turns(rig, per_turn)  # kernels of these sizes are there from now on
    show_timeline(rig, lambda: turns(rig, per_turn))
    rig.run()


def turns(rig: EngineRig, per_turn: int = 0) -> None:
    for _ in range(NUM_TURNS):
        arrive(rig, per_turn, 2)
        rig.turn()


def arrive(rig: EngineRig, num_requests: int, num_tokens: int) -> None:
    for _ in range(num_requests):
        sampling = SamplingParams(temperature=0.6, max_tokens=num_tokens, ignore_eos=True)
        rig.submit(range(1000, 1000 + PROMPT_TOKENS), sampling)


if __name__ == "__main__":
    main()
