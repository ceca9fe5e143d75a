"""The sim engine: scripted, deterministic, on time."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import EngineSettings
from engine_core.batch_state import BatchState
from engine_core.errors import CannotBoot
from engine_core.scheduler import Scheduler
from engine_core.sequence import Sequence
from engine_core.sim import SimRunner, build_sim_runner, read_script
from ipc.messages import SamplingParams, make_stream_id

VOCAB = {"Ġhello": 0, "Ġworld": 1, "hello": 2, "Ċ": 3, "Ġé": 4, "Ġeos": 5, "Ġadded": 6, "Ġfar": 99}


def folder(path: Path, content: Any) -> ModelFolder:  # Any: what tokenizer.json holds
    (path / "tokenizer.json").write_bytes(msgspec.json.encode(content))
    return ModelFolder(
        path=str(path), architecture="X", vocab_size=50, max_model_len=64, eos_token_ids=(5,), bos_token_id=None,
        served_names=("m",), chat_template=None, sampling_defaults=SamplingDefaults(), hf_config={},
    )  # fmt: skip


def outputs(
    requests: list[tuple[list[int], int | None]], *, num_blocks: int = 100, length: int = 12
) -> list[list[int]]:
    """What each (prompt, seed) gets when all run together."""
    state = BatchState(max_num_seqs=8, max_model_len=64, block_size=4)
    scheduler = Scheduler(state, num_blocks, 32)
    script = np.arange(1000, 1300, dtype=np.int32)
    runner = SimRunner(state, script=script, num_blocks=num_blocks, step_ms=0, prefill_us_per_token=0)
    for number, (prompt, seed) in enumerate(requests):
        scheduler.add(
            Sequence(
                stream_id=make_stream_id(0, 1, number), request_id="", token_ids=np.array(prompt, np.int32),
                sampling=SamplingParams(max_tokens=length, seed=seed), num_prompt_tokens=len(prompt),
                max_total_len=len(prompt) + length, arrival=number, arrival_ns=0,
            )
        )  # fmt: skip
    got: list[list[int]] = [[] for _ in requests]
    while (plan := scheduler.schedule()) is not None:
        launched = runner.launch(plan)
        scheduler.advance(plan)
        tokens = scheduler.commit(plan, launched.result())
        for number, token_id in zip(tokens.numbers.tolist(), tokens.token_ids.tolist(), strict=True):
            got[number].append(token_id)
    return got


def test_output_depends_on_prompt_and_seed_alone_not_on_the_crowd() -> None:
    requests = [([n, 1, 2], seed) for n in range(4) for seed in (None, 7)]

    together = outputs(requests)

    assert [outputs([request])[0] for request in requests] == together
    assert len({tuple(output) for output in together}) == len(requests)


def test_a_preempted_request_gets_the_same_words() -> None:
    requests: list[tuple[list[int], int | None]] = [([n] * 5, None) for n in range(3)]

    assert outputs(requests, num_blocks=6) == outputs(requests)


def test_the_script_is_plain_words_of_the_vocabulary(tmp_path: Path) -> None:
    model = folder(tmp_path, {"model": {"type": "BPE", "vocab": VOCAB}, "added_tokens": [{"id": 6, "content": "x"}]})

    assert read_script(model).tolist() == [0, 1]


def test_the_script_reads_sentencepiece_vocabularies(tmp_path: Path) -> None:
    model = folder(tmp_path, {"model": {"vocab": [["<unk>", 0.0], ["▁word", -1.0], ["▁", -2.0]]}})

    assert read_script(model).tolist() == [1]


def test_words_without_their_space_serve_when_there_are_no_others(tmp_path: Path) -> None:
    model = folder(tmp_path, {"model": {"vocab": {"hello": 4, "##x": 5}}})

    assert read_script(model).tolist() == [4]


@pytest.mark.parametrize(
    ("content", "words"), [({"model": {"vocab": {"!": 1}}}, "no plain word"), ({"modl": {}}, "not a tokenizer")]
)
def test_a_vocabulary_without_words_cannot_boot(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(CannotBoot, match=words):
        read_script(folder(tmp_path, content))


def test_the_pool_has_the_size_the_operator_chose(tmp_path: Path) -> None:
    model = folder(tmp_path, {"model": {"vocab": VOCAB}})
    state = BatchState(max_num_seqs=2, max_model_len=64, block_size=16)

    chosen = build_sim_runner(EngineSettings(max_num_seqs=2, num_gpu_blocks_override=9), model, state)
    default = build_sim_runner(EngineSettings(max_num_seqs=2), model, state)

    assert chosen.num_blocks == 9
    assert default.num_blocks * 16 >= 3 * 64


def test_steps_end_on_an_absolute_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        slept.append(round(seconds, 6))
        now_s += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(time, "sleep", sleep)
    state = BatchState(max_num_seqs=1, max_model_len=64, block_size=16)
    runner = SimRunner(state, script=np.ones(1, np.int32), num_blocks=4, step_ms=20, prefill_us_per_token=1000)
    scheduler = Scheduler(state, 4, 64)
    scheduler.add(
        Sequence(
            stream_id=1, request_id="", sampling=SamplingParams(max_tokens=20), token_ids=np.ones(5, np.int32),
            num_prompt_tokens=5, max_total_len=25, arrival=1, arrival_ns=0,
        )
    )  # fmt: skip

    for busy_s in (0.0, 0.005, 0.012, 0.5, 0.0):
        now_s += busy_s  # what the engine did between two steps
        plan = scheduler.schedule()
        assert plan is not None
        launched = runner.launch(plan)
        scheduler.advance(plan)
        scheduler.commit(plan, launched.result())

    assert slept == [0.025, 0.015, 0.008, 0.02, 0.02]
