"""vLLM's own server and a fleet before the same float32 weights."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loadtests.peers import vllm_python
from loadtests.peers.server import MODEL_NAME
from tests.integration.fleet import Fleet
from tests.oracle.answers import Answer, ask
from tests.oracle.cases.all_cases import CASES

NUM_AT_ONCE = 8  # of ours
FLAGS = (
    "--dtype", "float32", "--max-model-len", "2048", "--no-enable-prefix-caching", "--trust-request-chat-template",
    "--enable-tokenizer-info-endpoint", "--tool-call-parser", "hermes",
)  # fmt: skip
VLLM_FLAGS = ("--enable-auto-tool-choice", "--enable-prompt-tokens-details", "--enable-scale-out")


@pytest.fixture(scope="session")
def vllm_url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log_path = tmp_path_factory.mktemp("vllm") / "log"
    with vllm_python.start(log_path, model=str(model_folder), flags=(*FLAGS, *VLLM_FLAGS)) as server:
        server.wait_ready(timeout_s=400)
        yield server.base_url


@pytest.fixture(scope="session")
def our_url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log_path = tmp_path_factory.mktemp("fleet") / "log"
    flags = ("--workers", "2", "--served-model-name", MODEL_NAME, *FLAGS)
    with Fleet(log_path, str(model_folder), *flags) as fleet:
        yield fleet.base_url


@pytest.fixture(scope="session")
def answers(our_url: str, vllm_url: str) -> dict[str, tuple[Answer, Answer]]:
    """By case, ours and vLLM's, which is asked one by one: in a batch its alternatives may be padded with the token 0."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        ours = list(pool.map(lambda case: ask(our_url, case), CASES))
    theirs = [ask(vllm_url, case) for case in CASES]
    return {case.name: pair for case, pair in zip(CASES, zip(ours, theirs, strict=True), strict=True)}
