"""The decoder-only transformer that Llama, Mistral, Qwen2 and Qwen3 are variants of.

A variant says what differs in a DecoderConfig; everything else is one straight forward pass over flat tokens: no batch
dimension, no padding, sequences told apart by the attention metadata alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine_core.attention.base import AttentionBackend, StepMetadata
from engine_core.errors import CannotBoot
from engine_core.layers.activation import silu_mul
from engine_core.layers.heads import PlainHeads, PrepareHeadsFactory
from engine_core.layers.linear import Linear
from engine_core.layers.norm import RmsNorm
from engine_core.layers.rotary import Rotary
from engine_core.loader import Weights


@dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    has_tied_embeddings: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_qk_norm: bool
    hf_config: dict[str, Any]  # Any: rope parameters as config.json has them


def read_config(
    hf_config: dict[str, Any], *, has_qkv_bias: bool, has_output_bias: bool, has_qk_norm: bool
) -> DecoderConfig:
    """The fields all variants share. Raises CannotBoot for what none of them computes here."""
    try:
        hidden_size, num_heads = int(hf_config["hidden_size"]), int(hf_config["num_attention_heads"])
        config = DecoderConfig(
            vocab_size=int(hf_config["vocab_size"]),
            hidden_size=hidden_size,
            intermediate_size=int(hf_config["intermediate_size"]),
            num_layers=int(hf_config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(hf_config.get("num_key_value_heads") or num_heads),
            head_dim=int(hf_config.get("head_dim") or hidden_size // num_heads),
            rms_norm_eps=float(hf_config.get("rms_norm_eps", 1e-6)),
            has_tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
            has_qkv_bias=has_qkv_bias,
            has_output_bias=has_output_bias,
            has_qk_norm=has_qk_norm,
            hf_config=hf_config,
        )
    except KeyError as error:
        raise CannotBoot(f"config.json lacks {error.args[0]}") from None
    _refuse_what_is_not_computed(hf_config)
    return config


def _refuse_what_is_not_computed(hf_config: dict[str, Any]) -> None:
    if hf_config.get("hidden_act", "silu") != "silu":
        raise CannotBoot(f"activation '{hf_config['hidden_act']}' is not supported (supported: silu)")
    if hf_config.get("quantization_config"):
        kind = hf_config["quantization_config"].get("quant_method", "unknown")
        raise CannotBoot(f"weights quantized with '{kind}' are not supported: use the model's bf16 weights")
    if hf_config.get("mlp_bias"):
        raise CannotBoot("config.json sets mlp_bias, which is not supported")
    if float(hf_config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise CannotBoot(f"partial_rotary_factor {hf_config['partial_rotary_factor']} is not supported")
    window, is_used = hf_config.get("sliding_window"), hf_config.get("use_sliding_window", True)
    if window and is_used and window < int(hf_config.get("max_position_embeddings", 0)):
        raise CannotBoot(f"sliding-window attention (sliding_window={window}) is not supported")


class Decoder:
    """A whole model, ready to run. Its tensors are its own: nothing keeps the mapped files of a checkpoint in memory."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        attention: AttentionBackend,
        *,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        beat: Callable[[], None],
        prepare_heads: PrepareHeadsFactory = PlainHeads,
    ) -> None:
        """`beat` is called per layer: a long pass on a CPU is slow, not stuck."""
        self.config = config
        self._beat = beat
        self._embedding = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden_size).clone()
        self._rotary = Rotary(config.head_dim, max_model_len, config.hf_config, dtype, device)
        self.layers = [
            DecoderLayer(config, weights, f"model.layers.{number}", attention, prepare_heads)
            for number in range(config.num_layers)
        ]
        self.norm = RmsNorm(weights.take("model.norm.weight", config.hidden_size), config.rms_norm_eps)
        lm_head = self._lm_head_weight(weights)
        self._lm_head = Linear(lm_head, is_shared=lm_head is self._embedding)
        weights.finish()

    def __call__(self, token_ids: Tensor, positions: Tensor, pools: list[Tensor], metadata: StepMetadata) -> Tensor:
        """(num_tokens,) ids and positions, one K/V pool per layer → (num_tokens, hidden_size), normalized."""
        hidden, cos, sin = self.enter(token_ids, positions)
        for layer, pool in zip(self.layers, pools, strict=True):
            hidden = layer(hidden, cos, sin, pool, metadata)
            self._beat()
        return self.norm(hidden)

    def enter(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(num_tokens, hidden_size), and the cos and sin that all layers rotate by."""
        return self._embedding.index_select(0, token_ids), *self._rotary.rows(positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """(num_rows, hidden_size) → (num_rows, vocab_size) float32"""
        return self.narrow_logits(hidden).float()

    def narrow_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """The same in the model's dtype: half the bytes, for a sampler that widens as it reads."""
        return self._lm_head(hidden, out)

    def _lm_head_weight(self, weights: Weights) -> Tensor:
        config = self.config
        if config.has_tied_embeddings or not weights.has("lm_head.weight"):
            if weights.has("lm_head.weight"):
                weights.take("lm_head.weight", config.vocab_size, config.hidden_size)  # stored twice: the same tensor
            return self._embedding
        return weights.take("lm_head.weight", config.vocab_size, config.hidden_size)


class DecoderLayer:
    """Attention and a gated MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        name: str,
        attention: AttentionBackend,
        prepare_heads: PrepareHeadsFactory,
    ) -> None:
        self._head_dim = config.head_dim
        self._attention = attention
        self._input_norm = RmsNorm(
            weights.take(f"{name}.input_layernorm.weight", config.hidden_size), config.rms_norm_eps
        )
        self._post_norm = RmsNorm(
            weights.take(f"{name}.post_attention_layernorm.weight", config.hidden_size), config.rms_norm_eps
        )
        self._qkv = _fused_qkv(config, weights, f"{name}.self_attn")
        inner, outer = config.intermediate_size, config.hidden_size
        self._output = Linear(
            weights.take(f"{name}.self_attn.o_proj.weight", outer, config.num_heads * config.head_dim),
            weights.take(f"{name}.self_attn.o_proj.bias", outer) if config.has_output_bias else None,
        )
        gate, up = (weights.take(f"{name}.mlp.{part}_proj.weight", inner, outer) for part in ("gate", "up"))
        self._gate_up = Linear(torch.cat((gate, up)))
        self._down = Linear(weights.take(f"{name}.mlp.down_proj.weight", outer, inner))
        norms = None
        if config.has_qk_norm:
            q_norm, k_norm = (
                RmsNorm(weights.take(f"{name}.self_attn.{part}_norm.weight", config.head_dim), config.rms_norm_eps)
                for part in ("q", "k")
            )
            norms = q_norm, k_norm
        self._prepare_heads = prepare_heads(config.num_heads, norms)

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, metadata: StepMetadata) -> Tensor:
        """(num_tokens, hidden_size) → the same with this layer added; the memory of `hidden` may be reused."""
        return self.after_attention(self._attend(hidden, cos, sin, pool, metadata), hidden)

    def _attend(self, hidden: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, metadata: StepMetadata) -> Tensor:
        q, kv = self.before_attention(hidden, cos, sin, pool, metadata.slot_mapping)
        return self._attention(q, kv, pool, metadata)

    def before_attention(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(num_tokens, hidden_size) → q and kv as engine_core.layers.heads gives them."""
        x = self._input_norm(hidden)
        heads = self._qkv(x).view(len(x), -1, self._head_dim)  # q, k, v heads
        return self._prepare_heads(heads, cos, sin, pool, slots)

    def after_attention(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """(num_tokens, num_heads * head_dim) → `hidden` with this layer added, on a GPU in its memory."""
        hidden = self._output.plus(attended, hidden)
        return self._down.plus(silu_mul(self._gate_up(self._post_norm(hidden))), hidden)


def _fused_qkv(config: DecoderConfig, weights: Weights, name: str) -> Linear:
    """One product for q, k and v: rows in that order."""
    rows = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    sizes = {part: heads * config.head_dim for part, heads in rows.items()}
    weight = torch.cat([weights.take(f"{name}.{p}_proj.weight", size, config.hidden_size) for p, size in sizes.items()])
    bias = None
    if config.has_qkv_bias:
        bias = torch.cat([weights.take(f"{name}.{part}_proj.bias", size) for part, size in sizes.items()])
    return Linear(weight, bias)
