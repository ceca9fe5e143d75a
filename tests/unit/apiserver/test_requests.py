"""Request bodies: what is decoded, what is refused, and the name of the field in every refusal."""

import json
import typing
from array import array
from typing import Any

import pytest

from apiserver.answer_details import AnswerDetails
from apiserver.errors import ContextTooLong, InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.schema.requests import (
    ChatRequest,
    CompletionRequest,
    SamplingFields,
    TokenizeRequest,
    decode_chat,
    decode_completion,
    decode_detokenize,
)
from apiserver.schema.unsupported import CHAT, COMPLETION, TOKENIZE, refuse_unsupported
from apiserver.schema.validate import generation_request, prompts_of, request_id_or_none
from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import ServerSettings

VOCAB_SIZE, MAX_MODEL_LEN = 1000, 100
MODEL = ModelFolder(
    path="", architecture="", vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN, eos_token_ids=(2,), bos_token_id=None,
    served_names=("m",), chat_template=None, special_tokens={}, sampling_defaults=SamplingDefaults(), hf_config={},
)  # fmt: skip
LIMITS = ServerSettings()
HI = [{"role": "user", "content": "hi"}]


def chat_request(**fields: Any) -> ChatRequest:
    return decode_chat(json.dumps({"messages": HI, **fields}).encode())


def completion_request(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps({"prompt": "hi", **fields}).encode())


def validated(
    request: ChatRequest | CompletionRequest,
    *,
    num_tokens: int = 10,
    num_prompts: int = 1,
    model: ModelFolder = MODEL,
    limits: ServerSettings | None = None,
) -> GenerationRequest:
    prompts = (Prompt(bytes(4 * num_tokens)),) * num_prompts
    return generation_request(request, prompts, model, limits or LIMITS, request_id="r", deadline_s=None)


# The fields of vLLM 0.33's requests, and of OpenAI's API in 2026-11 (chat first, then completions).
SHARED_BY_PEERS = {
    "model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
    "response_format", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user",
    "use_beam_search", "top_k", "min_p", "repetition_penalty", "watermarking", "length_penalty", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
    "spaces_between_special_tokens", "truncate_prompt_tokens", "truncation_side", "prompt_logprobs",
    "logprob_token_ids", "allowed_token_ids", "bad_words", "echo", "add_special_tokens", "structured_outputs",
    "priority", "request_id", "session_id", "return_tokens_as_token_ids", "return_token_ids",
    "routed_experts_prompt_start", "return_token_offsets", "mm_payload", "return_mm_kwargs", "cache_salt",
    "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "repetition_detection", "stream_interval",
    "thinking_token_budget", "return_weight_versions",
}  # fmt: skip
CHAT_OF_PEERS = {
    "messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "reasoning_effort",
    "include_reasoning", "parallel_tool_calls", "add_generation_prompt", "continue_final_message", "documents",
    "chat_template", "chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs", "return_prompt_text",
    "audio", "function_call", "functions", "metadata", "modalities", "prediction", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "verbosity", "web_search_options",
}  # fmt: skip
COMPLETION_OF_PEERS = {
    "prompt", "suffix", "best_of", "prompt_embeds",
}  # fmt: skip


def test_every_field_of_the_peers_is_known() -> None:
    assert set(ChatRequest.__struct_fields__) >= SHARED_BY_PEERS | CHAT_OF_PEERS
    assert set(CompletionRequest.__struct_fields__) >= SHARED_BY_PEERS | COMPLETION_OF_PEERS


def test_a_field_without_a_type_is_either_refused_or_listed_as_void() -> None:
    void = {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "session_id", "mm_payload", "return_mm_kwargs", "return_token_offsets",
        "spaces_between_special_tokens",
    }  # fmt: skip

    for struct, table in ((ChatRequest, CHAT), (CompletionRequest, COMPLETION), (TokenizeRequest, TOKENIZE)):
        hints = typing.get_type_hints(struct)
        untyped = {name for name in struct.__struct_fields__ if hints[name] is Any}
        assert untyped - table.keys() == (void if struct is not TokenizeRequest else set())
        assert table.keys() <= untyped


# A value of each field that asks for something.
ASKING: dict[str, Any] = {
    "top_logprobs": 2, "echo": True,
    "use_beam_search": True, "length_penalty": 0.5,
    "thinking_token_budget": 5,
    "kv_transfer_params": {"a": 1}, "ec_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1}, "logits_processors": ["p"],
    "routed_experts_prompt_start": 1, "prompt_embeds": "AA", "repetition_detection": {}, "watermarking": True,
    "functions": [{}],
    "function_call": "auto", "modalities": ["audio"], "audio": {"voice": "x"},
    "prediction": {}, "web_search_options": {}, "verbosity": "high", "media_io_kwargs": {"a": 1},
    "mm_processor_kwargs": {"a": 1}, "return_prompt_text": True, "suffix": "end",
    "return_weight_versions": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHAT)
def test_chat_refuses_by_name_what_it_does_not_serve(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not supported") as caught:
        refuse_unsupported(chat_request(**{name: ASKING[name]}))

    assert caught.value.param == name


@pytest.mark.parametrize("name", COMPLETION)
def test_completions_refuse_by_name_what_they_do_not_serve(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not supported") as caught:
        refuse_unsupported(completion_request(**{name: ASKING[name]}))

    assert caught.value.param == name


def test_values_that_ask_for_nothing_are_accepted() -> None:
    for table, make in ((CHAT, chat_request), (COMPLETION, completion_request)):
        for name, values in table.items():
            for value in values:
                refuse_unsupported(make(**{name: value}))


def test_zero_is_not_false() -> None:
    with pytest.raises(InvalidRequest, match="echo"):
        refuse_unsupported(completion_request(echo=0))
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        refuse_unsupported(completion_request(top_logprobs=False))


def test_logprobs_are_asked_for_in_two_ways() -> None:
    def asked(request: ChatRequest | CompletionRequest) -> int:
        return validated(request).sampling.num_logprobs

    assert asked(chat_request()) == asked(chat_request(logprobs=False)) == asked(completion_request()) == -1
    assert asked(chat_request(logprobs=True)) == asked(completion_request(logprobs=0)) == 0
    assert asked(chat_request(logprobs=True, top_logprobs=20)) == asked(completion_request(logprobs=20)) == 20
    for wrong, param in (
        (chat_request(top_logprobs=2), "top_logprobs"),
        (chat_request(logprobs=True, top_logprobs=21), "top_logprobs"),
        (chat_request(logprobs=True, top_logprobs=-1), "top_logprobs"),
        (completion_request(logprobs=21), "logprobs"),
        (completion_request(logprobs=-1), "logprobs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            asked(wrong)
        assert caught.value.param == param


def test_a_prompt_is_cut_to_its_end_or_to_its_beginning() -> None:
    prompt = Prompt(array("I", range(1, MAX_MODEL_LEN + 100)).tobytes())

    def cut(**fields: Any) -> list[int]:
        request = completion_request(max_tokens=1, **fields)
        done = generation_request(request, (prompt,), MODEL, LIMITS, request_id="r", deadline_s=None)
        return array("I", done.prompts[0].ids).tolist()

    last = MAX_MODEL_LEN + 99
    assert cut(truncate_prompt_tokens=3) == [last - 2, last - 1, last]
    assert cut(truncate_prompt_tokens=3, truncation_side="right") == [1, 2, 3]
    assert len(cut(truncate_prompt_tokens=-1)) == MAX_MODEL_LEN - 1


def test_unknown_fields_and_labels_are_accepted() -> None:
    request = chat_request(user="u", metadata={"a": "b"}, store=True, session_id="s", entirely_unknown=[1])

    refuse_unsupported(request)
    assert validated(request).n == 1


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "Expected `object`"),
        (b"{}", "messages", "missing required field"),
        (b'{"messages": [{"content": "x"}]}', "messages[0].role", "missing required field"),
        (b'{"messages": "hi"}', "messages", "Expected `array`"),
        (b'{"messages": [{"role": 7, "content": "x"}]}', "messages[0].role", "got `int`"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "messages[0].content", "got `int`"),
        (b'{"messages": [], "temperature": "hot"}', "temperature", "got `str`"),
        (b'{"messages": [], "temperature": NaN}', None, "not valid JSON"),
        (b'{"messages": [], "temperature": 1e999}', "temperature", "out of range"),
        (b'{"messages": [], "max_tokens": 1.5}', "max_tokens", "got `float`"),
        (b'{"messages": [], "stream": "yes"}', "stream", "got `str`"),
        (b'{"messages": [], "stop": ["a", 1]}', "stop[1]", "got `int`"),
        (b'{"messages": [], "stream_options": {"include_usage": 1}}', "stream_options.include_usage", "got `int`"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', None, "not valid UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "not valid JSON"),
        (b'{"messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "nested too deeply"),
        (b'{"messages": []} trailing', None, "not valid JSON"),
    ],
)
def test_a_body_that_cannot_be_decoded_says_where_and_why(body: bytes, param: str | None, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_chat(body)

    assert complaint in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("temperature", [-0.1, 2.1, 1e300]),
        ("top_p", [0, -1, 1.01]),
        ("top_k", [-2, 2**31]),
        ("min_p", [-0.1, 1.1]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("repetition_penalty", [0, -1, 101]),
        ("seed", [2**63, -(2**63) - 1]),
        ("n", [0, -1, LIMITS.max_n + 1]),
        ("max_tokens", [0, -1, 10**30]),
        ("max_completion_tokens", [0, -1]),
        ("min_tokens", [-1, 2**31, MAX_MODEL_LEN]),
        ("priority", [2**31, -(2**31) - 1]),
        ("stop", ["", ["a", ""], ["x"] * (LIMITS.max_stop_strings + 1), "x" * 1025]),
        ("allowed_token_ids", [[], [-1], [VOCAB_SIZE]]),
        ("truncate_prompt_tokens", [0, -2, MAX_MODEL_LEN + 1]),
        ("cache_salt", ["", "x" * 1025]),
        ("stop_token_ids", [[-1], [VOCAB_SIZE], [2**40], [1] * 1025]),
        ("logit_bias", [{"x": 1}, {"-1": 1}, {"1000": 1}, {"٣": 1}, {"9" * 5000: 1}]),
    ],
)
def test_every_bound_is_a_400_with_the_fields_name(field: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            validated(chat_request(**{field: value}))
        assert caught.value.param == field
        assert field in caught.value.message or field == "stop"
        assert len(caught.value.message) <= 1000


def test_a_request_that_says_everything_is_passed_on_as_it_is() -> None:
    request = chat_request(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, seed=-7, n=3, max_completion_tokens=20, max_tokens=5, min_tokens=4, stop=["a", "b"],
        stop_token_ids=[7, 8], include_stop_str_in_output=True, ignore_eos=True, skip_special_tokens=False, stream=True,
        stream_options={"include_usage": True}, priority=-3, logit_bias={"5": 200, "6": -1.5},
    )  # fmt: skip

    generation = validated(request)
    sampling = generation.sampling_of(0, 2)

    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.1)
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (-5, 20, 4)
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((7, 8), True)
    assert sampling.logit_bias == ((5, 100.0), (6, -1.5)), "cut to OpenAI's range"
    assert (generation.n, generation.stop, generation.include_stop) == (3, ("a", "b"), True)
    assert (generation.skip_special_tokens, generation.is_stream, generation.include_usage) == (False, True, True)
    assert generation.priority == -3


def test_a_seed_of_minus_one_is_none_as_in_vllm() -> None:
    assert validated(chat_request(seed=-1)).sampling_of(0, 0).seed is None


def test_seeds_of_choices_go_round_where_64_bits_end() -> None:
    generation = validated(chat_request(seed=2**63 - 1, n=2))

    assert [generation.sampling_of(0, choice).seed for choice in range(2)] == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [({}, ()), ({"stop_token_ids": [2, 7]}, (7,)), ({"stop_token_ids": [2, 7], "ignore_eos": True}, (2, 7))],
)
def test_the_models_own_end_is_no_stop_reason(fields: dict[str, Any], told: tuple[int, ...]) -> None:
    """Its eos is 2."""
    assert validated(chat_request(**fields)).told_stop_ids == told


def test_a_silent_request_gets_the_models_defaults_then_openais() -> None:
    defaults = SamplingDefaults(
        temperature=0.6, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.05, presence_penalty=1.5,
        frequency_penalty=0.5, max_new_tokens=40,
    )  # fmt: skip
    values = {**{name: getattr(MODEL, name) for name in MODEL.__struct_fields__}, "sampling_defaults": defaults}

    theirs = validated(chat_request(), model=ModelFolder(**values)).sampling
    plain = validated(chat_request()).sampling

    assert (theirs.temperature, theirs.top_p, theirs.top_k, theirs.min_p) == (0.6, 0.8, 20, 0.05)
    assert (theirs.repetition_penalty, theirs.presence_penalty, theirs.frequency_penalty) == (1.05, 1.5, 0.5)
    assert theirs.max_tokens == 40 and validated(
        chat_request(max_tokens=50), model=ModelFolder(**values)
    ).max_tokens == (50,)
    assert (plain.temperature, plain.top_p, plain.top_k, plain.min_p, plain.repetition_penalty) == (1, 1, 0, 0, 1)
    assert validated(chat_request(temperature=0), model=ModelFolder(**values)).sampling.temperature == 0


def test_nulls_mean_the_default() -> None:
    names = [name for name in SamplingFields.__struct_fields__ if name != "model"]

    assert validated(chat_request(**dict.fromkeys(names))) == validated(chat_request())


def test_output_defaults_to_what_fits_for_chats_and_to_16_for_completions() -> None:
    assert validated(chat_request()).max_tokens == (90,)
    assert validated(completion_request()).max_tokens == (16,)
    assert validated(completion_request(max_tokens=90)).max_tokens == (90,)


def test_more_output_than_fits_behind_the_prompt_is_as_much_as_fits_but_more_than_the_context_is_a_mistake() -> None:
    assert validated(completion_request(max_tokens=91)).max_tokens == (90,)
    assert validated(chat_request(max_completion_tokens=MAX_MODEL_LEN)).max_tokens == (90,)
    for field, request in (("max_tokens", completion_request), ("max_completion_tokens", chat_request)):
        with pytest.raises(InvalidRequest, match="too large: 101") as caught:
            validated(request(**{field: MAX_MODEL_LEN + 1}))
        assert caught.value.param == field


def test_a_prompt_that_fills_the_context_is_told_both_numbers() -> None:
    with pytest.raises(ContextTooLong) as prompt_alone:
        validated(chat_request(), num_tokens=MAX_MODEL_LEN)

    assert prompt_alone.value.message == (
        "This model's maximum context length is 100 tokens. However, your messages resulted in 100 tokens. "
        "Please reduce the length of the messages."
    )
    assert prompt_alone.value.param == "messages"
    assert prompt_alone.value.code == "context_length_exceeded"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        validated(completion_request(), num_tokens=0)


def test_min_tokens_may_not_exceed_what_may_be_generated() -> None:
    assert validated(chat_request(max_tokens=5, min_tokens=5)).sampling.min_tokens == 5
    with pytest.raises(InvalidRequest, match="at most the 5 tokens"):
        validated(chat_request(max_tokens=5, min_tokens=6))


def test_prompts_times_n_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="more than 1024 choices"):
        validated(completion_request(n=LIMITS.max_n), num_prompts=9)


@pytest.mark.parametrize("options", [{"include_usage": True}, {}])
def test_stream_options_without_stream_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="only allowed when stream"):
        validated(chat_request(stream_options=options))


def test_details_are_asked_for_by_name_and_plain_requests_have_none() -> None:
    assert validated(chat_request(stream=True, stream_options={"continuous_usage_stats": True})).details is None
    assert validated(chat_request(stream_interval=4)).details is None, "of streams only"
    both = {"include_usage": True, "continuous_usage_stats": True}
    asked = validated(chat_request(stream=True, stream_options=both, return_token_ids=True, stream_interval=4))
    assert asked.details == AnswerDetails(
        has_prompt_ids=True, has_token_ids=True, has_running_usage=True, stream_interval=4
    )
    with pytest.raises(InvalidRequest, match="stream_interval must be between 1"):
        validated(chat_request(stream=True, stream_interval=0))


def test_request_id_is_bounded_and_printable() -> None:
    assert request_id_or_none(chat_request()) is None
    assert request_id_or_none(chat_request(request_id="abc-1")) == "abc-1"
    for bad in ("", "x" * 129, "a\nb", "é"):
        with pytest.raises(InvalidRequest, match="request_id"):
            request_id_or_none(chat_request(request_id=bad))


def ids_of(prompts: list[str] | list[Prompt]) -> list[list[int]]:
    return [array("I", prompt.ids).tolist() for prompt in prompts if isinstance(prompt, Prompt)]


def test_prompt_is_a_text_texts_ids_or_lists_of_ids() -> None:
    assert prompts_of(completion_request(prompt="a"), LIMITS, VOCAB_SIZE) == ["a"]
    assert prompts_of(completion_request(prompt=["a", "b"]), LIMITS, VOCAB_SIZE) == ["a", "b"]
    assert ids_of(prompts_of(completion_request(prompt=[1, 2]), LIMITS, VOCAB_SIZE)) == [[1, 2]]
    assert ids_of(prompts_of(completion_request(prompt=[[1], [2, 3]]), LIMITS, VOCAB_SIZE)) == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ([1, "a"], "prompt"),
        (["a", [1]], "prompt"),
        ([1, VOCAB_SIZE], "prompt"),
        ([-1], "prompt"),
        ([10**30], "prompt"),
        ([[1], [VOCAB_SIZE]], "prompt[1]"),
        (["a"] * (LIMITS.max_prompts_per_request + 1), "prompt"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompts_of(completion_request(prompt=prompt), LIMITS, VOCAB_SIZE)

    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [None, 1, {}, [None], [True], [1.0], [[1.5]], [["a"]], [[[1]]]])
def test_prompts_of_other_types_are_refused_while_decoding(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        completion_request(prompt=prompt)


def test_detokenize_wants_integers() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_detokenize(b'{"tokens": [1, "a"]}')

    assert caught.value.param == "tokens[1]"


@pytest.mark.parametrize(("asked", "expected"), [(None, 4), (1, 4), (9, 9)])
def test_a_request_may_only_ask_for_fewer_events_than_the_server_sends(asked: int | None, expected: int) -> None:
    limits = ServerSettings(stream_interval=4)

    streamed = validated(chat_request(stream=True, stream_interval=asked), limits=limits)
    whole = validated(chat_request(stream_interval=asked), limits=limits)

    assert streamed.details == AnswerDetails(stream_interval=expected) and whole.details is None
