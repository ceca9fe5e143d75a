"""Architecture name, as config.json has it → how to read its configuration."""

from collections.abc import Callable
from typing import Any

from engine_core.errors import CannotBoot
from engine_core.models.decoder import DecoderConfig, read_config


def _llama(hf_config: dict[str, Any]) -> DecoderConfig:
    """Llama 2 to 3.3, SmolLM2."""
    has_bias = bool(hf_config.get("attention_bias"))
    return read_config(hf_config, has_qkv_bias=has_bias, has_output_bias=has_bias, has_qk_norm=False)


def _mistral(hf_config: dict[str, Any]) -> DecoderConfig:
    """Mistral 7B: no bias anywhere."""
    return read_config(hf_config, has_qkv_bias=False, has_output_bias=False, has_qk_norm=False)


def _qwen2(hf_config: dict[str, Any]) -> DecoderConfig:
    """Qwen2 and Qwen2.5: biases on q, k and v, none on the output."""
    return read_config(hf_config, has_qkv_bias=True, has_output_bias=False, has_qk_norm=False)


def _qwen3(hf_config: dict[str, Any]) -> DecoderConfig:
    """Qwen3 dense: q and k normalized per head, no bias as a rule."""
    has_bias = bool(hf_config.get("attention_bias"))
    return read_config(hf_config, has_qkv_bias=has_bias, has_output_bias=has_bias, has_qk_norm=True)


ARCHITECTURES: dict[str, Callable[[dict[str, Any]], DecoderConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def decoder_config(architecture: str, hf_config: dict[str, Any]) -> DecoderConfig:
    """Raises CannotBoot for an architecture that is not here, naming those that are."""
    reader = ARCHITECTURES.get(architecture)
    if reader is None:
        raise CannotBoot(f"architecture {architecture} is not supported (supported: {', '.join(ARCHITECTURES)})")
    return reader(_without_sliding_window(architecture, hf_config))


def _without_sliding_window(architecture: str, hf_config: dict[str, Any]) -> dict[str, Any]:
    """Qwen configs carry a window that `use_sliding_window` (default false there) switches off."""
    if architecture.startswith("Qwen") and not hf_config.get("use_sliding_window", False):
        return {**hf_config, "use_sliding_window": False}
    return hf_config
