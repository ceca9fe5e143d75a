"""What the routes that generate share once the prompt is tokens: admission of the model's name, the streams, the answer,
the log line."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from msgspec import Struct, structs
from starlette.types import Receive, Scope, Send

from apiserver import generation
from apiserver.asgi import ClientLeft, header, send_body
from apiserver.collected_details import CollectedDetails, PromptEvents
from apiserver.detailed_choice import detailed_choice_of
from apiserver.errors import InvalidRequest, ModelNotFound
from apiserver.event_stream import ChoiceOf, Events, StreamedChoice, StreamedResponse, collect
from apiserver.generation import Choice, CollectedChoice, GenerationRequest, Usage
from apiserver.parsed_choice import parsed_choice_of
from apiserver.parsed_text import ParsedText
from apiserver.schema.requests import SamplingFields
from apiserver.schema.validate import request_id_or_none
from apiserver.services import Services
from apiserver.text_stream import TextStream

DEADLINE_HEADER = b"x-request-deadline-ms"


class ChoiceKinds(Struct, frozen=True):
    """What the choices of an answer are that is more, or less, than text."""

    streamed: ChoiceOf
    collected: type[CollectedChoice]
    text_of: Callable[[], TextStream] | None = None  # None: as of every other answer


Body = Callable[[str, str, list[CollectedChoice], Usage], bytes]
"""response id, model, choices, usage → JSON"""


def check_model(name: str | None, services: Services) -> str:
    """The name to answer under. No name is the only model there is, as in vLLM."""
    served = services.model.served_names
    if name is None:
        return served[0]
    if name not in served and name not in services.lora_paths:
        names = ", ".join((*served, *services.lora_paths))
        raise ModelNotFound(f"The model `{name}` does not exist; this server has: {names}", param="model")
    return name


def request_id_of(request: SamplingFields, scope: Scope) -> str:
    """The body's `request_id`, else that of the HTTP request: it is in the response's id, as in vLLM."""
    request_id: str = request_id_or_none(request) or scope["state"]["request_id"]
    return request_id


def deadline_of(scope: Scope) -> float | None:
    """CLOCK_MONOTONIC seconds, from the header in milliseconds from now."""
    value = header(scope, DEADLINE_HEADER)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 9:
        raise InvalidRequest(f"{DEADLINE_HEADER.decode()} must be whole milliseconds")
    return time.monotonic() + int(value) / 1e3


def kinds_or_none(request: GenerationRequest, *, opens_with_prompt_ids: bool) -> ChoiceKinds | None:
    """Of chats and completions. `opens_with_prompt_ids`: a choice's first event has them, where they are asked for."""
    details = request.details
    if details is None:
        return None
    opens_with_prompt_ids = opens_with_prompt_ids and details.has_prompt_ids
    streamed = detailed_choice_of(request, details, opens_with_prompt_ids=opens_with_prompt_ids)
    return ChoiceKinds(streamed, CollectedDetails)


async def answer(
    request: GenerationRequest,
    services: Services,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    response_id: str,
    model: str,
    body: Body,
    events: Events | None = None,
    kinds: ChoiceKinds | None = None,
) -> None:
    """Generate and answer, as a stream of events or as one body. Raises ApiError while a status can be sent. Without
    `events` the request asks neither for a stream nor for logprobs; without `kinds` the answer is text."""
    state = scope["state"]
    state["generation"] = request
    if request.kv_transfer_params and services.settings.engine.engine != "vllm":
        raise InvalidRequest("kv_transfer_params is served by the engine vllm only", param="kv_transfer_params")
    if model in services.lora_paths:
        request = structs.replace(request, lora=model)
    if fair_key := state.get("fair_key"):
        request = structs.replace(request, fair_key=fair_key)
    text_of = None if kinds is None else kinds.text_of
    texts = [_text_stream(request, services) if text_of is None else text_of() for _ in range(request.num_choices)]
    client, metrics = services.client, services.metrics
    if request.is_stream:
        assert events is not None
        choice_of: ChoiceOf = parsed_choice_of(events) if request.output_format is not None else StreamedChoice
        if kinds is not None:
            choice_of = kinds.streamed
        response = StreamedResponse(
            request, events, texts, client, metrics, services.settings.server.stream_buffer_bytes, choice_of
        )
        try:
            await response.run(scope, receive, send)
        finally:
            state["describe"] = partial(
                _described,
                state["started_s"],
                request,
                response.choices,
                response.usage,
                is_disconnected=response.was_disconnected,
            )
        return
    kind = kinds.collected if kinds is not None else CollectedChoice
    choices = await collect(request, texts, client, metrics, scope, receive, kind)
    if choices is None:
        state["log"]["is_disconnected"] = True
        raise ClientLeft
    if request.has_logprobs:
        assert events is not None
        for choice in choices:
            choice.logprobs = events.logprobs(choice.kept_scores)
    if request.details is not None:
        detailed = [choice for choice in choices if isinstance(choice, CollectedDetails)]
        for place, choice in enumerate(detailed):
            first = detailed[place - place % request.n]
            choice.describe(request, request.details, first.prompt_scores, cast(PromptEvents, events))
    usage = generation.usage_of(request, choices)
    state["describe"] = partial(_described, state["started_s"], request, choices, usage)
    await send_body(send, body(response_id, model, choices, usage))


def _text_stream(request: GenerationRequest, services: Services) -> TextStream:
    preloaded, output_format = services.preloaded, request.output_format
    kind = TextStream if output_format is None else partial(ParsedText, output_format)
    return kind(
        preloaded.token_table,
        preloaded.tokenizer,
        stop=request.stop,
        include_stop=request.include_stop,
        skip_special_tokens=request.skip_special_tokens,
        min_tokens=request.sampling.min_tokens,
    )


def _described(
    started_s: float,
    request: GenerationRequest,
    choices: Sequence[Choice],
    usage: Usage | None,
    *,
    is_disconnected: bool = False,
) -> dict[str, Any]:
    """What the log line says of an answer, counts and times only, never text; of the stages those of the choice that took
    the engine longest."""
    usage = usage or generation.usage_of(request, choices)
    fields: dict[str, Any] = {
        "is_stream": request.is_stream,
        "num_choices": len(choices),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "finish": ",".join(sorted({_ending(choice) for choice in choices})),
        "preprocess_ms": generation.tenths_of_ms(int((choices[0].submitted_s - started_s) * 1e6)),
    }
    stages = generation.stages_of(choices)
    if stages is not None:
        fields["queue_ms"], fields["prefill_ms"], fields["decode_ms"] = stages.queue, stages.prefill, stages.decode
    ttfts_s = [choice.ttft_s for choice in choices if choice.ttft_s is not None]
    if ttfts_s:
        fields["ttft_ms"] = generation.tenths_of_ms(int(min(ttfts_s) * 1e6))
    if is_disconnected:
        fields["is_disconnected"] = True
    return fields


def _ending(choice: Choice) -> str:
    return choice.error.reason if choice.error is not None else choice.finish_reason or "abort"
