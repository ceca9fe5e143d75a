"""What ends an answer of a model, by the files of its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from config.model_folder import read_model_folder
from config.settings import ModelSettings

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "max_position_embeddings": 64, "eos_token_id": 2}
ADDED = [{"id": 1, "content": "<s>", "special": True}, {"id": 7, "content": "<|im_end|>", "special": True}]


def folder_with(path: Path, **files: Any) -> Path:
    for name, content in {"config": CONFIG, "tokenizer": {"added_tokens": ADDED}, **files}.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, (2,)),
        ({"generation_config": {"eos_token_id": [3, 4]}}, (3, 4)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, (7, 2)),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}}}, (7, 2)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "generation_config": {"eos_token_id": [3, 7]}}, (7, 3)),
        ({"tokenizer_config": {"eos_token": "unknown"}}, (2,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "tokenizer": "not JSON"}, (2,)),
    ],
)
def test_the_tokenizers_end_ends_answers_before_the_configured_ones(
    tmp_path: Path, files: dict[str, Any], ids: tuple[int, ...]
) -> None:
    assert read_model_folder(folder_with(tmp_path, **files), ModelSettings()).eos_token_ids == ids
