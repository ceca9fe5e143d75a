"""Every architecture gives transformers' logits on tiny random weights, in float32; what is not computed is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine_core.attention.base import AttentionMetadata, SequenceSpan, SingleTokens
from engine_core.attention.cpu import cpu_attention
from engine_core.errors import CannotBoot
from engine_core.loader import Checkpoint
from engine_core.models.decoder import Decoder
from engine_core.models.registry import decoder_config

SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama bias": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, rms_norm_eps=1e-5)),
    "llama3 rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE)),
    "linear rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "qwen3 bias": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, attention_bias=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    reference.save_pretrained(tmp_path)
    hf_config = reference.config.to_dict()
    architecture = type(reference).__name__
    config = decoder_config(architecture, hf_config)
    cpu = torch.device("cpu")
    decoder = Decoder(
        config, Checkpoint(tmp_path, torch.float32, cpu), cpu_attention,
        max_model_len=128, dtype=torch.float32, device=cpu, beat=lambda: None,
    )  # fmt: skip
    ids = torch.randint(0, 99, (50,))
    pools = [torch.zeros(64, 2, config.num_kv_heads, config.head_dim) for _ in range(config.num_layers)]
    positions = torch.arange(50)
    nothing = np.zeros(0, np.int32)
    no_singles = SingleTokens(nothing, nothing.reshape(0, 0), nothing, block_size=16)
    metadata = AttentionMetadata(no_singles, (SequenceSpan(0, 50, ()),), positions)

    with torch.inference_mode():
        hidden = decoder(ids, positions, pools, metadata)
        logits = decoder.logits(hidden)
        expected = reference(ids.unsqueeze(0)).logits[0]

    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"sliding_window": 16}, "sliding"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": None, "hidden_size": None}, "hidden_size"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change: dict[str, Any], hint: str) -> None:
    hf_config = {name: value for name, value in {**SIZES, **change}.items() if value is not None}

    with pytest.raises(CannotBoot, match=hint):
        decoder_config("LlamaForCausalLM", hf_config)


def test_an_unknown_rope_scaling_is_refused_by_name(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    hf_config = {**SIZES, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    cpu = torch.device("cpu")

    with pytest.raises(CannotBoot, match="yarn"):
        Decoder(
            decoder_config("LlamaForCausalLM", hf_config), Checkpoint(tmp_path, torch.float32, cpu), cpu_attention,
            max_model_len=128, dtype=torch.float32, device=cpu, beat=lambda: None,
        )  # fmt: skip


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(CannotBoot, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        decoder_config("MambaForCausalLM", SIZES)
