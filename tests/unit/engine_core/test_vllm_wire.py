"""What travels to and from vLLM, by the layout of its version."""

from array import array
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Raw

from engine_core.vllm.faults import fault_or_none
from engine_core.vllm.layouts import LAYOUTS, UnknownVersion, layout_of
from engine_core.vllm.wire import FinishReason, Wire, sampling_fields, step_logprobs_or_none
from ipc.grammar import Grammar
from ipc.messages import Generate, Pooling, SamplingParams, Thinking

EOS = (2, 7)


def request(**sampling: Any) -> Generate:
    return Generate(stream_id=1, request_id="r", sampling=SamplingParams(max_tokens=9, **sampling))


@pytest.mark.parametrize("version", ["0.24.0", "0.32.0", "0.32.1+cpu", "0.33.0", "0.33.0rc1"])
def test_a_known_version_has_its_layout(version: str) -> None:
    assert layout_of(version) is LAYOUTS[version[:4]]


@pytest.mark.parametrize("version", ["0.23.0", "0.25.0", "0.31.2", "0.34.0", "dev", ""])
def test_an_unknown_version_is_refused_unless_the_operator_says_which_layout_it_has(version: str) -> None:
    with pytest.raises(UnknownVersion, match=r"0\.24, 0\.32 and 0\.33.*--vllm-version"):
        layout_of(version)

    assert layout_of(version, "0.33") is LAYOUTS["0.33"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_request_has_every_field_at_its_position(layout: Any) -> None:
    sampling = Raw(msgspec.msgpack.encode({"max_tokens": 4}))

    frame = Wire(layout).add("ab", array("I", (1, 2, 3)).tobytes(), sampling, priority=-5, cache_salt="salt")

    fields = dict(zip(layout.request, msgspec.msgpack.decode(frame), strict=False))
    assert fields.pop("arrival_time") > 1.7e9
    assert {name: value for name, value in fields.items() if value is not None} == {
        "request_id": "ab", "prompt_token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 4}, "cache_salt": "salt",
        "client_index": 0, "current_wave": 0, "priority": -5,
    }  # fmt: skip


@pytest.mark.parametrize("num_tokens", [0, 319, 320, 1000, 70_000])
@pytest.mark.parametrize("largest", [127, 65_535, 65_536, 2**32 - 1])
def test_prompts_of_any_length_are_plain_integers(num_tokens: int, largest: int) -> None:
    ids = [largest - number % 3 for number in range(num_tokens)]

    frame = Wire(LAYOUTS["0.33"]).add("ab", array("I", ids).tobytes(), Raw(b"\xc0"), priority=0, cache_salt=None)

    assert msgspec.msgpack.decode(frame)[1] == ids


@pytest.mark.parametrize(("version", "place", "num_fields"), [("0.24", 10, 13), ("0.32", 11, 18), ("0.33", 11, 20)])
def test_what_came_from_the_prefix_cache_stands_where_each_version_has_it(
    version: str, place: int, num_fields: int
) -> None:
    output: list[Any] = ["ab", [5], *[None] * (num_fields - 2)]
    output[place] = {"num_prompt_tokens": 9, "num_cached_tokens": 8}

    [read] = Wire(LAYOUTS[version]).outputs(msgspec.msgpack.encode([0, [output]])).outputs

    assert read.prefill_stats is not None and read.prefill_stats.num_cached_tokens == 8
    assert len(LAYOUTS[version].output) == num_fields


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_output_is_read_however_much_of_it_was_left_out(layout: Any) -> None:
    short = ["ab", [5]]
    told = {
        "request_id": "cd", "new_token_ids": [6, 7], "finish_reason": 0, "stop_reason": 7, "num_nans_in_logits": 0,
        "events": [{"type": 1, "timestamp": 1.0}, {"type": 2, "timestamp": 1.5}],
        "prefill_stats": {"num_prompt_tokens": 9, "num_cached_tokens": 8},
    }  # fmt: skip
    long = [*[told.get(name) for name in layout.output], "later", "fields"]
    stats = {
        "num_running_reqs": 3,
        "kv_cache_usage": 0.5,
        "prefix_cache_stats": {"queries": 9, "hits": 8},
        "other": [1],
    }

    read = Wire(layout).outputs(msgspec.msgpack.encode([0, [short, long], stats, 2.5]))

    first, second = read.outputs
    assert (first.request_id, first.new_token_ids, first.finish_reason) == ("ab", [5], None)
    assert (second.request_id, second.new_token_ids, second.finish_reason) == ("cd", [6, 7], FinishReason.STOP)
    assert second.prefill_stats is not None and second.prefill_stats.num_cached_tokens == 8
    assert [event.timestamp for event in second.events or ()] == [1.0, 1.5]
    assert read.timestamp == 2.5 and read.scheduler_stats is not None
    assert read.scheduler_stats.num_running_reqs == 3 and read.scheduler_stats.prefix_cache_stats is not None


def test_logprobs_are_read_inline_and_from_frames_of_their_own() -> None:
    ids, logprobs = np.array([[5, 6, 7]], np.int32), np.array([[-1.0, -0.5, -2.0]], np.float32)
    inline = msgspec.msgpack.Ext(3, ids.tobytes())
    told = [[ids.dtype.str, ids.shape, inline], ["<f4", [1, 3], 1], ["<i8", [1], 2], None]
    pickled = msgspec.msgpack.Ext(1, b"of a field that is not read")
    frame = msgspec.msgpack.encode([0, [["ab", [5], told, None, pickled]], None, 2.5])

    [output] = Wire(LAYOUTS["0.33"]).outputs(frame).outputs
    found = step_logprobs_or_none(output.new_logprobs, [frame, logprobs.tobytes(), np.array([4]).tobytes()])

    assert found is not None
    assert found.ids.tolist() == [[5, 6, 7]] and found.logprobs.tolist() == [[-1.0, -0.5, -2.0]]
    assert found.ranks.tolist() == [4]


def test_parameters_travel_by_vllms_names() -> None:
    grammar = Grammar("choice", '["a","b"]')
    sampling = SamplingParams(
        max_tokens=9, min_tokens=3, temperature=0.5, seed=4, stop_token_ids=(9,), logit_bias=((5, 1.5),), num_logprobs=2,
        allowed_token_ids=(5, 6), grammar=grammar,
    )  # fmt: skip

    fields = sampling_fields(sampling, EOS, num_delivered=2)

    assert (fields["max_tokens"], fields["min_tokens"], fields["seed"], fields["logprobs"]) == (7, 1, 4, 2)
    assert (fields["_eos_token_id"], fields["stop_token_ids"], fields["_all_stop_token_ids"]) == (2, [7, 9], [2, 7, 9])
    assert (fields["logit_bias"], fields["allowed_token_ids"]) == ({5: 1.5}, [5, 6])
    assert fields["structured_outputs"] == {"choice": ["a", "b"], "_backend": "guidance"}


def test_ends_that_are_ignored_end_nothing_and_are_put_off_by_min_tokens_all_the_same() -> None:
    fields = sampling_fields(SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=(9,)), EOS)

    assert "_eos_token_id" not in fields and fields["stop_token_ids"] == [9]
    assert fields["_all_stop_token_ids"] == [2, 7, 9]


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        ({"allowed_token_ids": tuple(range(1025))}, "allowed_token_ids"),
        ({"min_tokens": 1, "stop_token_ids": tuple(range(127))}, "stop ids"),
        ({"bad_words": ((1,),) * 129}, "bad_words"),
        ({"bad_words": (tuple(range(1025)),)}, "bad_words"),
    ],
)
def test_what_vllm_has_no_room_for_is_refused_and_one_less_is_not(sampling: dict[str, Any], word: str) -> None:
    less = {name: value[:-1] if isinstance(value, tuple) else value for name, value in sampling.items()}
    if word == "bad_words" and len(sampling["bad_words"]) == 1:
        less = {"bad_words": (tuple(range(1024)),)}

    assert word in (fault_or_none(request(**sampling), 0, num_eos=2) or "")
    assert fault_or_none(request(**less), 0, num_eos=2) is None


def test_stop_ids_are_not_counted_where_nothing_is_put_off() -> None:
    assert fault_or_none(request(stop_token_ids=tuple(range(500))), 0) is None


def test_a_form_ends_its_answer_though_ends_are_ignored() -> None:
    fields = sampling_fields(SamplingParams(max_tokens=9, ignore_eos=True, grammar=Grammar("json_object")), EOS)

    assert (fields["ignore_eos"], fields["_eos_token_id"]) == (False, EOS[0])


def test_a_request_without_block_hashes_reads_nothing_from_the_prefix_cache() -> None:
    sampling = SamplingParams(max_tokens=9)

    assert "skip_reading_prefix_cache" not in sampling_fields(sampling, EOS)
    assert sampling_fields(sampling, EOS, is_cached=False)["skip_reading_prefix_cache"] is True


def test_logprobs_of_a_prompt_are_asked_for_once_and_never_of_the_prefix_cache() -> None:
    sampling = SamplingParams(max_tokens=9, num_prompt_logprobs=2)

    first, resumed = sampling_fields(sampling, EOS), sampling_fields(sampling, EOS, num_delivered=1)

    assert (first["prompt_logprobs"], first["skip_reading_prefix_cache"]) == (2, True)
    assert "prompt_logprobs" not in resumed


def test_a_greedy_request_has_vllms_form_of_greedy() -> None:
    fields = sampling_fields(SamplingParams(max_tokens=9, temperature=0.0, top_p=0.5, top_k=3, min_p=0.1), EOS)

    assert (fields["temperature"], fields["top_p"], fields["top_k"], fields["min_p"]) == (0.0, 1.0, 0, 0.0)


@pytest.mark.parametrize(
    ("asked", "num_delivered", "word"),
    [
        (
            Generate(stream_id=1, request_id="r", sampling=SamplingParams(max_tokens=1), pooling=Pooling.LAST),
            0,
            "embeddings",
        ),
        (request(thinking=Thinking(max_tokens=3, start_ids=(1,), end_ids=(2,), waits_for_start=False)), 0, "budget"),
        (
            request(
                thinking=Thinking(start_ids=(1,), end_ids=(2,), waits_for_start=False), grammar=Grammar("json_object")
            ),
            0,
            "reasoning",
        ),
        (request(temperature=0.5, seed=1), 3, "seed"),
        (request(temperature=0.0, presence_penalty=0.5), 3, "penalty"),
        (request(temperature=0.5, bad_words=((1, 2),)), 3, "bad_words"),
        (request(temperature=0.0, grammar=Grammar("json_object")), 3, "form"),
    ],
)
def test_what_cannot_be_answered_as_asked_is_refused_by_name(asked: Generate, num_delivered: int, word: str) -> None:
    fault = fault_or_none(asked, num_delivered)

    assert fault is not None and word in fault


@pytest.mark.parametrize(
    ("asked", "num_delivered"),
    [
        (request(temperature=0.5, grammar=Grammar("json_object")), 0),
        (request(temperature=0.5, seed=1), 0),
        (request(temperature=0.5), 3),
        (request(temperature=0.0, seed=1), 3),
        (request(temperature=0.0, repetition_penalty=1.2), 3),
        (request(thinking=Thinking(start_ids=(1,), end_ids=(2,), waits_for_start=False)), 0),
    ],
)
def test_what_can_be_is_not(asked: Generate, num_delivered: int) -> None:
    assert fault_or_none(asked, num_delivered) is None
