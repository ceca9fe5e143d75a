"""One streamed chat through the service, and the metrics that autoscalers and pickers read. Ends with 1 on any fault."""

import json
import os
import ssl
import sys
import tomllib
import urllib.request

base_url = sys.argv[1]
headers = {"content-type": "application/json"}
if os.environ.get("API_KEYS_ARE_A_FILE"):
    entries = tomllib.loads(os.environ["API_KEYS"]).values()
    keys = [entry["key"] for entry in entries if "key" in entry]
    if not keys:
        sys.exit("the file of keys has only their hashes: no key to ask with")
else:
    keys = [key.strip() for key in os.environ.get("API_KEYS", "").split(",") if key.strip()]
if keys:
    headers["authorization"] = f"Bearer {keys[0]}"
tls = ssl.create_default_context()
if os.environ.get("CERTIFICATE"):  # this very certificate, whoever signed it and whatever public name it has
    tls = ssl.create_default_context(cadata=os.environ["CERTIFICATE"])
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    tls.check_hostname = False


def fetch(path: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base_url + path, data, headers)
    with urllib.request.urlopen(request, timeout=100, context=tls) as response:
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
