"""English prompts of an exact number of tokens, cut out of the language reference that Python itself carries."""

import json
import random
from pathlib import Path
from pydoc_data import topics

from tokenizers import Tokenizer


def write_english(path: Path, model: Path, num_tokens: int, count: int, num_distinct: int | None = None) -> None:
    """A `--dataset-name custom` file of `count` prompts for the bench client; repeated when fewer are distinct."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode("\n".join(topics.topics[name] for name in sorted(topics.topics))).ids
    source = random.Random(0)
    prompts = []
    for number in range(num_distinct or count):
        start = source.randrange(len(ids) - num_tokens)
        prompts.append(f"{number} {tokenizer.decode(ids[start : start + num_tokens])}")
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": prompts[number % len(prompts)], "output_tokens": 1}) + "\n")


def long_context_copy(model: Path, folder: Path, max_model_len: int) -> Path:
    """The model's folder without its weights and with room for longer prompts: enough for a front end."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": max_model_len}))
    return folder
