"""Computes plans with a real model: inputs, forward pass, logits, samples. Owns the weights and the K/V memory."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor

from config.model_folder import ModelFolder
from config.settings import Settings
from config.speculative import speculative_config
from engine_core.attention.base import AttentionBackend, AttentionMetadata, SingleTokens
from engine_core.attention.choice import Name as BackendName
from engine_core.attention.choice import choose as choose_attention
from engine_core.attention.cuda import CudaAttention
from engine_core.attention.reference import reference_attention
from engine_core.batch_inputs import build_inputs
from engine_core.batch_state import BatchState
from engine_core.drafting import draws_of, max_step_drafts
from engine_core.errors import CannotBoot
from engine_core.kv_cache import KvCache, allocate_kv_cache
from engine_core.layers.heads import FusedHeads
from engine_core.loader import Checkpoint, DummyWeights, Weights
from engine_core.models.decoder import Decoder, DecoderConfig
from engine_core.models.registry import decoder_config
from engine_core.plan import StepPlan, StepResult
from engine_core.pooler import Pooler
from engine_core.prompt_scorer import PromptScorer
from engine_core.sampler import Sampler
from engine_core.start_stages import StartStages

if TYPE_CHECKING:
    from engine_core.cuda_runner import CudaRunner

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP_TOKENS = (1, 2, 4, 8, 16, 64)  # oneDNN builds its kernels per number of rows, at the first use
LOADED_PERMILLE = 900  # of a start; the rest is warming up


def build_runner(
    settings: Settings,
    model: ModelFolder,
    state: BatchState,
    progress: Callable[[int], None],
    beat: Callable[[], None],
    stages: StartStages,
    *,
    index: int = 0,
) -> "ModelRunner | CudaRunner":
    """Load the model and allocate its K/V memory. `progress` gets permille, `beat` a call per layer; `index` is the engine's
    own. Raises CannotBoot."""
    device = _device(settings.engine.device, index)
    if device.type == "cpu":
        torch.set_num_threads(settings.engine.engine_threads or _threads_per_engine(settings.engine.engines))
    dtype = _dtype(settings.model.dtype, model, device)
    config = decoder_config(model.architecture, model.hf_config)

    def loaded(done: int, total: int) -> None:
        progress(LOADED_PERMILLE * done // total)

    weights: Weights = (
        DummyWeights(dtype, device)
        if settings.model.load_format == "dummy"
        else Checkpoint(Path(model.path), dtype, device, loaded)
    )
    if device.type == "cuda":
        backend = choose_attention(
            settings.engine.attention_backend,
            head_dim=config.head_dim,
            block_size=settings.engine.block_size,
            capability=torch.cuda.get_device_capability(device),
            is_float32=dtype == torch.float32,
        )
        if backend != "reference":
            stages.done("device")
            return _build_cuda_runner(settings, model, state, config, weights, backend, dtype, device, beat, stages)
    decoder = Decoder(
        config, weights, _attention(device), max_model_len=model.max_model_len, dtype=dtype, device=device, beat=beat
    )
    stages.done("weights")
    kv_cache = allocate_kv_cache(config, settings.engine, max_model_len=model.max_model_len, dtype=dtype, device=device)
    logger.info(
        "model loaded",
        extra={"architecture": model.architecture, "dtype": str(dtype).removeprefix("torch."), "device": device.type},
    )
    return ModelRunner(decoder, kv_cache, state, device)


def _build_cuda_runner(
    settings: Settings,
    model: ModelFolder,
    state: BatchState,
    config: DecoderConfig,
    weights: Weights,
    backend: BackendName,
    dtype: torch.dtype,
    device: torch.device,
    beat: Callable[[], None],
    stages: StartStages,
) -> "CudaRunner":
    """Two pools of K/V: one to measure what a pass takes beside it, then the one that fills the rest."""
    from engine_core.cuda_runner import CudaRunner, pass_bytes  # Triton: a CPU engine has no use for it
    from engine_core.device_rules import DeviceRules

    stages.done("triton")
    engine, max_model_len = settings.engine, model.max_model_len
    rules = DeviceRules(state, config.vocab_size, device)  # before free memory is counted
    attention = CudaAttention(backend, engine.block_size)
    decoder = Decoder(
        config, weights, attention, max_model_len=max_model_len, dtype=dtype,
        device=device, beat=beat, prepare_heads=FusedHeads,
    )  # fmt: skip
    stages.done("weights")
    scratch = allocate_kv_cache(
        config, msgspec.structs.replace(engine, num_gpu_blocks_override=2),
        max_model_len=max_model_len, dtype=dtype, device=device,
    )  # fmt: skip
    reserved = pass_bytes(decoder, state, scratch, engine.max_num_batched_tokens, device)
    del scratch
    torch.cuda.empty_cache()
    stages.done("largest_pass")
    kv_cache = allocate_kv_cache(
        config, engine, max_model_len=max_model_len, dtype=dtype, device=device, reserved_bytes=reserved
    )
    stages.done("kv_memory")
    max_drafts = 0
    if engine.speculative_config is not None:
        max_drafts = max_step_drafts(speculative_config(engine.speculative_config), engine.max_num_seqs)
    return CudaRunner(
        decoder, attention, kv_cache, state, rules, device,
        max_batched_tokens=engine.max_num_batched_tokens, max_drafts=max_drafts,
        shares_prefixes=engine.enable_prefix_caching and not engine.disable_cascade_attn, beat=beat,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Computed:
    """A pass that was over when it was launched: the CPU computes in `launch`."""

    step_result: StepResult

    def result(self) -> StepResult:
        return self.step_result


class ModelRunner:
    """engine_core.plan.Runner over a Decoder."""

    runs_ahead = False

    def __init__(self, decoder: Decoder, kv_cache: KvCache, state: BatchState, device: torch.device) -> None:
        self.num_blocks = kv_cache.num_blocks
        self.kv_cache = kv_cache
        self._decoder, self._pools = decoder, kv_cache.pools
        self._state = state
        self._sampler = Sampler(state)
        self._pooler = Pooler(state)
        self._prompt_scorer = PromptScorer(state, decoder.logits)
        self._device = device

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Passes of several sizes over the first slots, which nobody owns yet and everybody overwrites."""
        for num_tokens in WARM_UP_TOKENS:
            if num_tokens <= len(self._pools[0]):
                self._warm_pass(num_tokens)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Computed:
        inputs = build_inputs(self._state, plan, self._device)
        hidden = self._decoder(inputs.token_ids, inputs.positions, self._pools, inputs.metadata)
        embeddings = self._pooler.pool(plan, hidden) if self._state.num_pooled else {}
        prompt_scores = self._prompt_scorer.score(plan, hidden) if self._state.num_scored_prompts else {}
        rows = plan.sampled_rows
        if len(rows) == 0:
            return Computed(StepResult(plan.context_lens[:0], prompt_scores=prompt_scores))
        if len(inputs.sampled_tokens) < plan.num_tokens:
            hidden = hidden.index_select(0, inputs.sampled_tokens)
        logits = self._decoder.logits(hidden)
        result = self._sampler.sample(logits, rows) if plan.num_drafts is None else self._verify(logits, plan)
        if embeddings or prompt_scores:
            result = replace(result, embeddings=embeddings, prompt_scores=prompt_scores)
        return Computed(result)

    def _verify(self, logits: Tensor, plan: StepPlan) -> StepResult:
        draws = draws_of(plan, self._state)
        drawn = self._sampler.sample(logits, draws.rows, draws.ahead)
        num_accepted, token_ids = draws.verified(drawn.token_ids)
        return replace(drawn, token_ids=token_ids, num_accepted=num_accepted)

    def _warm_pass(self, num_tokens: int) -> None:
        numbers = torch.arange(num_tokens, device=self._device)
        block_size = self._state.block_size
        places = np.arange(num_tokens, dtype=np.int32)
        block_tables = np.tile(np.arange(-(-num_tokens // block_size), dtype=np.int32), (num_tokens, 1))
        metadata = AttentionMetadata(SingleTokens(places, block_tables, places + 1, block_size), (), numbers)
        hidden = self._decoder(torch.zeros_like(numbers), numbers, self._pools, metadata)
        self._decoder.logits(hidden)


def _device(name: str, index: int) -> torch.device:
    """Engines take the GPUs in turn. What names no device, streams and Triton's launches, goes to the same one from here on."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotBoot("--device cuda, but torch sees no CUDA device here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", index % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _attention(device: torch.device) -> AttentionBackend:
    if device.type != "cpu":
        return reference_attention
    from engine_core.attention.cpu import cpu_attention  # Numba and LLVM: 80 MB that only a CPU engine needs

    return cpu_attention


def _dtype(name: str, model: ModelFolder, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's, and on a CPU without bf16 arithmetic float32. Raises CannotBoot."""
    if name == "float16" and device.type == "cpu":
        raise CannotBoot("--dtype float16 is not computed on a CPU: use bfloat16 or float32")
    if name != "auto":
        return DTYPES[name]
    declared = str(model.hf_config.get("dtype") or model.hf_config.get("torch_dtype") or "float32")
    dtype = DTYPES.get(declared.removeprefix("torch."), torch.float32)
    if device.type == "cpu" and dtype != torch.float32:
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return dtype


def _threads_per_engine(num_engines: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // num_engines)
