"""The embedded model on the device: bf16 answers the parity prompts as float32 does, up to what bf16 cannot tell apart."""

from pathlib import Path
from typing import Any

import torch

from config.settings import EngineSettings
from ipc.messages import SamplingParams
from tests.parity.in_process_engine import InProcessEngine
from tests.parity.prompts import QUESTIONS, parity_prompts

NEW_TOKENS = 64
MAX_REGRET = 0.6
"""How far a chosen token's float32 logit may lie below the largest; the logits are of the order of 20. bf16 came to 0.28, and
to 0.0012 in the mean, on a CPU."""
MEAN_REGRET = 0.004


def test_the_embedded_model_answers_as_in_float32(cuda: torch.device, model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = parity_prompts(model_folder)
    settings = EngineSettings(device=cuda.type, max_num_seqs=64, block_size=128, kv_cache_memory_bytes=1 << 30)  # type: ignore[arg-type]
    engine = InProcessEngine(model_folder, settings, dtype="bfloat16")
    engine.runner.warm_up()
    greedy = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    outputs = engine.generate(prompts, [greedy] * len(prompts))

    model: Any = AutoModelForCausalLM  # Any: transformers is untyped
    reference = model.from_pretrained(model_folder, dtype=torch.float32).to(cuda)
    regrets = torch.cat([_regrets(reference, prompt, output) for prompt, output in zip(prompts, outputs, strict=True)])
    print(f"regret: largest {regrets.max():.3f}, mean {regrets.mean():.5f}, none {(regrets == 0).float().mean():.4f}")
    assert float(regrets.max()) < MAX_REGRET and float(regrets.mean()) < MEAN_REGRET

    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.decode(outputs[-len(QUESTIONS)]).startswith("The capital of France is Paris.")


@torch.inference_mode()
def _regrets(reference: Any, prompt: list[int], output: list[int]) -> torch.Tensor:
    device = reference.device
    logits = reference(torch.tensor([prompt + output], device=device)).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(output, device=device).unsqueeze(1)).squeeze(1)
    regrets: torch.Tensor = (logits.max(-1).values - chosen).cpu()
    return regrets
