"""Chat templates: what transformers renders, we render; what breaks is the request's 400."""

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from apiserver.chat_template import ChatTemplate
from apiserver.errors import InvalidRequest
from config.model_folder import ModelFolderError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

QWEN3 = """{%- set ns = namespace(last_query_index=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

FEATURES = """{% for message in messages %}{% if loop.index > 3 %}{% break %}{% endif %}
{% generation %}{{ message.content }}{% endgeneration %}
{{ {'a': message.content, 'b': [1, none]} | tojson }} {{ [1, 2] | tojson(indent=2) }}
{{ {'z': 1, 'a': '<é>'} | tojson(sort_keys=true, separators=(',', ':')) }}
{% endfor %}{% for document in documents or [] %}{{ document.title }}: {{ document.text }}
{% endfor %}{{ strftime_now('%Y') | length }}"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "qwen2.5": QWEN25, "qwen3": QWEN3, "all": FEATURES}

USER = {"role": "user", "content": "  What is <b>2 & 2</b>? \n"}
ASSISTANT = {"role": "assistant", "content": 'Four, I\'d say. "4" 東京 👍🏽'}
SYSTEM = {"role": "system", "content": " Answer briefly. "}
TOOL_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é<"}}}],
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "turns": [USER, ASSISTANT, {"role": "user", "content": "Sure?"}],
    "system": [SYSTEM, USER, ASSISTANT],
    "prefill": [USER, {"role": "assistant", "content": "The answer is "}],
    "thinking": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour"}, USER],
    "reasoning": [USER, {**ASSISTANT, "reasoning_content": "hm"}],
    "old reasoning": [USER, {**ASSISTANT, "reasoning": "hm"}],
    "tools": [USER, TOOL_CALL, {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}],
}


def expected(template: str, chat: list[dict[str, Any]], variables: dict[str, Any], **options: Any) -> str | None:
    """What transformers renders; None where it or the template refuses."""
    try:
        rendered: Any = render_jinja_template([chat], chat_template=template, **options, **{**SPECIAL, **variables})
    except Exception:
        return None
    return str(rendered[0][0])


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False, "date_string": "1 Jan 2030"}], ids=["", "vars"])
@pytest.mark.parametrize("mode", ["plain", "generation", "continue"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_renders_what_transformers_renders(
    source: str, chat: list[dict[str, Any]], mode: str, variables: dict[str, Any]
) -> None:
    options: dict[str, Any] = {
        "add_generation_prompt": mode == "generation",
        "continue_final_message": mode == "continue",
    }
    template = ChatTemplate(source, SPECIAL)
    wanted = expected(source, chat, variables, **options)

    try:
        text: str | None = template.render(chat, variables=variables, **options)
    except InvalidRequest:
        text = None

    assert text == wanted


def test_documents_reach_a_template_that_takes_them() -> None:
    documents = [{"title": "T", "text": "x"}]

    text = ChatTemplate(FEATURES, {}).render([USER], add_generation_prompt=False, documents=documents)

    assert "T: x" in text
    assert ChatTemplate(FEATURES, {}).takes_documents
    assert not ChatTemplate(CHATML, {}).takes_documents


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        (CHATML, False),
        (LLAMA3, False),
        (QWEN3, False),
        ("{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for part in m.content | list %}{{ part.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% macro show(content) %}{% for p in content %}{{ p.text }}{% endfor %}{% endmacro %}", True),
    ],
)
def test_a_template_that_walks_over_content_takes_parts(source: str, takes_parts: bool) -> None:
    assert ChatTemplate(source, {}).takes_parts == takes_parts


def test_final_message_in_parts_is_continued_in_its_last_part() -> None:
    source = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}<end>{% endfor %}"
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = [{"role": "assistant", "content": parts}]

    text = ChatTemplate(source, {}).render(chat, add_generation_prompt=False, continue_final_message=True)

    assert text == expected(source, chat, {}, continue_final_message=True) == "[one][two"
    assert parts[1]["text"] == "two", "the caller's messages are not touched"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('No system role here') }}", "No system role here"),
        ("{{ messages[0].missing.deeper }}", "missing"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_the_requests_fault(source: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        ChatTemplate(source, {}).render([USER], add_generation_prompt=False)

    assert caught.value.param == "messages"


def test_output_is_bounded_while_it_is_made() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}0123456789{% endfor %}{% endfor %}"
    template = ChatTemplate(endless, {}, max_chars=10_000)

    with pytest.raises(InvalidRequest, match="more than 10000 characters"):
        template.render([USER], add_generation_prompt=False)


def test_a_template_that_hides_the_final_message_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequest, match="does not render the final message"):
        ChatTemplate("hidden {# content #}", {}).render(
            [ASSISTANT], add_generation_prompt=False, continue_final_message=True
        )


def test_a_template_that_does_not_compile_names_the_line() -> None:
    with pytest.raises(ModelFolderError, match="line 2"):
        ChatTemplate("fine\n{% if %}", {})


def test_the_models_own_template_gives_what_its_tokenizer_gives(model_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from apiserver.chat_template import build_chat_template
    from config.model_folder import read_model_folder
    from config.settings import ModelSettings

    theirs = PreTrainedTokenizerFast.from_pretrained(model_folder)
    ours = build_chat_template(read_model_folder(model_folder, ModelSettings()))
    assert ours is not None

    for chat in (CHATS["one"], CHATS["turns"], CHATS["system"]):
        wanted = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ours.render(chat, add_generation_prompt=True) == wanted
