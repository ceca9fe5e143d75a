"""Rules between settings: each broken one is a line, all of them at once."""

from typing import Any

import pytest

from config.checks import faults_of, faults_with_model
from config.load import load
from config.model_folder import ModelFolder, SamplingDefaults

NGRAM = '{"method":"ngram","num_speculative_tokens":3}'


def test_defaults_break_no_rule() -> None:
    assert faults_of(load({}, {})) == []


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ({"ring_bytes": "100000"}, "--ring-bytes"),
        ({"ring_bytes": "65536", "max_num_seqs": "4096"}, "too small"),
        ({"uds": "/tmp/s", "port": "80"}, "--uds"),
        ({"uds": "/" + "x" * 200}, "--uds"),
        ({"port": "8001"}, "--ops-port"),
        ({"reasoning_parser": "delimiters", "reasoning_start_str": "<a>"}, "--reasoning-end-str"),
        ({"reasoning_end_str": "</a>"}, "--reasoning-parser delimiters"),
        ({"block_size": "64", "max_model_len": "32"}, "--block-size"),
    ],
    ids=lambda value: str(value),
)
def test_a_broken_rule_is_named(flags: dict[str, str], hint: str) -> None:
    assert any(hint in line for line in faults_of(load(flags, {})))


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ({"speculative_config": "ngram"}, "--speculative-config: JSON is malformed"),
        ({"speculative_config": '{"method":"eagle3","num_speculative_tokens":3}'}, "Invalid enum value 'eagle3'"),
        ({"speculative_config": '{"num_speculative_tokens":3}'}, "field method"),
        ({"speculative_config": NGRAM, "engine": "sim"}, "the sim engine computes nothing"),
        ({"speculative_config": NGRAM, "engine": "vllm", "vllm_python": "python"}, "behind --"),
    ],
    ids=lambda value: str(value),
)
def test_speculation_that_cannot_be_is_one_line(flags: dict[str, str], hint: str) -> None:
    [line] = faults_of(load(flags, {}))

    assert hint in line


VLLM_STARTED_HERE = {"engine": "vllm", "vllm_python": "python"}
VLLM_STARTED_ELSEWHERE = {"engine": "vllm", "vllm_handshake": "tcp://127.0.0.1:29550"}
PASSED_ON = {
    "max_num_batched_tokens": "4096",
    "kv_cache_memory_bytes": "1000000000",
    "num_gpu_blocks_override": "512",
    "load_format": "dummy",
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_is_passed_on_to_vllm_needs_one_that_is_started_here(name: str) -> None:
    flag = {name: PASSED_ON[name]}

    [line] = faults_of(load({**VLLM_STARTED_ELSEWHERE, **flag}, {}))

    assert line.startswith(f"--{name.replace('_', '-')} is for a vLLM that is started here")
    assert faults_of(load({**VLLM_STARTED_HERE, **flag}, {})) == []
    assert faults_of(load(flag, {})) == []


@pytest.mark.parametrize("flag", [{"attention_backend": "triton"}, {"disable_cascade_attn": True}], ids=str)
def test_kernels_of_our_own_engine_are_not_vllms(flag: dict[str, Any]) -> None:
    for vllm in (VLLM_STARTED_HERE, VLLM_STARTED_ELSEWHERE):
        [line] = faults_of(load({**vllm, **flag}, {}))

        assert line.endswith("what vLLM is to take stands behind --")
    assert faults_of(load(flag, {})) == []


def test_prompt_lookup_on_a_cpu_breaks_no_rule() -> None:
    assert faults_of(load({"speculative_config": NGRAM, "device": "cpu"}, {})) == []


def test_all_faults_come_at_once() -> None:
    assert len(faults_of(load({"ring_bytes": "100000", "port": "8001"}, {}))) == 2


def test_a_model_without_an_end_is_refused() -> None:
    model = ModelFolder(
        path="/m", architecture="LlamaForCausalLM", vocab_size=10, max_model_len=8, eos_token_ids=(), bos_token_id=None,
        served_names=("m",), chat_template=None, sampling_defaults=SamplingDefaults(), hf_config={},
    )  # fmt: skip

    lines = faults_with_model(load({}, {}).settings, model)

    assert len(lines) == 2  # no eos, and blocks of 16 tokens for a context of 8
