"""Reasoning in answers, as clients of one worker see it: whole and streamed, shown and hidden."""

from pathlib import Path
from typing import Any

import pytest

from apiserver.reasoning.style import Phase, ReasoningStyle, style_or_none
from config.settings import ServerSettings
from ipc.messages import Thinking
from tests.unit.apiserver.worker_rig import CHATML, WorkerRig, error_of, events_of, make_model_folder

THINKING = "First 2, then 2: 4 日本."
ANSWER = "\n\nIt is 4 👍🏽."
HYBRID = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
OPENING = CHATML + "{% if add_generation_prompt %}{{ '<think>\\n' }}{# closed by </think> #}{% endif %}"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "hybrid", template=HYBRID)


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "opening", template=OPENING)


def rig_of(folder: Path, text: str, **settings: Any) -> WorkerRig:
    return WorkerRig(folder, text=text, server=ServerSettings(**settings))


def answer_of(rig: WorkerRig, stream: bool, **fields: Any) -> dict[str, Any]:
    """Of a whole answer its message, of a stream what its deltas add up to; with the finish reason and the usage."""
    if not stream:
        body = rig.chat(**fields).json()
        choice = body["choices"][0]
        return {**choice["message"], "finish_reason": choice["finish_reason"], "usage": body["usage"]}
    *events, last = events_of(rig.chat(stream=True, stream_options={"include_usage": True}, **fields))
    total: dict[str, Any] = {"content": None, "reasoning": None, "reasoning_content": None, "usage": last["usage"]}
    for choice in [event["choices"][0] for event in events]:
        total["finish_reason"] = choice["finish_reason"]
        for name in ("content", "reasoning", "reasoning_content"):
            if choice["delta"].get(name):
                total[name] = (total[name] or "") + choice["delta"][name]
    return total


def num_tokens(rig: WorkerRig, text: str) -> int:
    return len(rig.ids_of(text))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_split_at_the_markers_that_the_template_names(hybrid: Path, stream: bool) -> None:
    rig = rig_of(hybrid, f"<think>{THINKING}</think>{ANSWER}")

    answer = answer_of(rig, stream)

    assert answer["content"] == ANSWER
    assert answer["reasoning"] == answer["reasoning_content"] == THINKING
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == num_tokens(rig, f"<think>{THINKING}</think>{ANSWER}")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": num_tokens(rig, THINKING)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_opens_the_reasoning_needs_no_start_marker(opening: Path, stream: bool) -> None:
    answer = answer_of(rig_of(opening, f"{THINKING}</think>{ANSWER}"), stream)

    assert (answer["reasoning"], answer["content"]) == (THINKING, ANSWER)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("switch", [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}])
def test_switched_off_reasoning_leaves_the_text_alone(hybrid: Path, stream: bool, switch: dict[str, Any]) -> None:
    answer = answer_of(rig_of(hybrid, "<think>no</think>"), stream, **switch)

    assert answer["content"] == "<think>no</think>"
    assert answer.get("reasoning") is None
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_markers_is_content_where_the_parser_was_recognised(hybrid: Path, stream: bool) -> None:
    answer = answer_of(rig_of(hybrid, ANSWER), stream)

    assert (answer["reasoning"], answer["content"]) == (None, ANSWER)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_never_ends_its_reasoning_has_no_content(hybrid: Path, stream: bool) -> None:
    answer = answer_of(rig_of(hybrid, THINKING, reasoning_parser="qwen3"), stream)

    assert (answer["reasoning"], answer["content"]) == (THINKING, None)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_may_be_left_out_and_is_still_counted(hybrid: Path, stream: bool) -> None:
    rig = rig_of(hybrid, f"<think>{THINKING}</think>{ANSWER}")

    answer = answer_of(rig, stream, include_reasoning=False, logprobs=True)

    assert (answer["reasoning"], answer["content"]) == (None, ANSWER)
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": num_tokens(rig, THINKING)}
    assert rig.engine.requests[0].sampling.num_logprobs == -1  # they would spell the reasoning out


@pytest.mark.parametrize("stream", [False, True])
def test_delimiters_may_be_the_operators(hybrid: Path, stream: bool) -> None:
    settings = {"reasoning_parser": "delimiters", "reasoning_start_str": "(hm)", "reasoning_end_str": "(so)"}

    answer = answer_of(rig_of(hybrid, f" (hm){THINKING}(so){ANSWER}", **settings), stream)

    assert (answer["reasoning"], answer["content"]) == (THINKING, ANSWER)


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_parser_everything_is_content(hybrid: Path, stream: bool) -> None:
    text = f"<think>{THINKING}</think>{ANSWER}"

    answer = answer_of(rig_of(hybrid, text, reasoning_parser="none"), stream)

    assert answer["content"] == text
    assert answer["usage"].get("completion_tokens_details") is None
    assert ("completion_tokens_details" in answer["usage"]) is not stream, "as in vLLM, whose streams leave nulls out"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_content_and_what_is_behind_it_is_lost(hybrid: Path, stream: bool) -> None:
    answer = answer_of(rig_of(hybrid, f"<think>{THINKING}</think>{ANSWER}"), stream, stop=["is"])

    assert (answer["reasoning"], answer["content"]) == (THINKING, "\n\nIt ")


def test_a_continued_answer_goes_on_where_it_stopped(hybrid: Path) -> None:
    rig = rig_of(hybrid, f"{THINKING}</think>{ANSWER}")
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>Well. "}]

    message = rig.post(
        "/v1/chat/completions",
        {"messages": messages, "continue_final_message": True, "add_generation_prompt": False},
    ).json()["choices"][0]["message"]

    assert (message["reasoning"], message["content"]) == (THINKING, ANSWER)


def test_special_tokens_that_are_markers_are_seen_and_taken_out(tmp_path: Path) -> None:
    template = CHATML + "{# <|endoftext|> #}"
    settings = {
        "reasoning_parser": "delimiters", "reasoning_start_str": "<|endoftext|>", "reasoning_end_str": "<|im_start|>",
    }  # fmt: skip
    rig = rig_of(make_model_folder(tmp_path / "special", template=template), "", **settings)
    rig.engine.script = lambda _message, _prompt: [0, *rig.ids_of("hm"), 1, *rig.ids_of("so")]

    answer = answer_of(rig, stream=True)

    assert (answer["reasoning"], answer["content"]) == ("hm", "so")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == num_tokens(rig, "hm")


def test_the_engine_is_told_how_long_the_model_may_think(hybrid: Path, opening: Path) -> None:
    rigs = [rig_of(hybrid, ANSWER), rig_of(hybrid, ANSWER, reasoning_parser="qwen3"), rig_of(opening, ANSWER)]

    for rig in rigs:
        assert rig.chat(thinking_token_budget=7).status_code == 200
    budgets = [rig.engine.requests[0].sampling.thinking for rig in rigs]

    markers = {"start_ids": tuple(rigs[0].ids_of("<think>")), "end_ids": tuple(rigs[0].ids_of("</think>"))}
    assert budgets == [Thinking(max_tokens=7, waits_for_start=waits, **markers) for waits in (True, False, False)]


@pytest.mark.parametrize(
    "fields", [{"thinking_token_budget": -1}, {"reasoning_effort": "none", "thinking_token_budget": 7}]
)
def test_without_reasoning_or_limit_the_engine_is_told_nothing(hybrid: Path, fields: dict[str, Any]) -> None:
    rig = rig_of(hybrid, ANSWER)

    rig.chat(**fields)

    assert rig.engine.requests[0].sampling.thinking is None


@pytest.mark.parametrize(("parser", "budget"), [("none", 7), ("qwen3", -2), ("qwen3", 2**31)])
def test_a_wrong_budget_is_a_400(hybrid: Path, parser: str, budget: int) -> None:
    response = rig_of(hybrid, "x", reasoning_parser=parser).chat(thinking_token_budget=budget)

    assert (response.status_code, error_of(response)["param"]) == (400, "thinking_token_budget")


def test_a_wrong_type_of_include_reasoning_is_a_400(hybrid: Path) -> None:
    assert error_of(rig_of(hybrid, "x").chat(include_reasoning="yes"))["param"] == "include_reasoning"


def test_styles_are_recognised_by_both_markers_only() -> None:
    auto = ServerSettings()

    assert style_or_none(auto, "{{ '<think>' }}") is None
    assert style_or_none(auto, None) is None
    assert style_or_none(auto, "[THINK] [/THINK]") == ReasoningStyle("[THINK]", "[/THINK]")


def test_the_end_of_the_prompt_says_where_the_answer_begins() -> None:
    style = ReasoningStyle("<think>", "</think>")

    assert style.phase_after("user: say <think>\nassistant: ") is Phase.UNDECIDED
    assert style.phase_after("assistant: <think>\n") is Phase.THINKING
    assert style.phase_after("assistant: <think>\n\n</think>\n\n") is Phase.ANSWERING
