"""Answers of random weights, held to schemas, through a server: each that ends by itself must parse and validate."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from fractions import Fraction
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.validators import extend

from loadtests.conformance.suite import Case

CONCURRENCY = 32
MAX_TOKENS = 64
CHECKER = FormatChecker(("date", "ipv4", "ipv6", "email", "uuid"))
CHECKER.checks("date-time", ValueError)(
    lambda text: not isinstance(text, str) or bool(datetime.fromisoformat(text.upper()))
)
CHECKER.checks("time", ValueError)(
    lambda text: not isinstance(text, str) or time.fromisoformat(text.upper()) is not None
)


def _pattern(_: Any, pattern: str, text: Any, __: Any) -> Iterator[ValidationError]:
    """ECMA-262's classes are ASCII's, which Python's are only when asked; its white space is not. `\\cX` Python has not."""
    pattern = re.sub(r"\\c([A-Za-z])", lambda found: rf"\x{ord(found[1]) % 32:02x}", pattern)
    if isinstance(text, str) and not (re.search(pattern, text) or re.search(pattern, text, re.ASCII)):
        yield ValidationError(f"{text!r} does not match {pattern!r}")


def _multiple_of(_: Any, factor: Any, number: Any, __: Any) -> Iterator[ValidationError]:
    """As the numbers are written; jsonschema divides floats."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if is_number and Fraction(str(number)) % Fraction(str(factor)) != 0:
        yield ValidationError(f"{number} is not a multiple of {factor}")


Validator = extend(Draft202012Validator, {"pattern": _pattern, "multipleOf": _multiple_of})
ENDINGS = {str(token): 6 for token in range(17, 110)}
"""A bias towards single ASCII characters, quotes and brackets among them, in every second request: over 49 152 tokens a
random string goes on for hundreds of them, and would be cut."""


@dataclass
class Generated:
    statuses: Counter[int] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)  # by the case's name: the message
    finishes: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)  # answers that ended by themselves, by the case's name
    num_tokens: int = 0
    faults: list[str] = field(default_factory=list)


async def generate(port: int, cases: Sequence[Case], num_requests: int) -> Generated:
    """Every case in turn until there are `num_requests`; those refused are asked for once."""
    generated, waiting = Generated(), iter(range(num_requests))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:

        async def one_after_another() -> None:
            for number in waiting:
                case = cases[number % len(cases)]
                if case.name not in generated.refused:
                    await _ask(client, case, number, number // len(cases), generated)

        await asyncio.gather(*(one_after_another() for _ in range(CONCURRENCY)))
    return generated


async def _ask(client: httpx.AsyncClient, case: Case, number: int, round_number: int, generated: Generated) -> None:
    """Each round asks for a schema by the other route, and every second time with the bias."""
    body: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 1, "seed": number}
    if (number // 2 + round_number // 2) % 2:
        body["logit_bias"] = ENDINGS
    if isinstance(case.schema, dict) and (number + round_number) % 2:
        form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": case.schema}}
        path, body = "/v1/chat/completions", {
            **body, "messages": [{"role": "user", "content": "Go on."}], "response_format": form,
        }  # fmt: skip
    else:
        path, body = "/v1/completions", {
            **body, "prompt": "Go on.", "structured_outputs": {"json": json.dumps(case.schema)},
        }  # fmt: skip
    answer = await client.post(path, json=body)
    generated.statuses[answer.status_code] += 1
    if answer.status_code == 400:
        _keep_refusal(case, answer.json(), generated)
    elif answer.status_code == 200:
        [choice] = answer.json()["choices"]
        generated.num_tokens += answer.json()["usage"]["completion_tokens"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        _judge(case, choice["finish_reason"], text, generated)
    else:
        generated.faults.append(f"{case.name}: {answer.status_code}: {answer.text[:200]}")


def _keep_refusal(case: Case, answer: Any, generated: Generated) -> None:
    error = answer.get("error", {})
    if not (error.get("message") and error.get("param")):
        generated.faults.append(f"{case.name}: a 400 that does not say what it is about: {answer}")
    generated.refused[case.name] = str(error.get("message"))


def _judge(case: Case, finish: str, text: str, generated: Generated) -> None:
    generated.finishes[finish] += 1
    if finish == "length":
        return
    generated.ended[case.name] += 1
    if finish != "stop":
        generated.faults.append(f"{case.name}: ended by {finish}")
        return
    try:
        content = json.loads(text)
        Validator(case.schema, format_checker=CHECKER).validate(content)
    except Exception as error:  # whatever the validator says, and what it cannot read
        generated.faults.append(f"{case.name}: {type(error).__name__}: {str(error)[:120]}: `{text[:200]}`")
