"""Prompt lookup before the real model: whatever is asked, the answer is that of a fleet that guesses nothing."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.fleet import Fleet

LIST = "apples, pears, plums, apples, pears, plums, apples, pears"  # goes on by itself, so that drafts are right
CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
    "pauses": False,
}
SCHEMA = {"type": "object", "properties": {"plums": {"type": "integer"}}, "required": ["plums"]}
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
BODIES: dict[str, dict[str, Any]] = {  # Any: the JSON of requests
    "greedy": {"temperature": 0, "max_tokens": 32},
    "seeded": {"temperature": 0.4, "seed": 3, "max_tokens": 32},
    "cut draws": {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.02, "seed": 4},
    "frequency penalty": {"temperature": 0, "frequency_penalty": 0.4},
    "presence penalty": {"temperature": 0.3, "presence_penalty": 0.6, "seed": 5},
    "repetition penalty": {"temperature": 0, "repetition_penalty": 1.2},
    "bias": {"temperature": 0, "logit_bias": {"28": -4.0}},
    "few tokens": {"temperature": 0.5, "seed": 6, "allowed_token_ids": [28, 28575, 3480, 284, 30, 253]},
    "logprobs": {"temperature": 0, "logprobs": 3},
    "bad words": {"temperature": 0, "bad_words": ["apples, pears", "plums"]},
    "scored prompt": {"temperature": 0, "prompt_logprobs": 1},
    "grammar": {"temperature": 0, "structured_outputs": {"json": SCHEMA}},
    "regex": {"temperature": 0.4, "seed": 7, "structured_outputs": {"regex": "( (apples|pears|plums),){3,9}"}},
    "stop string": {"temperature": 0, "stop": ["s, pl"], "max_tokens": 32},
    "stop string kept": {"temperature": 0, "stop": ["pears, p"], "include_stop_str_in_output": True},
    "stop ids": {"temperature": 0, "stop_token_ids": [284, 30, 198]},
    "at least": {"temperature": 0, "stop_token_ids": [28, 30, 198], "min_tokens": 16},
    "no end": {"temperature": 0.2, "seed": 8, "ignore_eos": True, "max_tokens": 40},
    "two choices": {"temperature": 0.7, "seed": 9, "n": 2},
    "one token": {"temperature": 0, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """What core_fleet is, with drafts."""
    log_path = tmp_path_factory.mktemp("guessing") / "log"
    flags = ("--workers", "2", "--dtype", "float32", "--speculative-config", json.dumps(CONFIG))
    with Fleet(log_path, *flags) as fleet:
        yield fleet


def answer(fleet: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """All that does not change from one call to the next."""
    payload = json.dumps({"prompt": LIST, "max_tokens": 24, **body}).encode()
    request = urllib.request.Request(f"{fleet.base_url}/v1/completions", payload, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        if not body.get("stream"):
            whole = json.load(response)
            return {"choices": whole["choices"], "num_output_tokens": whole["usage"]["completion_tokens"]}
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
    *chunks, last = map(json.loads, events)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    text = "".join(choice["text"] for choice in choices)
    return {"text": text, "ends": ends, "num_output_tokens": last["usage"]["completion_tokens"]}


def streamed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "n": 1, "stream": True, "stream_options": {"include_usage": True}}


def counted(fleet: Fleet) -> dict[str, float]:
    with urllib.request.urlopen(f"{fleet.ops_url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples if "spec_decode" in sample.name]
    return {sample.name + sample.labels.get("position", ""): sample.value for sample in samples}


def answers(fleet: Fleet, bodies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """To all of them at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return dict(zip(bodies, pool.map(answer, [fleet] * len(bodies), bodies.values()), strict=True))


@pytest.mark.parametrize("form", ["whole", "streamed"])
def test_every_answer_is_the_same_with_drafts_as_without(core_fleet: Fleet, guessing: Fleet, form: str) -> None:
    bodies = BODIES
    if form == "streamed":  # a scored prompt comes whole only
        bodies = {name: streamed(body) for name, body in BODIES.items() if "prompt_logprobs" not in body}
    before = counted(guessing)[ACCEPTED]

    drafted = answers(guessing, bodies)

    assert drafted == answers(core_fleet, bodies)
    assert counted(guessing)[ACCEPTED] > before


def test_what_was_guessed_and_right_is_in_the_scrape(core_fleet: Fleet, guessing: Fleet) -> None:
    before = counted(guessing)
    answer(guessing, {"temperature": 0, "max_tokens": 100, "ignore_eos": True})
    after = counted(guessing)

    grown = {name.removeprefix("vllm:spec_decode_num_"): after[name] - before[name] for name in after}
    places = [grown[f"accepted_tokens_per_pos_total{place}"] for place in range(4)]
    assert sum(places) == grown["accepted_tokens_total"] <= grown["draft_tokens_total"] <= 4 * grown["drafts_total"]
    assert 0 < grown["accepted_tokens_total"] < 100 - grown["drafts_total"]
    assert counted(core_fleet) == {}
