"""Answers as events."""

from typing import Any

from tests.oracle.cases import chats, tools
from tests.oracle.cases.case import Case, chat, completion

USAGE = {"include_usage": True}
RUNNING_USAGE = {"include_usage": True, "continuous_usage_stats": True}


def completion_stream(name: str, **fields: Any) -> Case:
    return completion(f"streams/{name}", stream=True, **fields)


def chat_stream(name: str, **fields: Any) -> Case:
    return chat(f"streams/{name}", stream=True, **fields)


CASES: list[Case] = [
    completion_stream("completion"),
    completion_stream("usage", stream_options=USAGE),
    completion_stream("no-usage", stream_options={"include_usage": False}),
    completion_stream("options-null", stream_options=None),
    completion_stream("running-usage", stream_options=RUNNING_USAGE),
    completion_stream("running-usage-alone", stream_options={"continuous_usage_stats": True}),
    completion_stream("one-token", max_tokens=1),
    completion_stream("logprobs", logprobs=2),
    completion_stream("logprobs-0", logprobs=0),
    completion_stream("logprobs-as-token-ids", logprobs=1, return_tokens_as_token_ids=True),
    completion_stream("stop", stop=["Paris"]),
    completion_stream("stop-kept", stop=["Paris"], include_stop_str_in_output=True),
    completion_stream("stop-token", stop_token_ids=[30], max_tokens=20),
    completion_stream("n-2", n=2, temperature=1.0, top_k=1),
    completion_stream("two-prompts", prompt=["The sky is", "Two and two make"]),
    completion_stream("two-prompts-usage", prompt=["The sky is", "Two and two make"], stream_options=USAGE),
    completion_stream("echo", echo=True),
    completion_stream("echo-logprobs", echo=True, logprobs=1),
    completion_stream("return-token-ids", return_token_ids=True),
    completion_stream("split-characters", prompt="🦀🦀🦀🦀🦀🦀", max_tokens=12),
    completion_stream("choice", structured_outputs={"choice": [" Paris", " London"]}),
    completion_stream("interval", stream_interval=4),
    completion_stream("unknown-model", model="other"),
    completion_stream("temperature-negative", temperature=-1),
    completion_stream(
        "end-of-sequence", prompt="<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n", max_tokens=48
    ),
    chat_stream("chat"),
    chat_stream("chat-to-its-end", max_tokens=64),
    chat_stream("chat-usage", stream_options=USAGE),
    chat_stream("chat-running-usage", stream_options=RUNNING_USAGE),
    chat_stream("chat-one-token", max_tokens=1),
    chat_stream("chat-stop", stop=["capital"], max_tokens=20),
    chat_stream("chat-stop-token", stop_token_ids=[30], max_tokens=20),
    chat_stream("chat-n-2", n=2, temperature=1.0, top_k=1),
    chat_stream("chat-logprobs", logprobs=True, top_logprobs=2),
    chat_stream("chat-logprobs-without-alternatives", logprobs=True),
    chat_stream("chat-return-token-ids", return_token_ids=True),
    chat_stream("chat-role-of-the-last-message", messages=chats.BEGUN, add_generation_prompt=False),
    chat_stream("chat-role-of-the-last-user", add_generation_prompt=False),
    chat_stream("chat-continued", messages=chats.BEGUN, add_generation_prompt=False, continue_final_message=True),
    chat_stream(
        "chat-json-schema",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x", "y"]}}},
    ),
    chat_stream("chat-named-tool", tools=[tools.WEATHER], tool_choice=tools.NAMED, max_tokens=40),
    chat_stream(
        "chat-required-tool", tools=[tools.WEATHER], tool_choice="required", max_tokens=60, parallel_tool_calls=False
    ),
    chat_stream("chat-called-tool", messages=tools.TAUGHT, tools=[tools.WEATHER], max_tokens=60),
    chat_stream("chat-unused-tool", tools=[tools.WEATHER]),
    chat_stream("chat-unknown-model", model="other"),
    chat_stream("chat-no-messages", messages=[]),
]
