"""English prompts have their length, and repeat only where asked to."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from loadtests.prompts import long_context_copy, write_english


def test_prompts_have_about_the_tokens_asked_for_and_repeat_as_asked(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"

    write_english(path, model_folder, num_tokens=200, count=6, num_distinct=2)

    prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    assert len(prompts) == 6 and len(set(prompts)) == 2
    assert all(195 <= len(tokenizer.encode(prompt).ids) <= 210 for prompt in prompts)


def test_a_copy_with_room_has_no_weights(model_folder: Path, tmp_path: Path) -> None:
    copy = long_context_copy(model_folder, tmp_path / "copy", 32_768)

    assert json.loads((copy / "config.json").read_text())["max_position_embeddings"] == 32_768
    assert (copy / "tokenizer.json").exists() and not list(copy.glob("*.safetensors"))
