"""One streamed chat through the service, and the metrics that autoscalers and pickers read. Ends with 1 on any fault."""

import json
import os
import sys
import urllib.request

base_url = sys.argv[1]
headers = {"content-type": "application/json"}
if os.environ.get("API_KEYS"):
    headers["authorization"] = "Bearer " + os.environ["API_KEYS"].split(",")[0].strip()


def fetch(path: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(base_url + path, data, headers), timeout=100) as response:
        return str(response.read().decode())


model = json.loads(fetch("/v1/models"))["data"][0]["id"]
chat = {"model": model, "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
events = [line[6:] for line in fetch("/v1/chat/completions", chat).splitlines() if line.startswith("data: ")]
chunks = [json.loads(event) for event in events if event != "[DONE]"]
text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
faults = [] if text else ["the answer is empty"]
if not events or events[-1] != "[DONE]":
    faults.append("the stream does not end with [DONE]")
metrics = fetch("/metrics")
for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
    if f"\n{name}" not in metrics:
        faults.append(f"/metrics lacks {name}")
print(f"{model} answered {text!r}", *faults, sep="\n")
sys.exit(1 if faults else 0)
