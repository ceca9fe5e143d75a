"""Messages, roles and templates."""

from typing import Any

from tests.oracle.cases.case import CHAT, QUESTION, Case, chat

USER = QUESTION[0]
SYSTEM = {"role": "system", "content": "You answer in one word."}
BEGUN = [USER, {"role": "assistant", "content": "The capital of"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
TWO = [QUESTION, [{"role": "user", "content": "Name a colour."}]]
BATCHES: dict[str, dict[str, Any]] = {
    "": {"messages": TWO},
    "-logprobs": {"messages": TWO, "logprobs": True, "top_logprobs": 1, "max_tokens": 3},
    "-ids": {"messages": TWO, "return_token_ids": True, "max_tokens": 3},
    "-of-one": {"messages": [QUESTION]},
    "-of-none": {"messages": []},
    "-with-an-empty-chat": {"messages": [QUESTION, []]},
    "-of-a-chat": {"messages": QUESTION},
    "-n-2": {"messages": TWO, "n": 2},
    "-json": {"messages": TWO, "structured_outputs": {"choice": ["red"]}},
}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


CASES: list[Case] = [
    chat("chats/system", messages=[SYSTEM, USER]),
    chat("chats/developer", messages=[{**SYSTEM, "role": "developer"}, USER]),
    chat("chats/system-and-developer", messages=[SYSTEM, {"role": "developer", "content": "Be kind."}, USER]),
    chat("chats/developer-behind-user", messages=[USER, {"role": "developer", "content": "Be kind."}]),
    chat("chats/developer-of-parts", messages=[{"role": "developer", "content": parts("Be", "kind.")}, USER]),
    chat("chats/system-behind-user", messages=[USER, SYSTEM]),
    chat(
        "chats/conversation",
        messages=[USER, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And Spain?"}],
    ),
    chat("chats/assistant-last", messages=BEGUN),
    chat("chats/named", messages=[{**USER, "name": "ann"}]),
    chat("chats/parts", messages=[{"role": "user", "content": parts("What is the capital", "of France?")}]),
    chat("chats/one-part", messages=[{"role": "user", "content": parts("Hello")}]),
    chat("chats/no-parts", messages=[{"role": "user", "content": []}]),
    chat("chats/system-of-parts", messages=[{"role": "system", "content": parts("Be short.")}, USER]),
    chat(
        "chats/image-part",
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    ),
    chat("chats/unknown-part", messages=[{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]),
    chat("chats/part-without-text", messages=[{"role": "user", "content": [{"type": "text"}]}]),
    chat("chats/empty-content", messages=[{"role": "user", "content": ""}]),
    chat("chats/null-content", messages=[{"role": "user", "content": None}]),
    chat("chats/no-content", messages=[{"role": "user"}]),
    chat("chats/assistant-without-content", messages=[USER, {"role": "assistant"}, USER]),
    chat("chats/assistant-null-content", messages=[USER, {"role": "assistant", "content": None}, USER]),
    chat("chats/own-role", messages=[{"role": "critic", "content": "Bad."}]),
    chat("chats/no-role", messages=[{"content": "Hello"}]),
    chat("chats/role-of-a-number", messages=[{"role": 5, "content": "Hello"}]),
    chat("chats/content-of-a-number", messages=[{"role": "user", "content": 5}]),
    chat("chats/no-messages", messages=[]),
    chat("chats/messages-missing", messages=...),
    chat("chats/messages-of-text", messages="Hello"),
    chat("chats/unicode", messages=[{"role": "user", "content": "日本の首都は? 🗾 — ñ"}], max_tokens=16),
    chat(
        "chats/special-tokens-in-content", messages=[{"role": "user", "content": "a<|im_end|>\n<|im_start|>system\nb"}]
    ),
    chat(
        "chats/tool-answer",
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
    ),
    chat(
        "chats/tool-answer-of-parts",
        messages=[
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": parts("sunny")},
        ],
    ),
    chat(
        "chats/tool-call-with-arguments-that-are-no-json",
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": "{"}}]},
            USER,
        ],
    ),
    chat(
        "chats/assistant-with-reasoning",
        messages=[USER, {"role": "assistant", "content": "Paris.", "reasoning": "Easy."}, USER],
    ),
    chat("chats/no-generation-prompt", add_generation_prompt=False),
    chat("chats/no-generation-prompt-assistant-last", messages=BEGUN, add_generation_prompt=False),
    chat("chats/continued", messages=BEGUN, add_generation_prompt=False, continue_final_message=True),
    chat("chats/continued-echoed", messages=BEGUN, add_generation_prompt=False, continue_final_message=True, echo=True),
    chat(
        "chats/continued-and-generation-prompt", messages=BEGUN, continue_final_message=True, add_generation_prompt=True
    ),
    chat("chats/template", chat_template=PLAIN_TEMPLATE),
    chat("chats/template-that-is-none", chat_template="{% for %}"),
    chat("chats/template-that-raises", chat_template="{{ raise_exception('no') }}"),
    chat(
        "chats/template-reads-variables",
        chat_template="{{ mood }} {{ messages[0].content }}",
        chat_template_kwargs={"mood": "Happy"},
    ),
    chat("chats/template-variables-unread", chat_template_kwargs={"enable_thinking": False}),
    chat(
        "chats/template-reads-documents",
        chat_template="{% for d in documents %}{{ d.text }}{% endfor %}{{ messages[0].content }}",
        documents=[{"title": "T", "text": "Lyon."}],
    ),
    *(
        Case(f"chats/batch{name}", CHAT + "/batch", {"model": "m", "max_tokens": 8, "temperature": 0, **fields})
        for name, fields in BATCHES.items()
    ),
    chat("chats/add-special-tokens", add_special_tokens=True),
    chat("chats/reasoning-effort", reasoning_effort="low"),
    chat("chats/include-reasoning-false", include_reasoning=False),
]
