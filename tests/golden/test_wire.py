"""Wire bytes, frozen. A change here is a change of protocol: raise PROTOCOL_VERSION or the layout's magic with it."""

from array import array
from typing import Any

import msgpack
import pytest

from ipc import parcel
from ipc.block_hash import chain
from ipc.codec import decode_for_broker, decode_for_engine, decode_for_worker, encode
from ipc.messages import (
    Abort,
    AbortWorker,
    Action,
    Announce,
    Answered,
    Control,
    EngineAnswer,
    EngineHello,
    EngineLost,
    EngineReady,
    Envelope,
    Generate,
    Kind,
    Message,
    ProfileOptions,
    Progress,
    Rejected,
    ResetOptions,
    Resume,
    SamplingParams,
    SleepOptions,
    VllmExtras,
    generation_of,
    make_stream_id,
    number_of,
    slot_of,
)
from ipc.record import (
    Attachment,
    Embedding,
    Failure,
    FailureCode,
    Finish,
    FinishCode,
    Scored,
    pack_record,
    unpack_record,
)

STREAM = make_stream_id(slot=2, generation=3, number=0x0A0B0C0D)

GREEDY = SamplingParams(max_tokens=7, temperature=0.0)
GENERATE = Generate(
    stream_id=STREAM,
    request_id="req-1",
    sampling=SamplingParams(max_tokens=7, temperature=0.5, seed=42, stop_token_ids=(2,), logit_bias=((5, -1.5),)),
    block_hashes=b"\x01" * 16,
    is_streaming=False,
    priority=-1,
    deadline_s=12.5,
    fair_key=9,
    vllm=VllmExtras(lora="poems", kv_transfer_params=b"\x80"),
)

MESSAGES: list[tuple[Message, list[Any]]] = [
    (
        GENERATE,
        [
            1, STREAM, "req-1",
            [7, 0, 0.5, 1.0, 0, 0.0, 0.0, 0.0, 1.0, 42, [2], False, [[5, -1.5]], -1, [], None, None, -1, [], []],
            b"\x01" * 16, False, -1, 12.5, 9, 0, ["poems", b"\x80"],
        ],
    ),
    (Abort(stream_id=STREAM), [2, STREAM, False]),
    (Announce(slot=2, generation=3, stream_ids=(STREAM,)), [3, 2, 3, [STREAM]]),
    (Rejected(stream_id=STREAM, reason="no_engine", retry_after_s=2), [4, STREAM, "no_engine", 2]),
    (EngineLost(engine=1, stream_ids=(STREAM,)), [5, 1, [STREAM]]),
    (EngineHello(engine=1, generation=2, protocol_version=2), [6, 1, 2, 2, []]),
    (Progress(engine=1, generation=2, started=(STREAM,), ended=(5,)), [7, 1, 2, [STREAM], [5]]),
    (AbortWorker(slot=2, generation=4), [8, 2, 4]),
    (
        Resume(
            stream_id=STREAM + 1,
            request=Generate(stream_id=STREAM, request_id="r", sampling=GREEDY),
            num_output_tokens=3,
        ),
        [
            9, STREAM + 1,
            [1, STREAM, "r", [7, 0, 0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, None, [], False, [], -1, [], None, None, -1, [], []],
             b"", True, 0, None, 0, 0, None],
            3,
        ],
    ),
    (EngineReady(engine=1), [10, 1]),
    (
        Control(ticket=STREAM, action=Action.ABORT_REQUESTS, request_ids=("a", "b")),
        [11, STREAM, 1, ["a", "b"], ["", 0, 0], [False, False], [1, "abort", [], True]],
    ),
    (
        Control(ticket=STREAM, action=Action.START_PROFILE, profile=ProfileOptions(prefix="p", max_iterations=4)),
        [11, STREAM, 3, [], ["p", 0, 4], [False, False], [1, "abort", [], True]],
    ),
    (
        Control(ticket=STREAM, action=Action.SLEEP, sleep=SleepOptions(level=2, mode="keep", tags=("weights",))),
        [11, STREAM, 5, [], ["", 0, 0], [False, False], [2, "keep", ["weights"], True]],
    ),
    (
        Control(ticket=STREAM, action=Action.RESET_PREFIX_CACHE, reset=ResetOptions(running=True)),
        [11, STREAM, 2, [], ["", 0, 0], [True, False], [1, "abort", [], True]],
    ),
    (EngineAnswer(engine=1, ticket=STREAM, count=2, fault="no"), [12, 1, STREAM, 2, "no"]),
    (
        Answered(ticket=STREAM, answers=(EngineAnswer(engine=0, ticket=STREAM),)),
        [13, STREAM, [[12, 0, STREAM, 0, ""]]],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "plain"), MESSAGES, ids=lambda value: type(value).__name__)
def test_messages_are_plain_msgpack_arrays(message: Message, plain: list[Any]) -> None:
    assert msgpack.unpackb(encode(message), raw=False) == plain


def test_each_receiver_decodes_its_own_messages() -> None:
    decoders = {
        decode_for_engine: (Generate, Resume, Abort, AbortWorker, Control),
        decode_for_worker: (Rejected, EngineLost, EngineReady, Control, Answered),
        decode_for_broker: (Announce, EngineHello, Progress, EngineAnswer),
    }
    for decode, kinds in decoders.items():
        for message, _ in MESSAGES:
            if isinstance(message, kinds):
                assert decode(encode(message)) == message


def test_kinds_are_the_tags() -> None:
    for message, plain in MESSAGES:
        assert Kind(plain[0]).name.replace("_", "").lower() == type(message).__name__.lower()


def test_envelope_bytes() -> None:
    envelope = Envelope(Kind.GENERATE, STREAM, 100, 7, 0x1122334455667788, -1, 12.5, 9)

    packed = envelope.pack()

    assert packed.hex() == (
        "0106ffff" "ffffffff" "64000000" "07000000" "0d0c0b0a03000200" "8877665544332211" "0000000000002940" "09000000"
    )  # fmt: skip
    assert Envelope.unpack(packed) == envelope


def test_envelope_of_another_protocol_or_size_is_refused() -> None:
    packed = Envelope(Kind.ABORT).pack()

    with pytest.raises(ValueError, match="protocol version 9"):
        Envelope.unpack(packed[:1] + b"\x09" + packed[2:])
    with pytest.raises(ValueError, match="43 bytes"):
        Envelope.unpack(packed[:-1])


def test_parcel_bytes() -> None:
    packed = parcel.pack(Envelope(Kind.ABORT, STREAM), Abort(stream_id=STREAM), b"\x07\0\0\0")

    body = encode(Abort(stream_id=STREAM))
    assert packed[:8].hex() == f"{len(body):02x}00000004000000"
    assert packed[8:] == Envelope(Kind.ABORT, STREAM).pack() + body + b"\x07\0\0\0"


def test_stream_id_parts() -> None:
    assert (slot_of(STREAM), generation_of(STREAM), number_of(STREAM)) == (2, 3, 0x0A0B0C0D)


def test_record_words() -> None:
    finish = Finish(9, FinishCode.LENGTH, 5, 4, 3, 2, 1, 10, 20, 2**40)

    failure = Failure(6, FailureCode.DEADLINE, "héé")

    scored = Scored(5, 77, True, 2, -0.5, [78, 77], [-0.25, -0.5])

    embedding = Embedding(4, 16, array("f", [0.5, -0.5]))

    attachment = Attachment(3, b'{"a":1}')

    packed = pack_record(
        [9, 8],
        [100, 200],
        bulks=[(7, [1, 2, 3])],
        finishes=[finish],
        failures=[failure],
        scored=[scored],
        embeddings=[embedding],
        attachments=[attachment],
    )

    words = array("I", packed).tolist()
    assert words[:11] == [2, 1, 1, 1, 1, 1, 1, 9, 8, 100, 200]
    assert words[11:16] == [7, 3, 1, 2, 3]
    assert words[16:26] == [9, 1, 5, 4, 3, 2, 1, 10, 20, 2**32 - 1]
    assert words[26:29] == [6, 1, 5]
    assert packed[4 * 29 : 4 * 31] == "héé".encode() + b"\0\0\0"
    assert words[31:41] == [5, 77, 1, 2, 2, 0xBF000000, 78, 77, 0xBE800000, 0xBF000000]
    assert words[41:46] == [4, 16, 2, 0x3F000000, 0xBF000000]
    assert words[46:48] == [3, 7] and packed[4 * 48 :] == b'{"a":1}\0'
    assert unpack_record(packed).attachments == [attachment]
    assert unpack_record(packed).failures == [failure]
    assert unpack_record(packed).scored == [scored]
    [unpacked] = unpack_record(packed).embeddings
    assert (unpacked.stream, unpacked.offset, unpacked.values) == (4, 16, embedding.values)


def test_record_that_does_not_add_up_is_refused() -> None:
    packed = pack_record([1], [2])

    with pytest.raises(ValueError, match="sections"):
        unpack_record(packed + b"\0\0\0\0")
    with pytest.raises(ValueError, match="equal"):
        pack_record([1], [])


def test_block_hashes_chain() -> None:
    prompt = array("I", range(40)).tobytes()

    links = chain(prompt, 16)

    assert len(links) == 32, "two full blocks; the rest of eight tokens has no hash"
    assert links.hex() == "40eb68cacfc3510d6283949c1fd6d42aba66b84bf47fae0ec176c76d92c267ca"
    assert chain(prompt[:64], 16) == links[:16], "a prefix has the same first links"
    assert chain(prompt[64:128], 16) != links[16:], "the same tokens elsewhere do not"
    assert chain(prompt, 16, salt=b"tenant") != links
