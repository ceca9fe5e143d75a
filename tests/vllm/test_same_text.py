"""The same token ids through vLLM's Rust front end and through the fleet, each before the mock engine: the same text.

The mock engine answers with the prompt's own ids, so a request says what it is answered with. Ids are drawn from the whole
vocabulary, with many that are parts of characters, and special ones.
"""

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from loadtests.bench_client import VLLM_RS
from loadtests.peers import vllm_front_ends
from loadtests.peers.server import MODEL_NAME, Server

pytestmark = pytest.mark.vllm

NUM_ANSWERS = 400
PARTIAL = "\N{REPLACEMENT CHARACTER}"
WHOLE_CHARACTERS = "a 👩‍👩‍👧 漢字 é ∑ 𝔘 \t\n  ünïcödé עברית"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def answers(tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids."""
    source = random.Random(0)
    everything = range(tokenizer.get_vocab_size())
    partial = [number for number in everything if PARTIAL in tokenizer.decode([number])]
    special = [number for number in everything if tokenizer.decode([number], skip_special_tokens=True) == ""]
    assert len(partial) > 100 and len(special) > 10
    drawn = []
    for _ in range(NUM_ANSWERS):
        kinds = source.choices([everything, partial, special], [0.7, 0.2, 0.1], k=source.randint(1, 40))
        drawn.append([source.choice(kind) for kind in kinds])
    return [tokenizer.encode(WHOLE_CHARACTERS).ids, *drawn]


@pytest.fixture(scope="module")
def front_ends(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """vLLM's, and the fleet's."""
    if not VLLM_RS.exists():
        pytest.skip(f"{VLLM_RS} is not there: make peers")
    folder = tmp_path_factory.mktemp("front-ends")
    token_ids = folder / "ids.json"
    token_ids.write_text("[0]")
    model, flags = str(model_folder), ["--echo"]
    with (
        vllm_front_ends.start_rust(
            folder / "rust.log", model=model, token_ids=token_ids, step_ms=1, engine_flags=flags
        ) as rust,
        vllm_front_ends.start_bridged(
            folder / "fleet.log", model=model, token_ids=token_ids, step_ms=1, workers=1, engine_flags=flags
        ) as fleet,
    ):
        rust.wait_ready(90)
        fleet.wait_ready(90)
        yield rust, fleet


@pytest.mark.parametrize("skips_specials", [True, False])
@pytest.mark.parametrize("is_stream", [True, False])
def test_the_same_ids_are_the_same_text(
    front_ends: tuple[Server, Server],
    tokenizer: Tokenizer,
    answers: list[list[int]],
    is_stream: bool,
    skips_specials: bool,
) -> None:
    rust, fleet = (texts(server, answers, is_stream=is_stream, skips_specials=skips_specials) for server in front_ends)

    decoded = [tokenizer.decode(ids, skip_special_tokens=skips_specials) for ids in answers]
    whole = [number for number, text in enumerate(decoded) if not text.endswith(PARTIAL)]
    assert fleet == decoded
    assert len(whole) > NUM_ANSWERS / 2
    # vllm-rs 0.33.0 gives an answer that ends inside a character twice over
    assert [fleet[number] for number in whole] == [rust[number] for number in whole]


def texts(server: Server, answers: Sequence[list[int]], *, is_stream: bool, skips_specials: bool) -> list[str]:
    def text(ids: list[int]) -> str:
        body = {
            "model": MODEL_NAME, "prompt": ids, "max_tokens": len(ids), "ignore_eos": True, "stream": is_stream,
            "skip_special_tokens": skips_specials, "temperature": 0,
        }  # fmt: skip
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        events = [response.text] if not is_stream else _events(response.text)
        return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])

    with httpx.Client(base_url=server.base_url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        return list(pool.map(text, answers))


def _events(body: str) -> list[str]:
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert events[-1] == "[DONE]", events[-1]
    return events[:-1]
