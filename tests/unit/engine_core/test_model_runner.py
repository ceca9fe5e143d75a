"""The runner builds from a folder, keeps what it was told, and computes plans. Tiny random weights."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import EngineSettings, ModelSettings, Settings
from engine_core.batch_state import BatchState
from engine_core.errors import CannotBoot
from engine_core.model_runner import ModelRunner, _device, build_runner
from engine_core.plan import StepPlan
from engine_core.start_stages import StartStages

HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MODEL = ModelFolder(
    path="nowhere",
    architecture="LlamaForCausalLM",
    vocab_size=50,
    max_model_len=64,
    eos_token_ids=(),
    bos_token_id=None,
    served_names=("tiny",),
    chat_template=None,
    sampling_defaults=SamplingDefaults(),
    hf_config=HF_CONFIG,
)


def no_progress(_permille: int) -> None:
    pass


def no_beat() -> None:
    pass


def build(
    model: ModelFolder = MODEL, load_format: str = "dummy", dtype: str = "float32", **engine: Any
) -> tuple[ModelRunner, BatchState]:
    settings = Settings(
        model=ModelSettings(load_format=load_format, dtype=dtype),  # type: ignore[arg-type]
        engine=EngineSettings(**{"num_gpu_blocks_override": 8, "engine_threads": 1, "device": "cpu", **engine}),
    )
    state = BatchState(max_num_seqs=4, max_model_len=64, block_size=16)
    runner = build_runner(settings, model, state, no_progress, no_beat, StartStages())
    assert isinstance(runner, ModelRunner)
    return runner, state


def plan_of(state: BatchState, row: int, context: int, num_new: int) -> StepPlan:
    return StepPlan(
        rows=np.array([row], np.intp),
        num_new_tokens=np.array([num_new], np.int32),
        context_lens=np.array([context], np.int32),
        samples=np.array([context + num_new == state.num_tokens[row]]),
        num_decodes=int(num_new == 1),
        num_tokens=num_new,
        freed_rows=np.zeros(0, np.intp),
        changed_rows=np.array([row] if context == 0 else [], np.intp),
        tenancy=state.tenancy[[row]],
    )


def occupy(state: BatchState, row: int, num_tokens: int) -> None:
    state.token_ids[row, :num_tokens] = np.arange(num_tokens) * 7 % 50
    state.num_tokens[row] = num_tokens
    state.block_table[row, :2] = (2 * row, 2 * row + 1)
    state.num_blocks[row] = 2


def test_a_prompt_in_chunks_gives_the_token_of_a_prompt_at_once() -> None:
    runner, state = build()
    occupy(state, 0, 20)
    occupy(state, 1, 20)

    at_once = runner.launch(plan_of(state, 0, 0, 20)).result()
    chunk = runner.launch(plan_of(state, 1, 0, 13)).result()
    rest = runner.launch(plan_of(state, 1, 13, 7)).result()

    assert len(chunk.token_ids) == 0, "a chunk that is not the last samples nothing"
    assert rest.token_ids.tolist() == at_once.token_ids.tolist()


def test_warming_up_changes_no_later_result() -> None:
    cold, cold_state = build()
    warm, warm_state = build()
    warm.warm_up()
    results = []
    for runner, state in ((cold, cold_state), (warm, warm_state)):
        occupy(state, 0, 5)
        results.append(runner.launch(plan_of(state, 0, 0, 5)).result().token_ids.tolist())

    assert results[0] == results[1]


def test_every_pass_beats_once_per_layer() -> None:
    beats: list[None] = []
    settings = Settings(
        model=ModelSettings(load_format="dummy", dtype="float32"),
        engine=EngineSettings(num_gpu_blocks_override=8, engine_threads=1, device="cpu"),
    )
    state = BatchState(max_num_seqs=4, max_model_len=64, block_size=16)
    runner = build_runner(settings, MODEL, state, no_progress, lambda: beats.append(None), StartStages())
    occupy(state, 0, 5)

    runner.launch(plan_of(state, 0, 0, 5))

    assert len(beats) == HF_CONFIG["num_hidden_layers"]


@pytest.mark.parametrize(
    ("asked", "declared", "computed"),
    [
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("auto", None, torch.float32),
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
    ],
)
def test_auto_takes_the_dtype_of_the_checkpoint(asked: str, declared: str | None, computed: torch.dtype) -> None:
    if computed == torch.bfloat16 and asked == "auto" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        computed = torch.float32
    model = msgspec.structs.replace(MODEL, hf_config={**HF_CONFIG, "dtype": declared})

    runner, _ = build(model, dtype=asked)

    assert runner.kv_cache.pools[0].dtype == computed


def test_a_folder_without_weights_cannot_boot(tmp_path: Path) -> None:
    with pytest.raises(CannotBoot, match=r"model\.safetensors"):
        build(msgspec.structs.replace(MODEL, path=str(tmp_path)), load_format="auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_cannot_boot() -> None:
    with pytest.raises(CannotBoot, match="--device cuda"):
        build(device="cuda")


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_engines_take_the_gpus_in_turn_and_name_theirs_to_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    devices = [_device(name, index) for index in range(4)]

    assert [str(device) for device in devices] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert current == devices


@pytest.mark.parametrize(("name", "has_gpu"), [("cpu", True), ("cpu", False), ("auto", False)])
def test_every_engine_on_a_cpu_is_on_the_same(name: str, has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    assert _device(name, 1) == torch.device("cpu")


def test_a_gpu_that_is_asked_for_and_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(CannotBoot, match="no CUDA device"):
        _device("cuda", 0)
