"""GGUF to Hugging Face folder: exact weights and tokenizer, stamps, atomic replacement, faults."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.torch import load_file
from tokenizers import Tokenizer

from config.model_folder import ModelFolderError, read_model_folder
from config.settings import ModelSettings
from engine_core.gguf_conversion import bf16_bytes, convert
from engine_core.model_source import ModelSource, find_model

HEADS, KV_HEADS, DIM, HIDDEN, INNER = 4, 2, 8, 32, 48
TOKENS = [*map(chr, range(33, 127)), "Ġ", "ab", "<|end|>"]


def write_gguf(
    path: Path, architecture: str = "llama", *, pre: str = "smollm", extra_tensor: str | None = None
) -> None:
    """A model of one layer with random float32 weights."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_bos_token_id(len(TOKENS) - 1)
    shapes = {
        "token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "blk.0.attn_q": (HEADS * DIM, HIDDEN), "blk.0.attn_k": (KV_HEADS * DIM, HIDDEN),
        "blk.0.attn_v": (KV_HEADS * DIM, HIDDEN), "blk.0.attn_output": (HIDDEN, HEADS * DIM),
        "blk.0.ffn_gate": (INNER, HIDDEN), "blk.0.ffn_up": (INNER, HIDDEN), "blk.0.ffn_down": (HIDDEN, INNER),
    }  # fmt: skip
    if extra_tensor:
        shapes[extra_tensor] = (HIDDEN,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source_of(gguf: Path, cache: Path) -> ModelSource:
    return find_model(ModelSettings(model=str(gguf), cache_dir=str(cache)))


def converted(tmp_path: Path, **options: str) -> Path:
    write_gguf(tmp_path / "m.gguf", **options)
    source = source_of(tmp_path / "m.gguf", tmp_path / "cache")
    convert(source, lambda done, total: None)
    return source.path


def test_llama_rows_of_q_and_k_are_put_back_into_halves(tmp_path: Path) -> None:
    """llama.cpp stores row pairs (0, half, 1, half + 1, …) of each head; the folder has them as (0, 1, …, half, …)."""
    stored = np.random.default_rng(0)
    stored.standard_normal((len(TOKENS), HIDDEN), np.float32)
    for _ in range(3):
        stored.standard_normal((HIDDEN,), np.float32)
    q = stored.standard_normal((HEADS * DIM, HIDDEN), np.float32)

    weights = load_file(converted(tmp_path) / "model.safetensors")

    head = q[:DIM]
    expected = np.concatenate((head[0::2], head[1::2]))
    actual = weights["model.layers.0.self_attn.q_proj.weight"][:DIM].float().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1 / 128)


def test_other_architectures_keep_their_rows(tmp_path: Path) -> None:
    llama = load_file(converted(tmp_path) / "model.safetensors")
    (tmp_path / "q").mkdir()
    qwen = load_file(converted(tmp_path / "q", architecture="qwen2", pre="qwen2") / "model.safetensors")

    name = "model.layers.0.self_attn.q_proj.weight"
    assert not llama[name].equal(qwen[name])
    assert llama["model.embed_tokens.weight"].equal(qwen["model.embed_tokens.weight"])


def test_folder_is_one_that_the_roles_can_read(tmp_path: Path) -> None:
    model = read_model_folder(converted(tmp_path), ModelSettings())

    assert model.architecture == "LlamaForCausalLM"
    assert model.eos_token_ids == (len(TOKENS) - 1,)
    assert model.hf_config["rms_norm_eps"] == 1e-05
    assert model.hf_config["tie_word_embeddings"] is True


def test_tokenizer_splits_digits_and_knows_its_special_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(tmp_path) / "tokenizer.json"))

    assert tokenizer.encode("12 3").tokens == ["1", "2", "Ġ", "3"]
    assert tokenizer.encode("a<|end|>").ids[-1] == len(TOKENS) - 1


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 0.0, 3.4e38], np.float32)

    bits = np.frombuffer(bf16_bytes(values), "<u2").astype(np.uint32) << 16

    assert bits.view(np.float32)[:5].tolist() == [1.0, 1.0, 1.015625, -2.5, 0.0]


def test_a_changed_file_is_converted_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    converted(tmp_path)
    source = source_of(tmp_path / "m.gguf", tmp_path / "cache")
    assert source.is_ready

    write_gguf(tmp_path / "m.gguf", "qwen2", pre="qwen2")

    assert not source.is_ready
    convert(source, lambda done, total: None)
    assert source.is_ready
    assert json.loads((source.path / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [source.path.name], "nothing half made is left"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "chameleon"}, "pre-tokenizer 'chameleon'"),
        ({"extra_tensor": "blk.0.ssm_a"}, "blk.0.ssm_a"),
    ],
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    tmp_path: Path, options: dict[str, str], hint: str
) -> None:
    with pytest.raises(ModelFolderError, match=hint):
        converted(tmp_path, **options)

    assert not list(tmp_path.glob("cache/*"))


CONVERTER = """
import sys, time
from pathlib import Path
from config.settings import ModelSettings
from engine_core.gguf_conversion import convert
from engine_core.model_source import find_model

def halt(done, total):
    print("in the middle", flush=True)
    time.sleep(600)

convert(find_model(ModelSettings(model=sys.argv[1], cache_dir=sys.argv[2])), halt)
"""


@contextmanager
def conversion_in_its_middle(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """By a process of its own. What it has written is an hour old."""
    write_gguf(tmp_path / "m.gguf")
    command = [sys.executable, "-c", CONVERTER, str(tmp_path / "m.gguf"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "in the middle\n"
            [folder] = (tmp_path / "cache").iterdir()
            for path in (*folder.iterdir(), folder):
                os.utime(path, (1e9, 1e9))
            yield process
        finally:
            process.kill()


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_what_a_killed_conversion_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with conversion_in_its_middle(tmp_path) as process:
        process.kill()
    assert len(names_in(tmp_path / "cache")) == 1

    folder = converted(tmp_path)

    assert names_in(tmp_path / "cache") == [folder.name]
    assert "converting.lock" not in names_in(folder)


def test_a_conversion_that_still_runs_keeps_its_folder_however_slow_it_is(tmp_path: Path) -> None:
    with conversion_in_its_middle(tmp_path):
        [half_made] = names_in(tmp_path / "cache")

        folder = converted(tmp_path)

        assert names_in(tmp_path / "cache") == sorted([half_made, folder.name])
        assert (tmp_path / "cache" / half_made / "model.safetensors").exists()


@pytest.mark.parametrize(("has_lock", "rested_s", "is_kept"), [
    (True, 5, True), (True, 60, False), (False, 60, True), (False, 7200, False),
])  # fmt: skip
def test_a_folder_that_has_just_been_made_is_kept(
    tmp_path: Path, has_lock: bool, rested_s: float, is_kept: bool
) -> None:
    write_gguf(tmp_path / "m.gguf")
    target = source_of(tmp_path / "m.gguf", tmp_path / "cache").path
    left = target.parent / f".{target.name}-left"
    left.mkdir(parents=True)
    if has_lock:
        (left / "converting.lock").touch()
    for path in (*left.iterdir(), left):
        os.utime(path, (time.time() - rested_s,) * 2)

    converted(tmp_path)

    assert left.exists() == is_kept


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    calls: list[tuple[int, int]] = []

    convert(source_of(tmp_path / "m.gguf", tmp_path / "cache"), lambda done, total: calls.append((done, total)))

    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
