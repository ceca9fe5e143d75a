"""Sends a case and brings the answer into a form in which two servers can be compared.

What may differ between two runs of one server is replaced: ids keep their prefix only, times and fingerprints nothing. Of a
stream the events of each choice stand by themselves, and those that tell of text one behind the other are joined, because how
many tokens share an event is a matter of timing; the last event's text, where it has one, becomes an event before it.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import httpx

from tests.oracle.cases.case import Case

TIMEOUT_S = 600.0  # of one request among others on a busy machine

_ID = re.compile(r"^([a-z]+[-_])[0-9a-zA-Z_-]{6,}$")
_REPLACED = {"created": 0, "system_fingerprint": None}
_JOINED_DELTAS = ({"content"}, {"reasoning"}, {"reasoning", "reasoning_content"})


@dataclass(frozen=True)
class Answer:
    """`body` is JSON, a stream's events, or text. Any: JSON, here and below."""

    status: int
    content_type: str
    body: Any


def ask(base_url: str, case: Case) -> Answer:
    response = send(base_url, case)
    return answer_of(response.status_code, response.headers.get("content-type", ""), response.text)


def send(base_url: str, case: Case) -> httpx.Response:
    if case.body is None:
        return httpx.get(base_url + case.path, timeout=TIMEOUT_S)
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    headers = {"content-type": "application/json"}
    return httpx.post(base_url + case.path, content=content, headers=headers, timeout=TIMEOUT_S)


def answer_of(status: int, content_type: str, text: str) -> Answer:
    kind = content_type.partition(";")[0]
    if kind == "text/event-stream":
        return Answer(status, kind, _stream(text))
    return Answer(status, kind, _plain(json.loads(text)) if kind == "application/json" else text)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(key, item) for key, item in value.items()}
    return value


def _replaced(key: str, value: Any) -> Any:
    if key in _REPLACED:
        return _REPLACED[key]
    if key in ("id", "request_id") and isinstance(value, str):
        return _ID.sub(r"\1", value)
    return _plain(value)


def _stream(text: str) -> dict[str, Any]:
    """By choice its events; those of none; what comes last, as it stands."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    choices: dict[str, list[dict[str, Any]]] = {}
    others = []
    for event in map(_plain, map(json.loads, events[:-1])):
        if not event.get("choices"):
            others.append(event)
        for choice in event.get("choices", ()):
            of_choice = choices.setdefault(str(choice["index"]), [])
            for part in _split({**event, "choices": [choice]}):
                if not (of_choice and _try_join(of_choice[-1], part)):
                    of_choice.append(part)
    return {"choices": choices, "others": others, "last": events[-1]}


def _split(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The last event of a choice says why it ended; text that it carries too becomes one of its own."""
    [choice] = event["choices"]
    delta = choice.get("delta", choice)
    names = [name for name in ("content", "text", "reasoning", "reasoning_content", "tool_calls") if delta.get(name)]
    if choice.get("finish_reason") is None or not (names or choice.get("logprobs") or choice.get("token_ids")):
        return [event]
    first = {**choice, "finish_reason": None}
    last = {**choice, "logprobs": None}
    if "delta" in choice:
        first.pop("stop_reason", None)
        first["delta"] = {**delta} if names else {"content": ""}
    else:
        first["stop_reason"] = None
    if "token_ids" in choice:
        last["token_ids"] = None
    if "delta" in choice:
        last["delta"] = {name: value for name, value in delta.items() if name not in names}
    else:
        last["text"] = ""
    return [{**event, "choices": [first]}, {**event, "choices": [last]}]


def _try_join(event: dict[str, Any], follower: dict[str, Any]) -> bool:
    """Puts the follower's text, logprobs and ids behind those of the event, where both tell of the same kind of thing."""
    choice, other = event["choices"][0], follower["choices"][0]
    if choice["finish_reason"] is not None or other["finish_reason"] is not None:
        return False
    if (choice.get("logprobs") is None) != (other.get("logprobs") is None):
        return False
    if "delta" in choice:
        if not _try_join_deltas(choice["delta"], other["delta"]):
            return False
    else:
        choice["text"] += other["text"]
    for name, values in (other.get("logprobs") or {}).items():
        choice["logprobs"][name] += values
    if other.get("token_ids"):
        choice["token_ids"] = [*(choice.get("token_ids") or []), *other["token_ids"]]
    if "usage" in follower:
        event["usage"] = follower["usage"]
    for whole, part in ((event, follower), (choice, other)):
        whole.update({name: value for name, value in part.items() if name not in whole})
    return True


def _try_join_deltas(delta: dict[str, Any], other: dict[str, Any]) -> bool:
    if delta.keys() != other.keys():
        return False
    if set(delta) in _JOINED_DELTAS:
        for name in delta:
            delta[name] += other[name]
        return True
    calls, others = delta.get("tool_calls"), other.get("tool_calls")
    if (
        calls
        and others
        and calls[-1]["index"] == others[0]["index"]
        and not others[0].get("id")
        and not calls[0].get("id")
    ):
        calls[-1]["function"]["arguments"] += others[0]["function"]["arguments"]
        return True
    return False
