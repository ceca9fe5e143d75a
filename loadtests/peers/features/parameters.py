"""Probes of requests' parameters."""

import asyncio
import json
import re
import subprocess
import sys
from typing import get_args, get_type_hints

import httpx

from config.settings import ServerSettings
from loadtests.peers.features.rig import COLOUR, HI, TOOL, Found, Json, Rig, graded, no, probe, url


@probe("temperature top_p top_k min_p seed, penalties (freq, pres, rep)")
def _sampling(rig: Rig) -> Found:
    fields = {"temperature": 1.5, "top_p": 0.95, "top_k": 200, "min_p": 0.001, "frequency_penalty": 0.5,
        "presence_penalty": 0.5, "repetition_penalty": 1.1}  # fmt: skip
    first, same, other = (
        rig.chat(**fields, seed=s, max_tokens=24)["choices"][0]["message"]["content"] for s in (1, 1, 2)
    )
    return graded(
        {"all taken": True, "a seed repeats its text": first == same, "another gives another": first != other}
    )


@probe("n > 1")
def _n(rig: Rig) -> Found:
    choices = rig.chat(n=3, temperature=1.5, seed=3, max_tokens=16)["choices"]
    return graded({f"{len({c['message']['content'] for c in choices})} texts of n = 3": len(choices) == 3})


@probe("best_of")
def _best_of(rig: Rig) -> Found:
    answer = rig.send("POST", "/v1/completions", json={"prompt": "a", "best_of": 3, "max_tokens": 2})
    return graded({f"best_of 3: {answer.status_code}": answer.status_code == 200})


@probe("beam search")
def _beam(rig: Rig) -> Found:
    return no("400: " + rig.refusal("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2}))


@probe("max_tokens, max_completion_tokens, min_tokens, ignore_eos")
def _lengths(rig: Rig) -> Found:
    def used(**fields: Json) -> int:
        return int(rig.chat(**fields)["usage"]["completion_tokens"])

    return graded(
        {"max_tokens": used(max_tokens=3) == 3, "max_completion_tokens": used(max_completion_tokens=4) == 4,
         "min_tokens": used(max_tokens=40, min_tokens=40) == 40, "ignore_eos": used(max_tokens=60, ignore_eos=True) == 60}
    )  # fmt: skip


@probe("stop strings; stop_token_ids; include_stop_str_in_output")
def _stop(rig: Rig) -> Found:
    whole = rig.complete(max_tokens=12)["choices"][0]["text"]
    word = whole[4:7]
    before = rig.complete(max_tokens=12, stop=word)["choices"][0]["text"]
    kept = rig.complete(max_tokens=12, stop=word, include_stop_str_in_output=True)["choices"][0]["text"]
    ids = rig.complete(max_tokens=12, return_token_ids=True)["choices"][0]["token_ids"]
    ended = rig.complete(max_tokens=12, stop_token_ids=[ids[3]])["choices"][0]
    return graded(
        {"stop": before == whole[: whole.index(word)], "included": kept == before + word,
         "stop_token_ids": ended["finish_reason"] == "stop" and ended["stop_reason"] == ids[3]}
    )  # fmt: skip


@probe("logit_bias, allowed_token_ids, bad_words")
def _bias(rig: Rig) -> Found:
    def text(**fields: Json) -> str:
        return str(rig.complete(max_tokens=4, **fields)["choices"][0]["text"])

    [number] = rig.post("/tokenize", {"prompt": "z", "add_special_tokens": False})["tokens"]
    return graded(
        {"logit_bias": text(logit_bias={str(number): 100}) == "zzzz",
         "allowed_token_ids": text(allowed_token_ids=[number]) == "zzzz",
         "bad_words": text(logit_bias={str(number): 100}, bad_words=["z"])[:1] != "z"}
    )  # fmt: skip


@probe("logprobs / top_logprobs (−1 = all)")
def _logprobs(rig: Rig) -> Found:
    [first] = rig.chat(logprobs=True, top_logprobs=5, max_tokens=1)["choices"][0]["logprobs"]["content"]
    every = rig.send("POST", "/v1/chat/completions", json={"messages": HI, "logprobs": True, "top_logprobs": -1})
    return graded({"the best 5": len(first["top_logprobs"]) == 5, "-1 for all": every.status_code == 200})


@probe("prompt_logprobs (non-stream), prompt_logprob_start")
def _prompt_logprobs(rig: Rig) -> Found:
    made = rig.complete([1, 2, 3, 4], prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    sampling = {"max_tokens": 1, "prompt_logprobs": 1, "prompt_logprob_start": 2}
    answer = rig.send("POST", "/inference/v1/generate", json={"token_ids": [1, 2, 3, 4], "sampling_params": sampling})
    return graded({"prompt_logprobs": len(made) == 4, "prompt_logprob_start": answer.status_code == 200})


@probe("echo (incl. max_tokens 0)")
def _echo(rig: Rig) -> Found:
    none = rig.complete(echo=True, max_tokens=0)["choices"][0]["text"]
    some = rig.complete(echo=True)["choices"][0]["text"]
    return graded({"echo": some.startswith("One, two,") and len(some) > 9, "max_tokens 0": none == "One, two,"})


@probe("return_token_ids, return_tokens_as_token_ids, token_offsets")
def _ids(rig: Rig) -> Found:
    choice = rig.complete(return_token_ids=True, return_tokens_as_token_ids=True, logprobs=1)["choices"][0]
    offsets = rig.complete(return_token_offsets=True)
    return graded(
        {"return_token_ids": len(choice["token_ids"]) == 8,
         "return_tokens_as_token_ids": choice["logprobs"]["tokens"][0].startswith("token_id:"),
         "token_offsets": "token_offsets" in json.dumps(offsets)}
    )  # fmt: skip


@probe("structured: json_schema, json_object, regex, choice, grammar (EBNF), structural_tag, disable_any_whitespace")
def _structured(rig: Rig) -> Found:
    def text(max_tokens: int = 200, **fields: Json) -> str:
        return str(rig.chat(max_tokens=max_tokens, **fields)["choices"][0]["message"]["content"])

    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": COLOUR}}
    tag = {"structures": [{"begin": "<c>", "schema": COLOUR, "end": "</c>"}], "triggers": ["<c>"]}
    bare = rig.send("POST", "/v1/chat/completions", json={
        "messages": HI, "structured_outputs": {"json": COLOUR, "disable_any_whitespace": True}})  # fmt: skip
    return graded(
        {
            "json_schema": json.loads(text(response_format=schema))["colour"] in ("red", "green"),
            "json_object": text(response_format={"type": "json_object"}).lstrip().startswith("{"),
            "regex": bool(re.fullmatch("[0-9]{5}", text(structured_outputs={"regex": "[0-9]{5}"}))),
            "choice": text(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no"),
            "grammar": text(structured_outputs={"grammar": 'root ::= "a" "b"'}) == "ab",
            "structural_tag": bool(text(response_format={"type": "structural_tag", **tag})),
            "disable_any_whitespace": bare.status_code == 200,
        }
    )


@probe("tools, tool_choice auto/none/required/named, parallel_tool_calls, streamed argument deltas")
def _tools(rig: Rig) -> Found:
    def message(choice: Json, **fields: Json) -> Json:
        return rig.chat(tools=[TOOL], tool_choice=choice, max_tokens=400, **fields)["choices"][0]["message"]

    def arguments(calls: Json) -> bool:
        return bool(calls) and json.loads(calls[0]["function"]["arguments"])["colour"] in ("red", "green")

    named = {"type": "function", "function": {"name": "paint"}}
    body = {"messages": HI, "tools": [TOOL], "tool_choice": named, "max_tokens": 400, "temperature": 0}
    events = rig.events("/v1/chat/completions", body)
    deltas = [call["function"]["arguments"] for event in events for choice in event["choices"]
        for call in choice["delta"].get("tool_calls") or []]  # fmt: skip
    single = message("required", parallel_tool_calls=False)["tool_calls"]
    return graded(
        {
            "required": arguments(message("required")["tool_calls"]),
            "named": arguments(message(named)["tool_calls"]),
            "none": not message("none").get("tool_calls"),
            "auto": message("auto")["role"] == "assistant",
            "parallel_tool_calls": len(single) == 1,
            f"{len(deltas)} argument deltas": len(deltas) > 2 and "colour" in json.loads("".join(deltas)),
        }
    )


def _choices(field: str) -> list[str]:
    """What a flag takes, by its type in the settings."""
    hint = get_type_hints(ServerSettings)[field]
    return sorted({value for part in (hint, *get_args(hint)) for value in get_args(part) if isinstance(value, str)})


@probe("tool parsers")
def _tool_parsers(rig: Rig) -> Found:
    names = _choices("tool_call_parser")
    return Found("partly" if names else "no", f"{len(names)} values of the flag: {', '.join(names)}")


@probe("reasoning parsers")
def _reasoning_parsers(rig: Rig) -> Found:
    names = _choices("reasoning_parser")
    return Found(
        "partly" if names else "no", f"{len(names)} values of the flag, any markers by two others: {', '.join(names)}"
    )


@probe("stream_options.include_usage, continuous_usage_stats")
def _usage(rig: Rig) -> Found:
    body = {"prompt": "One,", "max_tokens": 6, "ignore_eos": True}
    last = rig.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})[-1]
    both = {"include_usage": True, "continuous_usage_stats": True}
    running = rig.events("/v1/completions", {**body, "stream_options": both})
    return graded(
        {"include_usage": last["usage"]["completion_tokens"] == 6 and not last["choices"],
         "continuous_usage_stats": all(event.get("usage") for event in running)}
    )  # fmt: skip


@probe("usage.prompt_tokens_details.cached_tokens")
def _cached(rig: Rig) -> Found:
    prompt = "this is asked for twice " * 50
    rig.complete(prompt)
    usage = rig.complete(prompt)["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return graded({f"{cached} of {usage['prompt_tokens']} tokens, without a flag": cached > 0})


@probe("per-request timing in response (ttft_ms, queue, itl, tok/s)")
def _timing(rig: Rig) -> Found:
    options = {"include_usage": True, "include_stages": True}
    last = rig.events("/v1/completions", {"prompt": "One,", "max_tokens": 6, "stream_options": options})[-1]
    stages = last["usage"].get("stages_ms") or {}
    return Found("partly" if stages else "no", f"of a stream, on request: milliseconds of {', '.join(stages)}")


@probe("stream_interval (server and request)")
def _interval(rig: Rig) -> Found:
    body = {"prompt": "One,", "max_tokens": 24, "ignore_eos": True}
    each, rare = (len(rig.events("/v1/completions", {**body, **more})) for more in ({}, {"stream_interval": 8}))
    help_text = subprocess.run([sys.executable, "-m", "ops", "serve", "--help"], capture_output=True, text=True).stdout
    return graded(
        {
            f"by request: {each} events, then {rare}": rare < each,
            "by the server's flag": "--stream-interval" in help_text,
        }
    )


@probe("SSE keep-alive comments")
def _keep_alive(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "4000") as fleet:
        body = {"prompt": "a", "max_tokens": 3, "ignore_eos": True, "stream": True}
        text = httpx.post(url(fleet, "/v1/completions"), json=body, timeout=60).text
    return graded({"a comment while a step takes 4 s": any(line.startswith(":") for line in text.splitlines())})


@probe("priority")
def _priority(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "20", "--max-num-seqs", "1") as fleet:
        ended: list[str] = []

        async def ask(client: httpx.AsyncClient, name: str, priority: int, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            body = {"prompt": name, "max_tokens": 40, "ignore_eos": True, "priority": priority}
            (await client.post(url(fleet, "/v1/completions"), json=body, timeout=60)).raise_for_status()
            ended.append(name)

        async def all_of_them() -> None:
            async with httpx.AsyncClient() as client:
                await asyncio.gather(
                    ask(client, "first", 0, 0), ask(client, "late", 9, 0.2), ask(client, "soon", -9, 0.3)
                )

        asyncio.run(all_of_them())
    return graded({"the later, more urgent one is served first": ended.index("soon") < ended.index("late")})


@probe("cache_salt, session_id")
def _salt(rig: Rig) -> Found:
    prompt = "salted or not, it is the same " * 40

    def cached(**fields: Json) -> int:
        return int(rig.complete(prompt, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"])

    first, again, other = cached(cache_salt="a"), cached(cache_salt="a"), cached(cache_salt="b")
    return graded(
        {
            "cache_salt keeps prompts apart": first == other == 0 < again,
            "session_id, taken": cached(session_id="s") >= 0,
        }
    )


@probe("chat_template in request")
def _template(rig: Rig) -> Found:
    ids = rig.post("/tokenize", {"messages": HI, "chat_template": "{{ messages[0].content }}"})["tokens"]
    used = rig.chat(chat_template="{{ messages[0].content }}")["usage"]["prompt_tokens"]
    return graded({"behind a flag: the request's own is rendered": used == len(ids) < 8})


@probe("Prompt forms: token ids, list of prompts, embeddings")
def _prompts(rig: Rig) -> Found:
    embeds = rig.send("POST", "/v1/completions", json={"prompt": "", "prompt_embeds": "AA=="})
    return graded(
        {"token ids": rig.complete([1, 2, 3])["usage"]["prompt_tokens"] == 3,
         "lists": len(rig.complete(["a", "b"])["choices"]) == 2, "embeddings": embeds.status_code == 200}
    )  # fmt: skip
