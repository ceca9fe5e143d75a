"""What prompt lookup gives on a GPU at the size of real models: tokens per second with it and without, in the engine alone.

    python -m loadtests.gpu.drafts [--shape llama-3.1-8b] [--streams 1 8] [--tokens 512] [--tries 3]

Random weights. Text that is held to one token is guessed whole (`repetitive`: the most there is to gain); what they draw freely
is never guessed (`free`), which shows what guessing in vain costs. `always` does not pause where it does not pay.
"""

import argparse
import statistics
from typing import Any

import msgspec

from config.settings import EngineSettings
from engine_core.batch_state import BatchState
from engine_core.drafting import Drafter
from engine_core.process import build_drafter
from ipc.messages import SamplingParams
from loadtests.gpu import shapes
from loadtests.gpu.rig import EngineRig

CONFIG = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}'
KINDS: dict[str, dict[str, Any]] = {  # Any: fields of SamplingParams
    "repetitive": {"allowed_token_ids": (7,)}, "free": {}
}  # fmt: skip
PROMPT_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=sorted(shapes.SHAPES))
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--tries", type=int, default=3)
    arguments = parser.parse_args()
    settings = EngineSettings(
        device="cuda", max_num_seqs=max(arguments.streams), max_num_batched_tokens=8192, block_size=128,
        speculative_config=CONFIG,
    )  # fmt: skip
    rig = EngineRig(arguments.shape, settings, max_model_len=PROMPT_TOKENS + arguments.tokens)
    print(f"{arguments.shape}: start {rig.start_s:.1f} s", flush=True)
    for kind, asked in KINDS.items():
        for num_streams in arguments.streams:
            for mode in ("without", "with", "always"):
                rates, shares = [], []
                for number in range(arguments.tries):
                    rig.scheduler.drafter = drafter_for(settings, rig.scheduler.state, mode)
                    before = counts(rig)
                    rates.append(rate(rig, num_streams, arguments.tokens, asked, number))
                    drafted, right = (now - then for now, then in zip(counts(rig), before, strict=True))
                    shares.append(right / max(1, drafted))
                print(
                    f"{kind:10} {num_streams} streams {mode:7}: {statistics.median(rates):.0f} tok/s "
                    f"{[round(one) for one in rates]}, guesses right {statistics.median(shares):.2f}",
                    flush=True,
                )


def drafter_for(settings: EngineSettings, state: BatchState, mode: str) -> Drafter | None:
    if mode == "without":
        return None
    config = CONFIG[:-1] + (', "pauses": false}' if mode == "always" else "}")
    return build_drafter(msgspec.structs.replace(settings, speculative_config=config), state)


def counts(rig: EngineRig) -> tuple[int, int]:
    drafts = rig.scheduler.counts.drafts
    return drafts.num_tokens, sum(drafts.accepted_per_place)


def rate(rig: EngineRig, num_streams: int, num_tokens: int, asked: dict[str, Any], number: int) -> float:
    for stream in range(num_streams):
        prompt = [(number * 131 + stream * 7919 + place * 31) % 100_000 for place in range(PROMPT_TOKENS)]
        rig.submit(prompt, SamplingParams(max_tokens=num_tokens, ignore_eos=True, **asked))
    return num_streams * num_tokens / rig.run()


if __name__ == "__main__":
    main()
