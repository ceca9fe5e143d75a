"""The workloads of loadtests.gpu.offline through vLLM's own engine, for figures of one machine and one day.

    python -m loadtests.gpu.vllm_offline [--runs 3]        (an interpreter that has vLLM; no weights, no tokenizer)

The 256 requests, one stream alone and 1024 streams of 32 in and 512 out, of which vLLM gets all 3072 at once.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtests.gpu import shapes
from loadtests.gpu.offline import SHAPE


def main() -> None:
    from vllm import LLM  # type: ignore[import-not-found]  # is not installed where types are checked

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(shapes.SHAPES[SHAPE]))
    started_s = time.monotonic()
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=4096,
        dtype="bfloat16",
        max_num_seqs=1024,
    )
    print(f"start {time.monotonic() - started_s:.1f} s", flush=True)
    report("256 requests", [many(llm, run) for run in range(arguments.runs)])
    report("one stream 512/512", [one(llm, run) for run in range(arguments.runs)])
    report("1024 streams 32/512", [streams(llm, run) for run in range(2)])


def report(name: str, rates: list[float]) -> None:
    print(f"vLLM, {name}: {statistics.median(rates):.0f} output tok/s {[round(rate) for rate in rates]}", flush=True)


def many(llm: Any, run: int) -> float:  # Any: vLLM's
    source = random.Random(0)
    prompts = [
        [source.randint(0, 10000) + 11000 * run for _ in range(source.randint(100, 1024))] for _ in range(256)
    ]  # fmt: skip
    return rate(llm, prompts, [source.randint(100, 1024) for _ in range(256)], 0.6)


def one(llm: Any, run: int) -> float:
    return rate(llm, [[50 + run] * 512], [512], 0.6)


def streams(llm: Any, run: int) -> float:
    prompts = [[(run * 31 + number * 7919 + place) % 100_000 for place in range(32)] for number in range(3 * 1024)]
    return rate(llm, prompts, [512] * len(prompts), 1.0)


def rate(llm: Any, prompts: list[list[int]], lengths: list[int], temperature: float) -> float:
    """Output tokens per second."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=length, detokenize=False)
        for length in lengths
    ]
    started_s = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    duration_s = time.perf_counter() - started_s
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == sum(lengths)
    return sum(lengths) / duration_s


if __name__ == "__main__":
    main()
