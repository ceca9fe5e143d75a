"""The bridge between a broker and an engine core that are both the test: what each output becomes in the workers' rings."""

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox
from engine_core.vllm.bridge import Bridge
from engine_core.vllm.layouts import LAYOUTS, Layout
from engine_core.vllm.link import EngineGone
from engine_core.vllm.wire import ENGINE_CORE_DEAD, FinishReason, LoraRequest, Wire
from ipc.fleet_page import FleetPage
from ipc.messages import (
    Abort,
    AbortWorker,
    Action,
    Control,
    EngineAnswer,
    ForEngine,
    FromEngine,
    Generate,
    ProfileOptions,
    Progress,
    Resume,
    SamplingParams,
    SleepOptions,
    VllmExtras,
    make_stream_id,
)
from ipc.metrics_page import create_metrics_segment
from ipc.record import NO_STOP_TOKEN, FailureCode, FinishCode, StepRecord, unpack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ipc.sockets import Inbound

EOS = 2
RING_BYTES = 1 << 16


class Core:
    """vLLM's side of an EngineLink."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", layout: Layout) -> None:
        self.layout = layout
        self.output, self._push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self.fd = int(self.output.getsockopt(zmq.FD))
        self.output.bind("inproc://output")
        self._push.connect("inproc://output")
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.calls: list[list[Any]] = []

    def add(self, frame: bytes) -> None:
        self.requests.append(dict(zip(self.layout.request, msgspec.msgpack.decode(frame), strict=False)))

    def abort(self, frame: bytes) -> None:
        self.aborted += msgspec.msgpack.decode(frame)

    def utility(self, frame: bytes) -> None:
        self.calls.append(msgspec.msgpack.decode(frame))

    def says(self, call_id: int, failure: str | None, result: bool | None) -> None:
        """What came of a call."""
        outputs = {
            "engine_index": 0, "outputs": [], "timestamp": 1.0, "utility_output": [call_id, failure, [None, result]],
        }  # fmt: skip
        fields = [outputs.get(name) for name in self.layout.outputs]
        self._push.send_multipart([msgspec.msgpack.encode(fields)])

    def check(self) -> None:
        pass

    def receive(self) -> Iterator[list[bytes]]:
        while self.output.poll(0):
            yield self.output.recv_multipart()

    def whole(self, **told: Any) -> list[Any]:
        """An EngineCoreOutput in full."""
        return [told.get(name) for name in self.layout.output]

    def gives(self, *outputs: list[Any], at_s: float = 10.0, frames: tuple[bytes, ...] = ()) -> None:
        self._push.send_multipart([msgspec.msgpack.encode([0, outputs, None, at_s]), *frames])

    def tells(self, **stats: Any) -> None:
        """Of its scheduler, and no more."""
        self._push.send(msgspec.msgpack.encode([0, [], stats, 10.0]))

    def dies(self) -> None:
        self._push.send(ENGINE_CORE_DEAD)


class Broker:
    """The broker's side of an EngineSocket."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._silent = context.socket(zmq.PULL)
        self.fd = int(self._silent.getsockopt(zmq.FD))
        self.has_message = False
        self.inbox: list[Inbound] = []
        self.progress: list[Progress] = []
        self.answers: list[EngineAnswer] = []

    def receive(self, timeout_ms: int) -> list[Inbound]:
        received, self.inbox = self.inbox, []
        return received

    def send(self, message: FromEngine) -> None:
        if isinstance(message, EngineAnswer):
            self.answers.append(message)
        else:
            self.progress.append(message)


class SilentBell:
    def ring(self) -> None:
        pass


class Rig:
    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", layout: Layout) -> None:
        self.core, self.broker = Core(context, layout), Broker(context)
        view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
        format_ring(view, RING_BYTES)
        self._view, self._reader = view, RingReader(view, 1)
        self._keep = FleetPage.create_segment(1, 1), create_metrics_segment("engine")
        page, metrics = self._keep
        self.bridge = Bridge(
            index=0, generation=1,
            socket=self.broker, link=self.core,  # type: ignore[arg-type]
            wire=Wire(layout), outbox=Outbox([RingWriter(view)], [SilentBell()]), cell=FleetPage(page.view).engines[0],
            metrics=EngineMetrics(metrics.view, model_name="m", engine=0, block_size=16, num_blocks=9),
            eos_token_ids=(EOS,), step_timeout_s=60.0, loras={"poems": LoraRequest("poems", 2, "/adapters/poems")},
        )  # fmt: skip

    def send(self, message: ForEngine, *ids: int) -> None:
        self.broker.inbox.append(Inbound(message, np.array(ids, "<u4").tobytes()))
        self.look()

    def ask(self, number: int = 1, **fields: Any) -> str:
        """The id by which vLLM knows it."""
        sampling = SamplingParams(**{"max_tokens": 9, "temperature": 0.0, **fields.pop("sampling", {})})
        stream_id = make_stream_id(0, 1, number)
        self.send(Generate(**{"stream_id": stream_id, "request_id": "r", "sampling": sampling, **fields}), 5, 6, 7)
        asked = self.core.requests
        return str(asked[-1]["request_id"]) if asked else ""

    def replace_reader(self, generation: int) -> RingReader:
        return RingReader(self._view, generation)

    def look(self) -> None:
        self.bridge._looked_s = 0.0  # as if it had not looked for long
        self.bridge.turn()

    def records(self) -> StepRecord:
        """What one turn publishes, as one."""
        self.look()
        whole = StepRecord([], [], [], [], [], [], [], [])
        for payload in self._reader.poll():
            record = unpack_record(payload)
            for name in record.__struct_fields__:
                getattr(whole, name).extend(getattr(record, name))
        self._reader.release()
        return whole


@pytest.fixture(params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def rig(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Rig]:
    monkeypatch.setattr("engine_core.vllm.bridge.IDLE_MS", 1)  # the broker's messages do not wake it here
    context = zmq.Context()
    rig = Rig(context, request.param)
    yield rig
    context.destroy(linger=0)


def test_tokens_come_in_order_and_the_one_that_stopped_stands_in_the_finish_alone(rig: Rig) -> None:
    name = rig.ask()
    rig.core.gives([name, [11]], at_s=10.5)
    rig.core.gives([name, [12, EOS], None, None, None, FinishReason.STOP], at_s=11.0)

    record = rig.records()

    assert (record.streams, record.tokens) == ([1, 1], [11, 12])
    [finish] = record.finishes
    assert (finish.code, finish.stop_token_id, finish.num_output_tokens) == (FinishCode.STOP, EOS, 3)
    assert (finish.num_prompt_tokens, finish.decode_us) == (3, 500_000)
    assert rig.broker.progress[-1].ended and rig.bridge.stream_ids == []


def test_what_the_broker_says_while_it_is_told_something_is_heard_in_the_next_turn(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = rig.ask()
    rig.bridge._looked_s = (
        time.monotonic() + 1000.0
    )  # nothing but the socket's edge, which the send has taken, tells of it

    def send_as_it_speaks(_message: FromEngine) -> None:
        rig.broker.inbox.append(Inbound(Abort(stream_id=make_stream_id(0, 1, 1)), b""))
        rig.broker.has_message = True

    monkeypatch.setattr(rig.broker, "send", send_as_it_speaks)
    rig.core.gives([name, [11]])

    rig.bridge.turn()
    rig.bridge.turn()

    assert rig.core.aborted == [name]


def test_the_last_token_of_a_full_length_is_output(rig: Rig) -> None:
    name = rig.ask()
    events = [{"type": 1, "timestamp": 9.0}, {"type": 2, "timestamp": 9.5}, {"type": 3, "timestamp": 9.6}]
    prefill = {"num_cached_tokens": 2}
    rig.core.gives(
        rig.core.whole(
            request_id=name, new_token_ids=[11], finish_reason=FinishReason.LENGTH, events=events, prefill_stats=prefill
        )
    )

    record = rig.records()

    [finish] = record.finishes
    assert record.tokens == [11] and (finish.code, finish.stop_token_id) == (FinishCode.LENGTH, NO_STOP_TOKEN)
    assert (finish.queue_us, finish.prefill_us, finish.num_cached_tokens) == (500_000, 500_000, 2)
    assert finish.num_preemptions == 1


def test_a_stream_that_runs_is_still_heard_when_it_is_preempted(rig: Rig) -> None:
    name = rig.ask()
    rig.core.gives([name, [11]])
    rig.core.gives([name, [12], None, None, None, None, None, [{"type": 3, "timestamp": 10.1}]])
    rig.core.gives([name, [13, 14]])
    rig.core.gives([name, [15], None, None, None, FinishReason.LENGTH])

    record = rig.records()

    assert (record.streams, record.tokens) == ([1] * 5, [11, 12, 13, 14, 15])
    assert (record.finishes[0].num_preemptions, record.finishes[0].num_output_tokens) == (1, 5)


def test_a_request_whose_worker_was_replaced_meanwhile_is_read_by_the_new_one(rig: Rig) -> None:
    rig.records()
    reader = rig.replace_reader(generation=2)
    stream_id = make_stream_id(0, 2, 1)
    sampling = SamplingParams(max_tokens=9, temperature=0.0)
    rig.send(Generate(stream_id=stream_id, request_id="r", sampling=sampling), 5)
    rig.core.gives([rig.core.requests[-1]["request_id"], [11]])

    rig.look()

    assert [unpack_record(payload).tokens for payload in reader.poll()] == [[11]]


def test_a_whole_answer_comes_once(rig: Rig) -> None:
    name = rig.ask(is_streaming=False)
    rig.core.gives([name, [11]])
    assert rig.records().tokens == []
    rig.core.gives([name, [12], None, None, None, FinishReason.LENGTH])

    record = rig.records()

    assert record.bulks == [(1, [11, 12])] and record.tokens == [] and len(record.finishes) == 1


def test_scores_are_of_every_token_the_stop_included(rig: Rig) -> None:
    name = rig.ask(sampling={"num_logprobs": 1})
    ids, logprobs = np.array([[11, 11], [EOS, 3]], np.int32), np.array([[-0.1, -0.1], [-2.0, -1.0]], np.float32)
    encoded = [["<i4", [2, 2], 1], ["<f4", [2, 2], 2], ["<i4", [2], 3], None]
    frames = ids.tobytes(), logprobs.tobytes(), np.array([1, 4], np.int32).tobytes()
    rig.core.gives([name, [11, EOS], encoded, None, None, FinishReason.STOP], frames=frames)

    record = rig.records()

    assert [(s.token, s.is_stop, s.rank, s.ids) for s in record.scored] == [(11, False, 1, [11]), (EOS, True, 4, [3])]
    assert record.tokens == [] and record.finishes[0].stop_token_id == EOS


def test_scores_of_a_prompt_stand_at_their_places_before_those_of_its_output(rig: Rig) -> None:
    name = rig.ask(sampling={"num_prompt_logprobs": 1, "num_logprobs": 0})
    ids, logprobs = np.array([[6, 8], [7, 7]], np.int64), np.array([[-3.0, -1.0], [-0.5, -0.5]], np.float32)
    encoded = [["int64", [2, 2], 1], ["float32", [2, 2], 2], ["int64", [2], 3], None, None]
    written = [["<i4", [1, 1], 4], ["<f4", [1, 1], 5], ["<i4", [1], 6], None]
    frames = (
        ids.tobytes(), logprobs.tobytes(), np.array([9, 1], np.int64).tobytes(),
        np.array([11], np.int32).tobytes(), np.array([-2.0], np.float32).tobytes(), np.array([3], np.int32).tobytes(),
    )  # fmt: skip
    rig.core.gives([name, [11], written, encoded], frames=frames)

    found = rig.records().scored

    assert [(s.prompt_place, s.token, s.rank, s.ids, s.logprobs) for s in found] == [
        (1, 6, 9, [8], [-1.0]), (2, 7, 1, [7], [-0.5]), (0, 11, 3, [], []),
    ]  # fmt: skip


def test_a_prompt_whose_scores_no_worker_could_hold_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.vllm.faults.MAX_SCORED_PROMPT_BYTES", 3 * 4 * 8 - 1)

    rig.ask(sampling={"num_prompt_logprobs": 1})

    [failure] = rig.records().failures
    assert (failure.code, "fewer alternatives" in failure.message) == (FailureCode.GRAMMAR, True)


def test_an_error_of_vllms_fails_its_request_alone(rig: Rig) -> None:
    failing, other = rig.ask(1), rig.ask(2)
    rig.core.gives([failing, [], None, None, None, FinishReason.ERROR], [other, [11]])

    record = rig.records()

    assert [(f.stream, f.code) for f in record.failures] == [(1, FailureCode.INTERNAL)]
    assert (record.streams, record.tokens) == ([2], [11])


def test_what_nobody_wants_is_aborted_and_nothing_more_of_it_comes(rig: Rig) -> None:
    silent, counted, orphan = rig.ask(1), rig.ask(2), rig.ask(3)
    rig.send(Abort(stream_id=make_stream_id(0, 1, 1)))
    rig.send(Abort(stream_id=make_stream_id(0, 1, 2), wants_finish=True))
    rig.send(AbortWorker(slot=0, generation=2))
    rig.core.gives(*([name, [11]] for name in (silent, counted, orphan)))

    record = rig.records()

    assert rig.core.aborted == [silent, counted, orphan] and record.tokens == []
    assert [(f.stream, f.code) for f in record.finishes] == [(2, FinishCode.ABORT)]


def test_an_operator_ends_requests_by_their_own_ids(rig: Rig) -> None:
    name, other = rig.ask(1, request_id="a"), rig.ask(2, request_id="b")
    rig.core.gives([name, [11]], [other, [11]])
    rig.records()

    rig.send(Control(ticket=9, action=Action.ABORT_REQUESTS, request_ids=("a", "none")))

    assert [finish.code for finish in rig.records().finishes] == [FinishCode.ABORT]
    assert rig.bridge.stream_ids == [make_stream_id(0, 1, 2)]
    assert rig.broker.answers == [EngineAnswer(engine=0, ticket=9, count=1)]


@pytest.mark.parametrize(("failure", "result"), [(None, True), (None, False), ("no such method", None)])
def test_vllm_is_asked_to_forget_its_prefixes_and_its_word_is_the_answer(
    rig: Rig, failure: str | None, result: bool | None
) -> None:
    rig.send(Control(ticket=9, action=Action.RESET_PREFIX_CACHE))
    [(client, call_id, method, arguments)] = rig.core.calls
    assert (client, method, arguments) == (0, "reset_prefix_cache", [False, False])
    assert rig.broker.answers == []

    rig.core.says(call_id, failure, result)
    rig.look()

    [answer] = rig.broker.answers
    assert (answer.ticket, bool(answer.fault)) == (9, not result)
    rig.core.says(call_id, None, True)
    rig.look()
    assert len(rig.broker.answers) == 1, "an answer that nobody waits for"


def test_a_request_that_has_no_token_by_its_deadline_fails_and_one_that_has_goes_on(rig: Rig) -> None:
    deadline_s = time.monotonic() + 60
    late, started = rig.ask(1, deadline_s=deadline_s), rig.ask(2, deadline_s=deadline_s)
    rig.core.gives([started, [11]])
    rig.look()
    for stream in rig.bridge._streams.values():
        stream.deadline_s = stream.deadline_s and time.monotonic() - 0.01

    assert [(f.stream, f.code) for f in rig.records().failures] == [(1, FailureCode.DEADLINE)]
    assert rig.core.aborted == [late] and len(rig.bridge.stream_ids) == 1


def test_a_prompt_that_vllm_works_at_has_met_its_deadline(rig: Rig) -> None:
    deadline_s = time.monotonic() + 60
    rig.ask(1, deadline_s=deadline_s)
    late = rig.ask(2, deadline_s=deadline_s)
    urgent = make_stream_id(0, 1, 3)
    rig.ask(3, deadline_s=deadline_s, priority=-1)
    rig.core.tells(num_running_reqs=2)  # chunks of two prompts, no token yet
    rig.look()
    rig.look()
    for stream in rig.bridge._streams.values():
        stream.deadline_s = stream.deadline_s and time.monotonic() - 0.01

    assert [(f.stream, f.code) for f in rig.records().failures] == [(2, FailureCode.DEADLINE)]
    assert rig.core.aborted == [late] and rig.bridge.stream_ids == [make_stream_id(0, 1, 1), urgent]
    assert [set(progress.started) for progress in rig.broker.progress] == [{make_stream_id(0, 1, 1), urgent}, set()]


def test_a_greedy_request_goes_on_behind_what_was_delivered(rig: Rig) -> None:
    lost = Generate(stream_id=1, request_id="r", sampling=SamplingParams(max_tokens=9, temperature=0.0))
    rig.send(Resume(stream_id=make_stream_id(0, 1, 4), request=lost, num_output_tokens=2), 5, 6, 7, 11, 12)
    [request] = rig.core.requests
    rig.core.gives([request["request_id"], [13], None, None, None, FinishReason.LENGTH])

    record = rig.records()

    assert request["prompt_token_ids"] == [5, 6, 7, 11, 12] and request["sampling_params"]["max_tokens"] == 7
    [finish] = record.finishes
    assert record.tokens == [13] and (finish.num_prompt_tokens, finish.num_output_tokens) == (3, 3)


def test_parameters_are_encoded_once_and_of_large_ones_few_are_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.vllm.bridge.MAX_SAMPLING_BYTES", 2000)
    for number in range(1, 4):
        rig.ask(number)
    assert len(rig.bridge._sampling) == 1
    for number in range(4, 9):
        rig.ask(number, sampling={"allowed_token_ids": tuple(range(number, 100 * number))})

    assert len(rig.bridge._sampling) <= 2 and len(rig.core.requests) == 8
    assert rig.core.requests[-1]["sampling_params"]["allowed_token_ids"] == list(range(8, 800))


def test_an_adapter_is_asked_for_as_vllm_loads_it(rig: Rig) -> None:
    rig.ask(1, vllm=VllmExtras(lora="poems"))
    rig.ask(2)

    assert [request["lora_request"] for request in rig.core.requests] == [["poems", 2, "/adapters/poems"], None]


def test_what_a_kv_connector_is_told_and_says_passes_through(rig: Rig) -> None:
    told = {"do_remote_decode": True, "remote_block_ids": [1, 70_000]}
    name = rig.ask(1, is_streaming=False, vllm=VllmExtras(kv_transfer_params=msgspec.msgpack.encode(told)))
    said = {"do_remote_prefill": True, "remote_block_ids": [4, 5], "remote_host": "h"}
    rig.core.gives([name, [11], None, None, None, FinishReason.LENGTH, None, None, said])

    record = rig.records()

    assert rig.core.requests[0]["sampling_params"]["extra_args"] == {"kv_transfer_params": told}
    assert [(entry.stream, msgspec.json.decode(entry.content)) for entry in record.attachments] == [(1, said)]
    assert record.bulks == [(1, [11])] and len(record.finishes) == 1


def test_a_request_whose_blocks_were_handed_on_cannot_go_on_elsewhere(rig: Rig) -> None:
    extras = VllmExtras(kv_transfer_params=msgspec.msgpack.encode({"do_remote_decode": True}))
    sampling = SamplingParams(max_tokens=9, temperature=0.0)
    lost = Generate(stream_id=1, request_id="r", sampling=sampling, vllm=extras)

    rig.send(Resume(stream_id=make_stream_id(0, 1, 4), request=lost, num_output_tokens=1), 5, 6)

    assert len(rig.records().failures) == 1 and rig.core.requests == []


def test_an_engine_core_that_sleeps_is_not_taken_for_dead_and_what_it_aborts_ends_so(rig: Rig) -> None:
    name, waiting = rig.ask(1), rig.ask(2)
    rig.send(Control(ticket=9, action=Action.SLEEP, sleep=SleepOptions(level=2, mode="abort")))
    [(_, call_id, method, arguments)] = rig.core.calls
    rig.core.gives([name, [], None, None, None, FinishReason.ABORT])
    rig.core.says(call_id, None, None)
    record = rig.records()
    rig.bridge._last_step_s -= 61
    rig.look()

    assert (method, arguments) == ("sleep", [2, "abort"])
    assert [(f.stream, f.code) for f in record.finishes] == [(1, FinishCode.ABORT)]
    assert rig.broker.answers == [EngineAnswer(engine=0, ticket=9)]
    assert rig.bridge.stream_ids == [make_stream_id(0, 1, 2)], f"{waiting} waits until it wakes"


def test_the_last_word_of_several_says_whether_an_engine_core_sleeps(rig: Rig) -> None:
    name = rig.ask()
    for ticket, action in enumerate((Action.PAUSE, Action.RESUME, Action.PAUSE)):
        rig.send(Control(ticket=ticket, action=action))
    for _, call_id, *_ in rig.core.calls[:2]:
        rig.core.says(call_id, None, None)
    rig.core.gives([name, [], None, None, None, FinishReason.ABORT])

    assert [finish.code for finish in rig.records().finishes] == [FinishCode.ABORT]


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_engine_core_that_is_awake_again_has_to_answer(rig: Rig, is_whole: bool) -> None:
    rig.ask(1)
    rig.send(Control(ticket=9, action=Action.SLEEP))
    rig.send(Control(ticket=10, action=Action.WAKE_UP, sleep=SleepOptions(tags=("weights",))))
    (_, slept, *_), (_, woken, method, arguments) = rig.core.calls
    rig.core.says(slept, None, None)
    if rig.core.layout.wake_up_says_whether:
        rig.core.says(woken, None, is_whole)
    else:  # it is asked
        rig.core.says(woken, None, None)
        rig.look()
        (_, asked, asked_method, _) = rig.core.calls[2]
        assert asked_method == "is_sleeping" and len(rig.broker.answers) == 1, "of the sleep alone"
        rig.core.says(asked, None, not is_whole)
    rig.look()
    rig.bridge._last_step_s -= 61

    assert (method, arguments) == ("wake_up", [["weights"]])
    assert rig.broker.answers[-1] == EngineAnswer(engine=0, ticket=10, count=is_whole)
    if is_whole:
        with pytest.raises(EngineGone, match="gave nothing"):
            rig.look()
    else:
        rig.look()


@pytest.mark.parametrize(
    ("action", "method", "arguments"),
    [
        (Action.PAUSE, "pause_scheduler", ["abort", True]),
        (Action.RESUME, "resume_scheduler", []),
        (Action.IS_PAUSED, "is_scheduler_paused", []),
        (Action.IS_SLEEPING, "is_sleeping", []),
        (Action.RELEASE_KV_CACHE, "release_kv_cache_memory", []),
    ],
)
def test_an_operators_word_becomes_a_call_of_vllms_method(
    rig: Rig, action: Action, method: str, arguments: list[Any]
) -> None:
    rig.send(Control(ticket=9, action=action))
    [(_, call_id, *told)] = rig.core.calls
    rig.core.says(call_id, None, True)
    rig.look()

    assert told == [method, arguments]
    assert rig.broker.answers == [EngineAnswer(engine=0, ticket=9, count=1)]


def test_a_paused_engine_core_is_not_taken_for_dead_until_it_resumes(rig: Rig) -> None:
    rig.ask()
    for action in (Action.PAUSE, Action.RESUME):
        rig.send(Control(ticket=9, action=action))
        rig.core.says(rig.core.calls[-1][1], None, None)
        rig.look()
        rig.bridge._last_step_s -= 61
        if action == Action.PAUSE:
            rig.look()

    with pytest.raises(EngineGone, match="gave nothing"):
        rig.look()


def test_an_engine_core_is_profiled_in_its_own_words(rig: Rig) -> None:
    counts_steps = rig.core.layout.profile_counts_steps
    profile = ProfileOptions(prefix="a_", max_iterations=4 if counts_steps else 0)
    rig.send(Control(ticket=9, action=Action.START_PROFILE, profile=profile))
    rig.send(Control(ticket=10, action=Action.STOP_PROFILE))
    start, stop = rig.core.calls
    rig.core.says(start[1], "no profiler", None)
    rig.look()

    assert start[2:] == ["profile", [True, "a", None, 4] if counts_steps else [True, "a"]] and stop[2:] == [
        "profile",
        [False],
    ]
    assert rig.broker.answers == [EngineAnswer(engine=0, ticket=9, fault="no profiler")]


@pytest.mark.parametrize("rig", [LAYOUTS["0.24"]], indirect=True)
@pytest.mark.parametrize("profile", [ProfileOptions(delay_iterations=4), ProfileOptions(max_iterations=4)])
def test_steps_that_vllms_profiler_cannot_count_are_refused(rig: Rig, profile: ProfileOptions) -> None:
    rig.send(Control(ticket=9, action=Action.START_PROFILE, profile=profile))

    [answer] = rig.broker.answers
    assert answer.ticket == 9 and "delay_iterations" in answer.fault and rig.core.calls == []


def test_an_engine_core_that_aborts_unasked_is_being_stopped_and_its_requests_go_on_elsewhere(rig: Rig) -> None:
    name = rig.ask()
    rig.core.gives([name, [], None, None, None, FinishReason.ABORT])

    with pytest.raises(EngineGone, match="being stopped"):
        rig.look()


def test_a_dead_or_silent_engine_core_ends_the_process(rig: Rig) -> None:
    rig.ask()
    rig.bridge._last_step_s -= 61
    with pytest.raises(EngineGone, match="gave nothing for 60 s"):
        rig.look()
    rig.bridge._last_step_s += 61
    rig.core.dies()
    with pytest.raises(EngineGone, match="died"):
        rig.look()
