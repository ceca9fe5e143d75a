"""Tools: asked for by name, required, left to the model; what is wrong with them."""

from typing import Any

from tests.oracle.cases.case import QUESTION, Case, chat


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": schema}}


WEATHER = tool("weather", city={"type": "string", "enum": ["Paris", "Rome"]})
SUM = tool("sum", a={"type": "integer", "minimum": 0, "maximum": 9}, b={"type": "integer", "minimum": 0, "maximum": 9})
NAMED = {"type": "function", "function": {"name": "weather"}}
SPOKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TAUGHT = [
    {"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", "content": SPOKEN},
    {"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", "content": SPOKEN},
    {"role": "user", "content": "Weather in Rome?"},
]  # fmt: skip

CASES: list[Case] = [
    chat("tools/named", tools=[WEATHER], tool_choice=NAMED, max_tokens=40),
    chat("tools/named-of-two", tools=[SUM, WEATHER], tool_choice=NAMED, max_tokens=40),
    chat("tools/required", tools=[WEATHER], tool_choice="required", max_tokens=60, parallel_tool_calls=False),
    chat("tools/none", tools=[WEATHER], tool_choice="none"),
    chat("tools/auto-unused", tools=[WEATHER], tool_choice="auto"),
    chat("tools/unspoken-choice", tools=[WEATHER]),
    chat("tools/auto-called", messages=TAUGHT, tools=[WEATHER], max_tokens=60),
    chat("tools/auto-called-and-none", messages=TAUGHT, tools=[WEATHER], tool_choice="none", max_tokens=60),
    chat("tools/called-without-tools", messages=TAUGHT, max_tokens=60),
    chat("tools/auto-cut", messages=TAUGHT, tools=[WEATHER], max_tokens=12),
    chat("tools/named-cut", tools=[WEATHER], tool_choice=NAMED, max_tokens=2),
    chat("tools/empty", tools=[]),
    chat("tools/empty-and-auto", tools=[], tool_choice="auto"),
    chat("tools/choice-none-without-tools", tool_choice="none"),
    chat("tools/choice-auto-without-tools", tool_choice="auto"),
    chat("tools/choice-required-without-tools", tool_choice="required"),
    chat("tools/named-unknown", tools=[SUM], tool_choice=NAMED),
    chat("tools/choice-unknown", tools=[SUM], tool_choice="perhaps"),
    chat("tools/two-of-one-name", tools=[WEATHER, WEATHER]),
    chat("tools/without-name", tools=[{"type": "function", "function": {}}]),
    chat("tools/without-function", tools=[{"type": "function"}]),
    chat("tools/of-another-type", tools=[{"type": "retrieval"}]),
    chat("tools/without-parameters", tools=[{"type": "function", "function": {"name": "now"}}]),
    chat("tools/parameters-of-text", tools=[{"type": "function", "function": {"name": "now", "parameters": "none"}}]),
    chat("tools/schema-that-is-none", tools=[tool("odd", x={"type": "smell"})], tool_choice="required"),
    chat("tools/functions-of-old", functions=[{"name": "weather", "parameters": {}}]),
    chat("tools/named-logprobs", tools=[WEATHER], tool_choice=NAMED, max_tokens=40, logprobs=True, top_logprobs=1),
    chat("tools/named-n-2", tools=[WEATHER], tool_choice=NAMED, max_tokens=40, n=2, temperature=1.0, top_k=1),
    chat("tools/with-a-response-format", tools=[WEATHER], response_format={"type": "json_object"}, messages=QUESTION),
]
