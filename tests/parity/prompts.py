"""What the embedded model is asked wherever its output is compared: 42 prompts of 1 to 1500 tokens."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

PROSE = Path(__file__).parent / "texts" / "prose.txt"
LENGTHS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 200, 300, 500, 1000, 1500]
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "Translate to German: good morning, my friend.",
    "List five fruits that are red.",
    "1 + 1 = 2, 2 + 2 = 4, 3 + 3 =",
    "Once upon a time, in a village by the river,",
    "東京はどこにありますか？",
    "Explain photosynthesis to a child.",
    '{"name": "Alice", "age":',
    "Roses are red, violets are",
    "How many legs does a spider have?",
    "SELECT name FROM users WHERE",
    "The quick brown fox",
    "Dear Sir or Madam,",
    "Die Hauptstadt von Deutschland ist",
    "A recipe for pancakes:",
)


def parity_prompts(model_folder: Path) -> list[list[int]]:
    """Texts of exact lengths cut out of running prose, then chats."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)  # Any: transformers' types promise less than it does
    prose = tokenizer(PROSE.read_text()).input_ids
    cuts, start = [], 0
    for length in LENGTHS:
        cuts.append(prose[start : start + length])
        start += length
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in QUESTIONS
    ]
    return cuts + chats
