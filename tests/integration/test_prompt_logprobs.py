"""What the real model holds of its prompts: echoes and prompt logprobs, against what it said when it wrote the same text."""

from typing import Any

import openai
import pytest

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"


def test_scoring_a_text_gives_what_writing_it_gave(client: openai.OpenAI) -> None:
    written: Any = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
    )
    text = PROMPT + written.choices[0].text

    scored: Any = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=2)
    again: Any = list(
        client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=2, stream=True)
    )

    logprobs, wrote = scored.choices[0].logprobs, written.choices[0].logprobs
    assert scored.choices[0].text == text == "".join(logprobs.tokens)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.tokens[-12:] == wrote.tokens
    assert logprobs.token_logprobs[-12:] == pytest.approx(wrote.token_logprobs, abs=1e-3)
    assert all(
        value == pytest.approx(max(entry.values()), abs=1e-3)
        for value, entry in zip(logprobs.token_logprobs[-12:], logprobs.top_logprobs[-12:], strict=True)
    )
    assert again[0].choices[0].logprobs.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs[1:], abs=1e-3)


def test_a_prompt_longer_than_a_step_is_scored_whole_and_never_from_the_cache(client: openai.OpenAI) -> None:
    prompt = [1000 + 7 * place % 30000 for place in range(2500)]

    def ask(**extra: Any) -> Any:
        return client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, temperature=0, extra_body=extra)

    ask()
    answer = ask(prompt_logprobs=1, return_token_ids=True)

    [choice] = answer.choices
    assert len(choice.prompt_logprobs) == len(prompt) and choice.prompt_token_ids == prompt
    assert all(str(token) in entry for token, entry in zip(prompt[1:], choice.prompt_logprobs[1:], strict=True))
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_chat_tells_the_logprobs_of_its_prompt(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=1, extra_body={"prompt_logprobs": 3}
    )

    first, *others = answer.prompt_logprobs
    assert first is None and len(others) == answer.usage.prompt_tokens - 1
    assert all(3 <= len(entry) <= 4 and entry[next(iter(entry))]["logprob"] <= 0 for entry in others)


@pytest.mark.usefixtures("own_engine")  # vLLM's bridge refuses logprob_token_ids
def test_a_bad_word_never_comes_and_named_tokens_have_their_logprobs(client: openai.OpenAI) -> None:
    def ask(**extra: Any) -> Any:
        extra["return_tokens_as_token_ids"] = True
        return client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1, extra_body=extra
        )

    free = ask()
    assert " Paris" in free.choices[0].text

    banned = ask(bad_words=["Paris"], logprob_token_ids=[5, 6])

    assert "Paris" not in banned.choices[0].text
    for token, entry in zip(banned.choices[0].logprobs.tokens, banned.choices[0].logprobs.top_logprobs, strict=True):
        assert entry.keys() == {token, "token_id:5", "token_id:6"}
