"""Models by their shape alone: the config.json of a published model, for random weights."""

from typing import Any

from config.model_folder import ModelFolder, SamplingDefaults

COMMON = {"hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16"}
SHAPES: dict[str, dict[str, Any]] = {  # Any: JSON
    "qwen3-0.6b": COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
        "tie_word_embeddings": True, "eos_token_id": 151645, "bos_token_id": 151643,
    },
    "llama-3.1-8b": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False, "eos_token_id": 128001, "bos_token_id": 128000,
    },
}  # fmt: skip


def in_memory(shape: str, max_model_len: int) -> ModelFolder:
    """For `--load-format dummy`: nothing of it lies on disk."""
    hf_config = SHAPES[shape]
    return ModelFolder(
        path="nowhere",
        architecture=hf_config["architectures"][0],
        vocab_size=hf_config["vocab_size"],
        max_model_len=max_model_len,
        eos_token_ids=(hf_config["eos_token_id"],),
        bos_token_id=hf_config["bos_token_id"],
        served_names=(shape,),
        chat_template=None,
        sampling_defaults=SamplingDefaults(),
        hf_config=hf_config,
    )


def gemms(shape: str) -> list[tuple[int, int, int]]:
    """(out_features, in_features, how often) of a step's dense layers, q, k, v and gate, up fused."""
    c = SHAPES[shape]
    hidden, inner, layers, dim = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    return [
        ((heads + 2 * kv_heads) * dim, hidden, layers),
        (hidden, heads * dim, layers),
        (2 * inner, hidden, layers),
        (hidden, inner, layers),
        (c["vocab_size"], hidden, 1),
    ]


def kv_bytes_per_token(shape: str) -> int:
    c = SHAPES[shape]
    return int(2 * c["num_key_value_heads"] * c["head_dim"] * 2 * c["num_hidden_layers"])


def prefill_flops(shape: str, num_tokens: int) -> float:
    """Of one prompt, causal attention counted by half, logits of the last token only."""
    c = SHAPES[shape]
    dense = sum(2.0 * n * k * times * num_tokens for n, k, times in gemms(shape)[:-1])
    attention: float = 4.0 * c["num_attention_heads"] * c["head_dim"] * num_tokens**2 / 2 * c["num_hidden_layers"]
    return dense + attention
