"""How long the whole server takes to start: from the command to /readyz, and to an answer that took prefill and decode.

    python -m loadtests.gpu.starts TOKENIZER_FOLDER [--runs 3] [--workers 4] [--out FILE.md]

Random weights of the Qwen3-0.6B shape, default settings. The first start of a machine compiles kernels; the others find them
on disk. The stages of supervisor and engine are those of their log.
"""

import argparse
import json
import re
import time
import urllib.request
from pathlib import Path

from loadtests import report
from loadtests.gpu.server import write_folder
from loadtests.peers import tokenfleet
from loadtests.peers.server import MODEL_NAME, Server

FLAGS = ("--load-format", "dummy", "--device", "cuda", "--max-model-len", "4096")
TIMEOUT_S = 180
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 8
STAGES = re.compile(
    r"(?:supervisor|engine 0): start stages .*|engine 0: .* graphs captured .*|engine 0: flash-attn-4 .*"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenfleet-shape"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = write_folder(arguments.tokenizer, arguments.folder)
    rows = [started(str(folder), arguments.workers, run) for run in range(1, arguments.runs + 1)]
    text = f"{report.machine()}\n\n" + report.table(("start", "/readyz, s", "first answer, s"), rows)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def started(model: str, workers: int, run: int) -> list[str]:
    log = Path("/tmp/tokenfleet-gpu-start.log")
    with tokenfleet.start(log, model=model, workers=workers, flags=FLAGS) as server:
        server.wait_ready(TIMEOUT_S, "/readyz")
        ready_s = time.monotonic() - server.started_at_s
        assert answered_tokens(server) == OUTPUT_TOKENS
        answered_s = time.monotonic() - server.started_at_s
    print(f"start {run}: ready {ready_s:.2f} s, answered {answered_s:.2f} s after the command", flush=True)
    for line in STAGES.findall(log.read_text()):
        print(f"    {line}", flush=True)
    return [str(run), f"{ready_s:.2f}", f"{answered_s:.2f}"]


def answered_tokens(server: Server) -> int:
    """Of one request."""
    body = {
        "model": MODEL_NAME, "prompt": list(range(1000, 1000 + PROMPT_TOKENS)), "max_tokens": OUTPUT_TOKENS,
        "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{server.base_url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
