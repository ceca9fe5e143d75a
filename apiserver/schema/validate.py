"""A decoded body becomes a GenerationRequest that cannot be wrong: every limit and default is decided here.

Bounds are vLLM's (SamplingParams._verify_args) where it has them. What a silent request gets comes from the model's
generation_config.json, as with vLLM's `--generation-config auto`, and then from OpenAI's defaults.
"""

import math
from typing import TypeVar

from apiserver.errors import ContextTooLong, InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.schema.requests import ChatRequest, CompletionRequest, SamplingFields
from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import ServerSettings
from ipc.messages import SamplingParams

MAX_LOGIT_BIAS = 1024  # entries
MAX_STOP_LENGTH = 1024  # characters
SEED_BITS = 63
COMPLETION_MAX_TOKENS = 16  # OpenAI's default of /v1/completions

T = TypeVar("T", int, float)


def generation_request(
    request: ChatRequest | CompletionRequest,
    prompts: tuple[Prompt, ...],
    model: ModelFolder,
    limits: ServerSettings,
    *,
    request_id: str,
    deadline_s: float | None,
) -> GenerationRequest:
    """Raises InvalidRequest."""
    n = _within("n", request.n, 1, 1, limits.max_n)
    stop = _stop(request, limits)
    wanted = _wanted_tokens(request)
    return GenerationRequest(
        request_id=request_id,
        prompts=prompts,
        n=n,
        sampling=_sampling(request, model),
        max_tokens=tuple(_max_tokens(prompt.num_tokens, wanted, model.max_model_len) for prompt in prompts),
        stop=stop,
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        is_stream=bool(request.stream),
        include_usage=_include_usage(request),
        priority=_within("priority", request.priority, 0, -(2**31), 2**31 - 1),
        deadline_s=deadline_s,
    )


def _sampling(request: SamplingFields, model: ModelFolder) -> SamplingParams:
    defaults = model.sampling_defaults
    temperature = _within("temperature", request.temperature, _or(defaults.temperature, 1.0), 0.0, 100.0)
    min_tokens = _within("min_tokens", request.min_tokens, 0, 0, model.max_model_len)
    return SamplingParams(
        max_tokens=1,  # per prompt: GenerationRequest.max_tokens
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=_top_p(request.top_p, defaults),
        top_k=_top_k(request.top_k, defaults),
        min_p=_within("min_p", request.min_p, _or(defaults.min_p, 0.0), 0.0, 1.0),
        presence_penalty=_within("presence_penalty", request.presence_penalty, 0.0, -2.0, 2.0),
        frequency_penalty=_within("frequency_penalty", request.frequency_penalty, 0.0, -2.0, 2.0),
        repetition_penalty=_repetition_penalty(request, defaults),
        seed=None if request.seed is None else _within("seed", request.seed, 0, -(2**SEED_BITS), 2**SEED_BITS - 1),
        stop_token_ids=_token_ids("stop_token_ids", request.stop_token_ids or [], model.vocab_size),
        ignore_eos=request.ignore_eos,
        logit_bias=_logit_bias(request.logit_bias or {}, model.vocab_size),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _within(name: str, value: T | None, default: T, low: float, high: float) -> T:
    """The value, or the default when there is none. Raises InvalidRequest outside the bounds; NaN is outside."""
    if value is None:
        return default
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)
    return value


def _top_p(value: float | None, defaults: SamplingDefaults) -> float:
    top_p = _within("top_p", value, _or(defaults.top_p, 1.0), 0.0, 1.0)
    if top_p == 0.0:
        raise InvalidRequest("top_p must be greater than 0", param="top_p")
    return top_p


def _top_k(value: int | None, defaults: SamplingDefaults) -> int:
    """vLLM's -1 and 0 both mean off."""
    default = defaults.top_k or 0
    top_k = _within("top_k", value, default, -1, 2**31 - 1)
    return max(top_k, 0)


def _repetition_penalty(request: SamplingFields, defaults: SamplingDefaults) -> float:
    penalty = _within(
        "repetition_penalty", request.repetition_penalty, _or(defaults.repetition_penalty, 1.0), 0.0, 100.0
    )
    if penalty == 0.0:
        raise InvalidRequest("repetition_penalty must be greater than 0", param="repetition_penalty")
    return penalty


def _token_ids(name: str, ids: list[int], vocab_size: int) -> tuple[int, ...]:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"{name}: {token_id} is not a token id (vocabulary of {vocab_size})", param=name)
    return tuple(ids)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(bias) > MAX_LOGIT_BIAS:
        raise InvalidRequest(f"logit_bias has {len(bias)} entries, at most {MAX_LOGIT_BIAS}", param="logit_bias")
    pairs = []
    for key, value in bias.items():
        if not key.isdecimal() or int(key) >= vocab_size:
            raise InvalidRequest(
                f"logit_bias: '{key}' is not a token id (vocabulary of {vocab_size})", param="logit_bias"
            )
        if math.isnan(value):
            raise InvalidRequest("logit_bias values must be numbers", param="logit_bias")
        pairs.append((int(key), min(100.0, max(-100.0, value))))
    return tuple(pairs)


def _stop(request: SamplingFields, limits: ServerSettings) -> tuple[str, ...]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > limits.max_stop_strings:
        raise InvalidRequest(f"stop has {len(stop)} strings, at most {limits.max_stop_strings}", param="stop")
    for string in stop:
        if not string:
            raise InvalidRequest("stop must not contain an empty string", param="stop")
        if len(string) > MAX_STOP_LENGTH:
            raise InvalidRequest(f"a stop string has {len(string)} characters, at most {MAX_STOP_LENGTH}", param="stop")
    return tuple(stop)


def _include_usage(request: SamplingFields) -> bool:
    options = request.stream_options
    if options is None:
        return False
    if not request.stream:
        raise InvalidRequest("stream_options is only allowed when stream is true", param="stream_options")
    if options.continuous_usage_stats:
        raise InvalidRequest(
            "continuous_usage_stats is not supported by this server", param="stream_options.continuous_usage_stats"
        )
    return options.include_usage


def _wanted_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    """None: as many as fit."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return _within("max_completion_tokens", request.max_completion_tokens, 1, 1, 2**31 - 1)
    default = COMPLETION_MAX_TOKENS if isinstance(request, CompletionRequest) else None
    if request.max_tokens is None:
        return default
    return _within("max_tokens", request.max_tokens, 1, 1, 2**31 - 1)


def _max_tokens(num_prompt_tokens: int, wanted: int | None, max_model_len: int) -> int:
    """Raises ContextTooLong with both numbers."""
    room = max_model_len - num_prompt_tokens
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if room < 1 or (wanted or 0) > room:
        output = wanted or 1
        raise ContextTooLong(
            f"This model's maximum context length is {max_model_len} tokens, but you requested "
            f"{num_prompt_tokens + output} tokens ({num_prompt_tokens} in the prompt, {output} for the output).",
            param="messages",
        )
    return room if wanted is None else wanted


def prompts_of(request: CompletionRequest, limits: ServerSettings, vocab_size: int) -> list[str | list[int]]:
    """Each prompt as text or as checked ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if all(type(item) is int for item in prompt):
        return [list(_token_ids("prompt", prompt, vocab_size))]
    if len(prompt) > limits.max_prompts_per_request:
        raise InvalidRequest(
            f"prompt has {len(prompt)} entries, at most {limits.max_prompts_per_request}", param="prompt"
        )
    if all(isinstance(item, str) for item in prompt):
        return prompt
    if all(isinstance(item, list) and all(type(number) is int for number in item) for item in prompt):
        return [list(_token_ids("prompt", item, vocab_size)) for item in prompt]
    raise InvalidRequest(
        "prompt must be a string, a list of strings, token ids, or a list of token ids", param="prompt"
    )
