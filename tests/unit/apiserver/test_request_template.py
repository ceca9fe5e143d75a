"""Chat templates that come with requests: behind a flag, sandboxed, bounded."""

import asyncio
from pathlib import Path

import pytest

from apiserver import request_template
from apiserver.chat_template import ChatTemplate
from apiserver.errors import InvalidRequest
from apiserver.request_template import MAX_TEMPLATE_CHARS, NUM_KEPT, RequestTemplates
from config.settings import ServerSettings
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

OWN = "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}{{ eos_token }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"


def rendered(source: str) -> str:
    def render(template: ChatTemplate) -> str:
        return template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)

    return asyncio.run(RequestTemplates({}, is_trusted=True).run(source, render))


def test_a_trusted_request_brings_its_template(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path, template=None), server=ServerSettings(trust_request_chat_template=True))

    assert rig.chat("hi", chat_template=OWN).status_code == 200
    assert rig.text_of(rig.engine.prompts[0]) == "[user|hi]<|im_end|>"
    assert rig.chat("hi").status_code == 400, "the model has none, and no request changes that"


def test_what_is_tokenized_may_bring_its_template_under_the_same_flag(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "chat_template": OWN}
    trusting = WorkerRig(make_model_folder(tmp_path / "a"), server=ServerSettings(trust_request_chat_template=True))
    wary = WorkerRig(make_model_folder(tmp_path / "b"))

    assert trusting.post("/tokenize", body).json()["tokens"] == trusting.ids_of("[user|hi]<|im_end|>")
    assert error_of(trusting.post("/tokenize", {"prompt": "hi", "chat_template": OWN}))["param"] == "chat_template"
    assert "--trust-request-chat-template" in error_of(wary.post("/tokenize", body))["message"]


def test_without_the_flag_it_is_a_400_that_names_the_flag(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path))

    error = error_of(rig.chat("hi", chat_template=OWN))

    assert error["param"] == "chat_template" and "--trust-request-chat-template" in error["message"]
    assert not rig.engine.requests


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ ''.__class__.__mro__ }}{{ [].append.__globals__['sys'] }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ ('a' * 100000000) | length }}",  # of a product that is not shown
        "{{ (messages[0].content * 100000000) | length }}",
        "x" * (MAX_TEMPLATE_CHARS + 1),
        "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    ],
    ids=lambda source: source[:20],
)
def test_what_a_template_must_not_do_is_the_requests_fault(source: str) -> None:
    with pytest.raises(InvalidRequest):
        rendered(source)


def test_a_template_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_template, "MAX_RENDER_S", 0.05)

    with pytest.raises(InvalidRequest, match=r"more than 0\.05 s"):
        rendered(ENDLESS)


def test_few_templates_are_kept_the_last_used_longest() -> None:
    templates = RequestTemplates({}, is_trusted=True)

    def run(source: str) -> ChatTemplate:
        return asyncio.run(templates.run(source, lambda template: template))

    first = run("0")
    for number in range(1, NUM_KEPT + 3):
        run(str(number))
        assert run("0") is first
    assert run("1") is not None and len(templates._kept) == NUM_KEPT
