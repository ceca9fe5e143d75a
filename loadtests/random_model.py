"""A small model of random weights with the embedded one's tokenizer: any text comes out of it, soon."""

import json
import shutil
from pathlib import Path


def random_model(model: Path, folder: Path) -> Path:
    """The folder of a small Llama with the tokenizer of `model`; its weights come with `--load-format dummy`."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(model / name, folder / name)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | shape))
    return folder
