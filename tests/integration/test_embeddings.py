"""/v1/embeddings by the real `openai` client, of the real model."""

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = ["The cat sits outside.", "Stocks fell on Monday after a quiet week."]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_text_has_the_embedding_of_transformers(client: Any, model: str, model_folder: Path, pooling: str) -> None:
    reference: Any = AutoModel.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)

    found = client.embeddings.create(model=model, input=TEXTS, extra_body={"pooling": pooling})

    for row, text in zip(found.data, TEXTS, strict=True):
        with torch.inference_mode():
            states = reference(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].numpy()
        wanted = states[-1] if pooling == "last" else states.mean(0)
        np.testing.assert_allclose(row.embedding, wanted / np.linalg.norm(wanted), atol=1e-4)


def test_floats_base64_and_token_ids_agree(client: Any, model: str) -> None:
    by_base64 = client.embeddings.create(model=model, input=TEXTS[0])  # the client's own choice
    by_float = client.embeddings.create(model=model, input=TEXTS[0], encoding_format="float")
    short = client.embeddings.create(model=model, input=TEXTS[0], dimensions=32)

    np.testing.assert_allclose(by_base64.data[0].embedding, by_float.data[0].embedding, atol=1e-5)
    cut = np.array(by_float.data[0].embedding[:32])
    np.testing.assert_allclose(short.data[0].embedding, cut / np.linalg.norm(cut), atol=1e-5)
    assert by_float.usage.prompt_tokens == by_float.usage.total_tokens > 0


def test_many_embeddings_and_chats_at_once(client: Any, model: str) -> None:
    texts = [f"Sentence number {number} of a batch of many." for number in range(64)]

    batch = client.embeddings.create(model=model, input=texts)

    assert [row.index for row in batch.data] == list(range(64))
    alone = client.embeddings.create(model=model, input=texts[40])
    np.testing.assert_allclose(batch.data[40].embedding, alone.data[0].embedding, atol=1e-4)


def test_dimensions_beyond_the_model_are_refused(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="dimensions must be between 1 and 576"):
        client.embeddings.create(model=model, input="hi", dimensions=577)
