"""What one engine step gives one worker: the payload of one ring record, little-endian 32-bit words throughout.

word  field        meaning
   0  num_tokens   entries of the token section
   1  num_finishes entries of the finish section
   2  num_bulks    entries of the bulk section
   3  num_failures entries of the failure section
   4  num_scored   entries of the scored section
   5  num_embeddings  entries of the embedding section
   6  num_attachments  entries of the attachment section
   7… tokens       struct of arrays: num_tokens stream numbers, then num_tokens token ids
   …  bulks        per entry: stream number, count, then count token ids: a non-streaming request, delivered once;
                   one too long for a record (RingWriter.max_payload_bytes) comes in pieces over several, in order
   …  finishes     FINISH_WORDS words per entry, see Finish
   …  failures     per entry: stream number, code, byte length, then UTF-8 text padded with NUL to whole words
   …  scored       tokens of streams that asked for logprobs, which are not in the token section: per entry stream number,
                   token id, bit 0: it ended the stream as a stop id, bits 1 to 31: its place if it is one of the prompt's,
                   rank, count of alternatives, logprob, then the ids of the alternatives, then their logprobs; logprobs
                   are float32
   …  embeddings   per entry: stream number, offset, count, then count float32: one stream's vector, or the piece of it that
                   begins at the offset; one too long for a record comes in pieces over several, in order
   …  attachments  per entry: stream number, byte length, then JSON padded with NUL to whole words: what an engine gives back
                   beside the output, before the finish

A stream number is the low half of its StreamId; slot and generation are the ring's. A stream's tokens stand before its
finish. Per stream the sections keep the order in which the engine produced; in the token section a stream has one token,
or several in order, where speculative decoding gave them or a record is of several steps of vLLM's.
"""

from array import array
from collections.abc import Iterable
from enum import IntEnum

from msgspec import Struct

HEADER_WORDS = 7
HEADER_BYTES = 4 * HEADER_WORDS
SCORED_WORDS = 6  # of an entry, beside two per alternative
FINISH_WORDS = 10
EMBEDDING_WORDS = 3  # of an entry, beside one per value
ATTACHMENT_WORDS = 2  # of an entry, beside its JSON


class FinishCode(IntEnum):
    STOP = 0  # eos or a stop token id
    LENGTH = 1  # max_tokens or the context is full
    ABORT = 2


class FailureCode(IntEnum):
    INTERNAL = 0  # this request failed inside the engine
    DEADLINE = 1  # not started by its deadline
    TOO_LONG = 2  # can never fit the KV pool
    OVERFLOW = 3  # the worker stopped reading; its streams were cut
    GRAMMAR = 4  # cannot be compiled for this model, or not be kept beside the request's other parameters


class Finish(Struct, frozen=True):
    """The end of one stream and what it cost. Times are microseconds, saturated at 2**32 - 1."""

    stream: int  # stream number
    code: int  # FinishCode
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    stop_token_id: int  # the id that ended it, or NO_STOP_TOKEN
    num_preemptions: int
    queue_us: int  # received to first scheduled
    prefill_us: int  # first scheduled to first token
    decode_us: int  # first to last token


NO_STOP_TOKEN = 0xFFFFFFFF


class Failure(Struct, frozen=True):
    stream: int
    code: int  # FailureCode
    message: str


class Scored(Struct, frozen=True):
    """A token and how likely the model held it, and others in its place: natural logarithms, before any sampling parameter."""

    stream: int
    token: int
    is_stop: bool  # it ended the stream and is not among its output
    rank: int  # 1: the likeliest
    logprob: float
    ids: list[int]  # the likeliest, descending
    logprobs: list[float]
    prompt_place: int = 0  # in the prompt, whose first token has no score; 0: it is of the output


class Embedding(Struct, frozen=True, eq=False):
    """A stream's vector, or the piece of it that begins at `offset`."""

    stream: int
    offset: int
    values: "array[float]"  # of type "f"


class Attachment(Struct, frozen=True):
    """What an engine gives back beside a stream's output: vLLM's kv_transfer_params."""

    stream: int
    content: bytes  # a JSON object


class StepRecord(Struct):
    """A record taken apart; `tokens` pairs stand as two lists of equal length."""

    streams: list[int]
    tokens: list[int]
    bulks: list[tuple[int, list[int]]]
    finishes: list[Finish]
    failures: list[Failure]
    scored: list[Scored]
    embeddings: list[Embedding]
    attachments: list[Attachment]


def pack_record(
    streams: Iterable[int] = (),
    tokens: Iterable[int] = (),
    *,
    bulks: Iterable[tuple[int, Iterable[int]]] = (),
    finishes: Iterable[Finish] = (),
    failures: Iterable[Failure] = (),
    scored: Iterable[Scored] = (),
    embeddings: Iterable[Embedding] = (),
    attachments: Iterable[Attachment] = (),
) -> bytes:
    """The general packer, for any mix of sections. `streams` and `tokens` have equal length."""
    words = array("I", bytes(HEADER_BYTES))
    words.extend(streams)
    num_tokens = len(words) - HEADER_WORDS
    words.extend(tokens)
    if len(words) - HEADER_WORDS != 2 * num_tokens:
        raise ValueError(f"streams={num_tokens} tokens={len(words) - HEADER_WORDS - num_tokens} must be equal")
    num_bulks = num_finishes = num_failures = num_scored = num_embeddings = num_attachments = 0
    for stream, ids in bulks:
        body = array("I", ids)
        words.extend((stream, len(body)))
        words.extend(body)
        num_bulks += 1
    for finish in finishes:
        words.extend(
            (
                finish.stream, finish.code, finish.num_prompt_tokens, finish.num_cached_tokens,
                finish.num_output_tokens, finish.stop_token_id, finish.num_preemptions,
                min(finish.queue_us, 0xFFFFFFFF), min(finish.prefill_us, 0xFFFFFFFF), min(finish.decode_us, 0xFFFFFFFF),
            )
        )  # fmt: skip
        num_finishes += 1
    for failure in failures:
        text = failure.message.encode()[:1024].decode(errors="ignore").encode()
        words.extend((failure.stream, failure.code, len(text)))
        words.frombytes(_padded(text))
        num_failures += 1
    for entry in scored:
        flags = entry.is_stop | entry.prompt_place << 1
        words.extend((entry.stream, entry.token, flags, entry.rank, len(entry.ids)))
        words.frombytes(array("f", (entry.logprob,)).tobytes())
        words.extend(entry.ids)
        words.frombytes(array("f", entry.logprobs).tobytes())
        num_scored += 1
    for embedding in embeddings:
        words.extend((embedding.stream, embedding.offset, len(embedding.values)))
        words.frombytes(embedding.values.tobytes())
        num_embeddings += 1
    for attachment in attachments:
        words.extend((attachment.stream, len(attachment.content)))
        words.frombytes(_padded(attachment.content))
        num_attachments += 1
    counts = num_tokens, num_finishes, num_bulks, num_failures, num_scored, num_embeddings, num_attachments
    words[:HEADER_WORDS] = array("I", counts)
    return words.tobytes()


def unpack_record(payload: bytes | memoryview) -> StepRecord:
    """The general reader; the worker's drain reads the token section itself and comes here for the rest.

    Raises ValueError when the sections do not add up to the payload.
    """
    view = memoryview(payload).cast("B")
    words = view.cast("I").tolist()
    counts = words[:HEADER_WORDS]
    num_tokens, num_finishes, num_bulks, num_failures, num_scored, num_embeddings, num_attachments = counts
    streams_end = HEADER_WORDS + num_tokens
    at = streams_end + num_tokens
    record = StepRecord(words[HEADER_WORDS:streams_end], words[streams_end:at], [], [], [], [], [], [])
    for _ in range(num_bulks):
        stream, count = words[at : at + 2]
        record.bulks.append((stream, words[at + 2 : at + 2 + count]))
        at += 2 + count
    for _ in range(num_finishes):
        record.finishes.append(Finish(*words[at : at + FINISH_WORDS]))
        at += FINISH_WORDS
    for _ in range(num_failures):
        stream, code, length = words[at : at + 3]
        at += 3
        record.failures.append(Failure(stream, code, bytes(view[4 * at : 4 * at + length]).decode()))
        at += (length + 3) // 4
    floats = view.cast("f") if num_scored else ()
    for _ in range(num_scored):
        stream, token, flags, rank, count = words[at : at + 5]
        ids_at, logprobs_at = at + SCORED_WORDS, at + SCORED_WORDS + count
        at = logprobs_at + count
        logprobs = list(floats[logprobs_at:at])
        entry = Scored(
            stream, token, bool(flags & 1), rank, floats[ids_at - 1], words[ids_at:logprobs_at], logprobs, flags >> 1
        )  # fmt: skip
        record.scored.append(entry)
    for _ in range(num_embeddings):
        stream, offset, count = words[at : at + EMBEDDING_WORDS]
        at += EMBEDDING_WORDS
        record.embeddings.append(Embedding(stream, offset, array("f", view[4 * at : 4 * (at + count)].tobytes())))
        at += count
    for _ in range(num_attachments):
        stream, length = words[at : at + ATTACHMENT_WORDS]
        at += ATTACHMENT_WORDS
        record.attachments.append(Attachment(stream, bytes(view[4 * at : 4 * at + length])))
        at += (length + 3) // 4
    if at != len(words):
        raise ValueError(f"record of {len(words)} words, its sections make {at}")
    return record


def _padded(text: bytes) -> bytes:
    """To whole words."""
    return text.ljust(-len(text) % 4 + len(text), b"\0")
