"""What a chat's messages are to a template: roles that it does not know."""

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from apiserver.chat_messages import render_chat
from apiserver.chat_template import ChatTemplate
from apiserver.schema.requests import decode_chat

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
USER = {"role": "user", "content": "Hi"}


def rendered(messages: Sequence[Mapping[str, object]], source: str = PLAIN) -> str:
    return render_chat(decode_chat(msgspec.json.encode({"messages": messages})), ChatTemplate(source, {}))


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([("developer", "Be short.")], "[system] Be short. [user] Hi "),
        ([("system", "Be kind."), ("developer", "Be short.")], "[system] Be kind.\n\nBe short. [user] Hi "),
        ([("system", "Be kind."), ("user", "No.")], "[system] Be kind. [user] No. [user] Hi "),
        ([("user", "No."), ("developer", "Be short.")], "[system] Be short. [user] No. [user] Hi "),
    ],
)
def test_a_template_that_knows_no_developers_reads_one_system_message(
    before: list[tuple[str, str]], expected: str
) -> None:
    assert rendered([*[{"role": role, "content": text} for role, text in before], USER]) == expected


def test_roles_are_the_templates_to_know() -> None:
    assert rendered([{"role": "ipython", "content": "42"}, USER]) == "[ipython] 42 [user] Hi "


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "tool", "content": None}, {"role": "system"}])
def test_who_says_nothing_has_an_empty_text(message: Mapping[str, object]) -> None:
    assert rendered([message, USER]) == f"[{message['role']}]  [user] Hi "


def test_a_template_that_knows_developers_is_given_them() -> None:
    source = "{% if messages[0].role == 'developer' %}D{% endif %}" + PLAIN

    assert (
        rendered([{"role": "developer", "content": "Be short."}, USER], source) == "D[developer] Be short. [user] Hi "
    )


def test_a_developers_parts_stay_parts_for_a_template_that_takes_them() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }},{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert rendered([{"role": "developer", "content": parts}], source) == "[system]a,b,"
