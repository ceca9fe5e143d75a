"""Parcels come out of a frame as they were packed, however many share it, and a frame that was cut is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import parcel
from ipc.codec import decode_for_engine
from ipc.messages import Abort, Envelope, Generate, Kind, SamplingParams

prompts = st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4])


@st.composite
def packed(draw: st.DrawFn) -> tuple[bytes, Envelope, Generate | Abort, bytes]:
    number = draw(st.integers(0, 2**64 - 1))
    message: Generate | Abort
    if draw(st.booleans()):
        message, prompt = Abort(stream_id=number), b""
    else:
        prompt = draw(prompts)
        sampling = SamplingParams(max_tokens=draw(st.integers(1, 2**31)))
        message = Generate(stream_id=number, request_id=draw(st.text(max_size=20)), sampling=sampling)
    envelope = Envelope(Kind.GENERATE if prompt else Kind.ABORT, number, len(prompt) // 4)
    return parcel.pack(envelope, message, prompt), envelope, message, prompt


@given(st.lists(packed(), max_size=6))
def test_parcels_share_a_frame_and_come_out_whole(sent: list[tuple[bytes, Envelope, Generate | Abort, bytes]]) -> None:
    received = list(parcel.split(b"".join(whole for whole, *_ in sent)))

    assert received == [whole for whole, *_ in sent]
    for one, (_, envelope, message, prompt) in zip(received, sent, strict=True):
        assert parcel.envelope_of(one) == envelope
        assert decode_for_engine(parcel.body_of(one)) == message
        assert parcel.prompt_of(one) == prompt


@given(packed(), st.data())
def test_a_frame_that_ends_inside_a_parcel_is_refused(
    sent: tuple[bytes, Envelope, Generate | Abort, bytes], data: st.DataObject
) -> None:
    whole = sent[0]
    cut = data.draw(st.integers(1, len(whole) - 1))

    with pytest.raises(ValueError, match="parcel"):
        list(parcel.split(whole + whole[:cut]))
