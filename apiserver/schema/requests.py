"""Request bodies as clients send them. Decoding checks types and gives the path of a wrong field; bounds are `validate`'s.

Fields of OpenAI's API (https://platform.openai.com/docs/api-reference, 2026-11) and vLLM 0.32's extensions. Unknown fields
are accepted, as vLLM does. Fields that are known and not served stand here too, so that they are refused by name and
never ignored: see apiserver.schema.unsupported.
"""

from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest

T = TypeVar("T")
Unserved = Any  # whatever a client puts into a field that is refused


class Message(Struct):
    """One turn. `content` may be text or a list of parts, of which only text is served."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None  # Any: parts are checked one by one
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None  # Any: passed to the template as it is
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class StreamOptions(Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(Struct, kw_only=True):
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
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    add_special_tokens: bool | None = None

    # Accepted without effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None  # Any: the client's own
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    request_id: str | None = None

    # Known, and refused unless they ask for nothing.
    logprobs: Unserved = None
    top_logprobs: Unserved = None
    prompt_logprobs: Unserved = None
    echo: Unserved = None
    best_of: Unserved = None
    use_beam_search: Unserved = None
    length_penalty: Unserved = None
    allowed_token_ids: Unserved = None
    bad_words: Unserved = None
    truncate_prompt_tokens: Unserved = None
    spaces_between_special_tokens: Unserved = None
    response_format: Unserved = None
    structured_outputs: Unserved = None
    guided_json: Unserved = None
    guided_regex: Unserved = None
    guided_choice: Unserved = None
    guided_grammar: Unserved = None
    stream_interval: Unserved = None
    cache_salt: Unserved = None
    kv_transfer_params: Unserved = None
    vllm_xargs: Unserved = None
    logits_processors: Unserved = None
    logprob_token_ids: Unserved = None
    return_token_ids: Unserved = None
    return_tokens_as_token_ids: Unserved = None
    prompt_embeds: Unserved = None
    repetition_detection: Unserved = None
    watermarking: Unserved = None


class ChatRequest(SamplingFields, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None  # Any: handed to the template
    documents: list[dict[str, Any]] | None = None  # Any: handed to the template
    reasoning_effort: str | None = None

    chat_template: Unserved = None
    tools: Unserved = None
    tool_choice: Unserved = None
    functions: Unserved = None
    function_call: Unserved = None
    parallel_tool_calls: Unserved = None
    include_reasoning: Unserved = None
    thinking_token_budget: Unserved = None
    modalities: Unserved = None
    audio: Unserved = None
    prediction: Unserved = None
    web_search_options: Unserved = None
    verbosity: Unserved = None
    media_io_kwargs: Unserved = None
    mm_processor_kwargs: Unserved = None


class CompletionRequest(SamplingFields, kw_only=True):
    prompt: str | list[Any]  # Any: texts, ids or lists of ids; told apart in validate
    suffix: Unserved = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a text, or messages as a chat would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None  # Any: handed to the template
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)
_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest, as its siblings do."""
    return _decode(_chat, body)


def decode_completion(body: bytes) -> CompletionRequest:
    return _decode(_completion, body)


def decode_tokenize(body: bytes) -> TokenizeRequest:
    return _decode(_tokenize, body)


def decode_detokenize(body: bytes) -> DetokenizeRequest:
    return _decode(_detokenize, body)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        raise InvalidRequest(f"{param}: {text}" if param else text, param=param) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
