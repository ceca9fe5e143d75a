"""Request bodies as clients send them. Decoding checks types and gives the path of a wrong field; bounds are `validate`'s.

Fields of OpenAI's API (https://platform.openai.com/docs/api-reference, 2026-11) and vLLM 0.33's extensions. Unknown fields
are accepted, as vLLM does. Fields that are known and not served stand here too, so that they are refused by name and
never ignored: see apiserver.schema.unsupported.
"""

import re
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.structured import StructuredFields
from apiserver.schema.tools import Tool, ToolChoice

T = TypeVar("T")
Unserved = Any  # whatever a client puts into a field that is refused
NoEffect = Any  # whatever a client puts into a field that changes nothing here


class Message(Struct):
    """One turn. `content` may be text or a list of parts, of which only text is served. `role` is for the chat template to
    know: some models have roles of their own, such as Llama 3's ipython or Granite's document."""

    role: str
    content: str | list[dict[str, Any]] | None = None  # Any: parts are checked one by one
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # Any: checked in apiserver.chat_messages
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    annotations: NoEffect = None  # what OpenAI adds to answers; clients send answers back as they are

    refusal: Unserved = None
    audio: Unserved = None
    function_call: Unserved = None


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_stages: bool | None = False  # ours: the usage says how long the engine's stages took
    include_obfuscation: NoEffect = (
        None  # OpenAI pads its events against traffic analysis; a client may say it need not
    )


class SamplingFields(StructuredFields, kw_only=True):
    """What chat and completion requests share."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = False
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int | None = 0
    add_special_tokens: bool | None = None
    request_id: str | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    stream_interval: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    best_of: int | None = None
    kv_transfer_params: dict[str, Any] | None = None  # Any: for vLLM's KV connector, as it is

    # Accepted, and without effect on the answer: labels, and what vLLM documents as void on these routes.
    user: NoEffect = None
    metadata: NoEffect = None
    store: NoEffect = None
    service_tier: NoEffect = None
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None
    prompt_cache_retention: NoEffect = None
    session_id: NoEffect = None
    mm_payload: NoEffect = None
    return_mm_kwargs: NoEffect = None
    return_token_offsets: NoEffect = None
    spaces_between_special_tokens: NoEffect = None  # there are none, as with vLLM's fast tokenizers

    # Known, and refused unless they ask for nothing.
    use_beam_search: Unserved = None
    length_penalty: Unserved = None
    ec_transfer_params: Unserved = None
    vllm_xargs: Unserved = None
    logits_processors: Unserved = None
    routed_experts_prompt_start: Unserved = None
    prompt_embeds: Unserved = None
    repetition_detection: Unserved = None
    watermarking: Unserved = None
    return_weight_versions: Unserved = None


class ChatFields(SamplingFields, kw_only=True):
    """What a chat and a batch of chats share."""

    logprobs: bool | None = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    chat_template_kwargs: dict[str, Any] | None = None  # Any: handed to the template
    documents: list[dict[str, Any]] | None = None  # Any: handed to the template
    chat_template: str | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = True
    thinking_token_budget: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = True

    echo: Unserved = None
    functions: Unserved = None
    function_call: Unserved = None
    modalities: Unserved = None
    audio: Unserved = None
    prediction: Unserved = None
    web_search_options: Unserved = None
    verbosity: Unserved = None
    media_io_kwargs: Unserved = None
    mm_processor_kwargs: Unserved = None
    return_prompt_text: Unserved = None


class ChatRequest(ChatFields, kw_only=True):
    messages: list[Message]


class BatchChatRequest(ChatFields, kw_only=True):
    """vLLM's: one answer to each of several chats that want the same of the model."""

    messages: list[list[Message]]

    def chats(self) -> list[ChatRequest]:
        fields = {name: getattr(self, name) for name in ChatFields.__struct_fields__}
        return [ChatRequest(messages=messages, **fields) for messages in self.messages]


class CompletionRequest(SamplingFields, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = False

    top_logprobs: Unserved = None
    suffix: Unserved = None
    thinking_token_budget: Unserved = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a text, or messages as a chat would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    chat_template_kwargs: dict[str, Any] | None = None  # Any: handed to the template
    tools: list[Tool] | None = None
    chat_template: str | None = None
    return_token_strs: bool | None = None

    media_io_kwargs: Unserved = None
    mm_processor_kwargs: Unserved = None


class DetokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


_chat = msgspec.json.Decoder(ChatRequest)
_batch = msgspec.json.Decoder(BatchChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)
_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest, as its siblings do."""
    return decode_with(_chat, body)


def decode_batch(body: bytes) -> BatchChatRequest:
    return decode_with(_batch, body)


def decode_completion(body: bytes) -> CompletionRequest:
    return decode_with(_completion, body)


def decode_tokenize(body: bytes) -> TokenizeRequest:
    return decode_with(_tokenize, body)


def decode_detokenize(body: bytes) -> DetokenizeRequest:
    return decode_with(_detokenize, body)


def decode_with(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises InvalidRequest, with the path of the field that is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _with_path(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


_MISSING = re.compile(r"missing required field `(\w+)`")


def _with_path(complaint: str) -> InvalidRequest:
    """msgspec's `… - at `$.messages[0].role`` becomes a param; a missing field is named as if it stood there."""
    text, _, path = complaint.partition(" - at `$")
    param = path.rstrip("`").lstrip(".")
    missing = _MISSING.search(text)
    if missing is not None:
        param = f"{param}.{missing[1]}" if param else missing[1]
    return InvalidRequest(f"{param}: {text}" if param else text, param=param or None)
