"""A decoded body becomes a GenerationRequest that cannot be wrong: every limit and default is decided here.

Bounds are vLLM's (SamplingParams._verify_args, 0.32) where it has them. What a silent request gets comes from the model's
generation_config.json, as with vLLM's `--generation-config auto`, and then from OpenAI's defaults.
"""

from array import array
from typing import TypeVar, cast

import msgspec

from apiserver.answer_details import AnswerDetails
from apiserver.errors import ContextTooLong, InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.logprobs import MAX_LOGPROBS
from apiserver.parsed_text import OutputFormat
from apiserver.schema.requests import ChatRequest, CompletionRequest, SamplingFields
from apiserver.schema.structured import grammar_or_none
from config.model_folder import ModelFolder
from config.settings import ServerSettings
from ipc.grammar import Grammar
from ipc.messages import NO_LIMIT, NO_LOGPROBS, SamplingParams, Thinking

MAX_TEMPERATURE = 2.0
MAX_REPETITION_PENALTY = 100.0
MAX_LOGIT_BIAS = 1024  # entries
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROB_TOKEN_IDS = 128
MAX_STOP_LENGTH = 1024  # characters
MAX_REQUEST_ID_CHARS = 128
MAX_CACHE_SALT_CHARS = 1024
COMPLETION_MAX_TOKENS = 16  # OpenAI's default of /v1/completions
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

NO_DETAILS = AnswerDetails()

T = TypeVar("T", int, float)


def generation_request(
    request: ChatRequest | CompletionRequest,
    prompts: tuple[Prompt, ...],
    model: ModelFolder,
    limits: ServerSettings,
    *,
    request_id: str,
    deadline_s: float | None,
    output_format: OutputFormat | None = None,
    counts_reasoning: bool = False,
) -> GenerationRequest:
    """Raises InvalidRequest, ContextTooLong."""
    prompts = _truncated(request, prompts, model.max_model_len)
    n = _within("n", request.n, 1, 1, limits.max_n)
    if request.best_of is not None and request.best_of != n:
        raise InvalidRequest(f"best_of must be as n is, {n}: nothing is generated to be dropped", param="best_of")
    _check_num_choices(len(prompts), n, limits)
    max_tokens = tuple(max_tokens_of(request, prompt.num_tokens, model) for prompt in prompts)
    return GenerationRequest(
        request_id=request_id,
        prompts=prompts,
        n=n,
        sampling=_sampling(request, model, min(max_tokens), output_format),
        max_tokens=max_tokens,
        stop=_stop(request, limits),
        include_stop=bool(request.include_stop_str_in_output),
        told_stop_ids=_told_stop_ids(request, model),
        skip_special_tokens=request.skip_special_tokens is not False,
        is_stream=bool(request.stream),
        include_usage=_include_usage(request),
        include_stages=bool(request.stream_options and request.stream_options.include_stages),
        priority=_within("priority", request.priority, 0, -INT32_MAX - 1, INT32_MAX),
        cache_salt=_cache_salt(request),
        deadline_s=deadline_s,
        output_format=output_format,
        counts_reasoning=counts_reasoning,
        details=_details_or_none(request, output_format, limits.stream_interval),
        kv_transfer_params=_kv_transfer_params(request),
    )


def _kv_transfer_params(request: SamplingFields) -> bytes:
    try:
        return msgspec.msgpack.encode(request.kv_transfer_params) if request.kv_transfer_params else b""
    except OverflowError:
        raise InvalidRequest(
            "kv_transfer_params: an integer has more than 64 bits", param="kv_transfer_params"
        ) from None


def _details_or_none(
    request: SamplingFields, output_format: OutputFormat | None, least_interval: int
) -> AnswerDetails | None:
    """As in vLLM running usage needs include_usage, ids would tell of reasoning that is hidden, and a request may only ask
    for fewer events than the server's own."""
    options = request.stream_options if request.stream else None
    interval = _within("stream_interval", request.stream_interval, 1, 1, INT32_MAX)
    details = AnswerDetails(
        has_prompt_ids=bool(request.return_token_ids),
        has_token_ids=bool(request.return_token_ids) and (output_format is None or output_format.shows_reasoning),
        has_running_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        has_prompt_logprobs=not request.stream and _num_prompt_logprobs(request) != NO_LOGPROBS,
        echoes=_echoes(request),
        has_output=not _only_echoes(request),
        stream_interval=max(interval, least_interval) if request.stream else 1,
    )
    return None if details == NO_DETAILS else details


def is_truncated(request: SamplingFields) -> bool:
    """Whether a prompt longer than the context is cut instead of refused."""
    return request.truncate_prompt_tokens is not None


def _truncated(request: SamplingFields, prompts: tuple[Prompt, ...], max_model_len: int) -> tuple[Prompt, ...]:
    """The last tokens of each prompt, as many as asked for, or the first ones; -1 is as many as the context leaves with
    room for one token of output."""
    limit = request.truncate_prompt_tokens
    if limit is None:
        return prompts
    if limit != -1:
        _within("truncate_prompt_tokens", limit, 1, 1, max_model_len)
    num_bytes = 4 * (max_model_len - 1 if limit == -1 else limit)
    if request.truncation_side == "right":
        return tuple(Prompt(prompt.ids[:num_bytes]) for prompt in prompts)
    return tuple(Prompt(prompt.ids[-num_bytes:]) for prompt in prompts)


def _cache_salt(request: SamplingFields) -> bytes:
    salt = request.cache_salt
    if salt is None:
        return b""
    if not 1 <= len(salt) <= MAX_CACHE_SALT_CHARS:
        raise InvalidRequest(f"cache_salt must have 1 to {MAX_CACHE_SALT_CHARS} characters", param="cache_salt")
    return salt.encode()


def request_id_or_none(request: SamplingFields) -> str | None:
    """The id the body gives. Raises InvalidRequest where it could not stand in a log line or a header."""
    given = request.request_id
    if given is None:
        return None
    if not 1 <= len(given) <= MAX_REQUEST_ID_CHARS or not given.isascii() or not given.isprintable():
        raise InvalidRequest(
            f"request_id must be 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters", param="request_id"
        )
    return given


def prompts_of(request: CompletionRequest, limits: ServerSettings, vocab_size: int) -> list[str] | list[Prompt]:
    """All of them texts, or all of them checked token ids. Raises InvalidRequest."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if len(kinds) != 1:
        complaint = "must not be empty" if not kinds else "must be a text, texts, token ids or lists of token ids"
        raise InvalidRequest(f"prompt {complaint}", param="prompt")
    if kinds == {int}:
        return [_id_prompt("prompt", cast(list[int], prompt), vocab_size)]
    if len(prompt) > limits.max_prompts_per_request:
        raise InvalidRequest(
            f"prompt has {len(prompt)} entries, at most {limits.max_prompts_per_request} are taken", param="prompt"
        )
    if kinds == {str}:
        return cast(list[str], prompt)
    lists = cast(list[list[int]], prompt)
    return [_id_prompt(f"prompt[{place}]", ids, vocab_size) for place, ids in enumerate(lists)]


def check_token_ids(param: str, ids: list[int], vocab_size: int) -> None:
    """Raises InvalidRequest that names the first wrong one."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(number for number in ids if not 0 <= number < vocab_size)
        raise InvalidRequest(f"{param}: {wrong} is not a token id (vocabulary of {vocab_size})", param=param)


def _id_prompt(param: str, ids: list[int], vocab_size: int) -> Prompt:
    check_token_ids(param, ids, vocab_size)
    return Prompt(array("I", ids).tobytes())


def _check_num_choices(num_prompts: int, n: int, limits: ServerSettings) -> None:
    most = max(limits.max_prompts_per_request, limits.max_n)
    if num_prompts * n > most:
        raise InvalidRequest(f"{num_prompts} prompts with n = {n} are more than {most} choices", param="n")


def _sampling(
    request: SamplingFields, model: ModelFolder, max_tokens: int, output_format: OutputFormat | None
) -> SamplingParams:
    """`max_tokens` is that of the prompt with the least; each prompt gets its own from GenerationRequest."""
    defaults = model.sampling_defaults
    grammar = _grammar_or_none(request, output_format)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=_min_tokens(request, max_tokens),
        temperature=_within("temperature", request.temperature, _or(defaults.temperature, 1.0), 0.0, MAX_TEMPERATURE),
        top_p=_above_zero("top_p", request.top_p, _or(defaults.top_p, 1.0), 1.0),
        top_k=max(_within("top_k", request.top_k, defaults.top_k or 0, -1, INT32_MAX), 0),  # -1 and 0 both mean off
        min_p=_within("min_p", request.min_p, _or(defaults.min_p, 0.0), 0.0, 1.0),
        presence_penalty=_within(
            "presence_penalty", request.presence_penalty, _or(defaults.presence_penalty, 0.0), -2.0, 2.0
        ),
        frequency_penalty=_within(
            "frequency_penalty", request.frequency_penalty, _or(defaults.frequency_penalty, 0.0), -2.0, 2.0
        ),
        repetition_penalty=_above_zero(
            "repetition_penalty",
            request.repetition_penalty,
            _or(defaults.repetition_penalty, 1.0),
            MAX_REPETITION_PENALTY,
        ),
        seed=None if request.seed in (None, -1) else _within("seed", request.seed, 0, -INT64_MAX - 1, INT64_MAX),
        stop_token_ids=_stop_token_ids(request, model.vocab_size),
        ignore_eos=bool(request.ignore_eos),
        logit_bias=_logit_bias(request.logit_bias or {}, model.vocab_size),
        num_logprobs=0 if request.logprob_token_ids else _num_logprobs(request),
        num_prompt_logprobs=_num_prompt_logprobs(request),
        logprob_token_ids=_logprob_token_ids(request, model.vocab_size),
        allowed_token_ids=_allowed_token_ids(request, model.vocab_size),
        thinking=_thinking_or_none(grammar, output_format),
        grammar=grammar,
    )


def _grammar_or_none(request: SamplingFields, output_format: OutputFormat | None) -> Grammar | None:
    """What the request asks for, or the calls that it enforces."""
    asked = grammar_or_none(request)
    calls = None if output_format is None else output_format.grammar
    if asked is not None and calls is not None:
        raise InvalidRequest("tool_choice: the request already says what the answer must be", param="tool_choice")
    return asked or calls


def _thinking_or_none(grammar: Grammar | None, output_format: OutputFormat | None) -> Thinking | None:
    """Where something depends on it: a limit, or the place where the grammar begins."""
    thinking = None if output_format is None else output_format.thinking
    if thinking is None or (grammar is None and thinking.max_tokens == NO_LIMIT):
        return None
    return thinking


def _allowed_token_ids(request: SamplingFields, vocab_size: int) -> tuple[int, ...]:
    ids = request.allowed_token_ids
    if ids is None:
        return ()
    if not 1 <= len(ids) <= vocab_size:
        raise InvalidRequest(f"allowed_token_ids must have 1 to {vocab_size} entries", param="allowed_token_ids")
    check_token_ids("allowed_token_ids", ids, vocab_size)
    return tuple(dict.fromkeys(ids))


def _logprob_token_ids(request: SamplingFields, vocab_size: int) -> tuple[int, ...]:
    ids = request.logprob_token_ids
    if not ids:
        return ()
    assert isinstance(request, CompletionRequest | ChatRequest)
    if request.logprobs is None or request.logprobs is False:
        raise InvalidRequest("logprob_token_ids need logprobs", param="logprob_token_ids")
    if len(ids) > MAX_LOGPROB_TOKEN_IDS:
        raise InvalidRequest(
            f"logprob_token_ids has {len(ids)} entries, at most {MAX_LOGPROB_TOKEN_IDS} are taken",
            param="logprob_token_ids",
        )
    if _only_echoes(request):
        raise InvalidRequest("logprob_token_ids are of the output, and max_tokens is 0", param="logprob_token_ids")
    check_token_ids("logprob_token_ids", ids, vocab_size)
    return tuple(dict.fromkeys(ids))


def _num_logprobs(request: SamplingFields) -> int:
    """Alternatives per token: a chat asks twice, for logprobs and for how many."""
    if isinstance(request, CompletionRequest):
        return _within("logprobs", request.logprobs, NO_LOGPROBS, 0, MAX_LOGPROBS)
    assert isinstance(request, ChatRequest)
    count = _within("top_logprobs", request.top_logprobs, 0, 0, MAX_LOGPROBS)
    if count and not request.logprobs:
        raise InvalidRequest("when using `top_logprobs`, `logprobs` must be set to true", param="top_logprobs")
    return count if request.logprobs else NO_LOGPROBS


def _num_prompt_logprobs(request: SamplingFields) -> int:
    """Alternatives per prompt token. As in vLLM a stream has none, but for those that it echoes."""
    if _asks_for_prompt_logprobs(request):
        return _within("prompt_logprobs", request.prompt_logprobs, NO_LOGPROBS, 0, MAX_LOGPROBS)
    if request.prompt_logprobs:
        raise InvalidRequest("prompt_logprobs are not available when stream is true", param="prompt_logprobs")
    return _num_logprobs(request) if _echoes(request) else NO_LOGPROBS


def _asks_for_prompt_logprobs(request: SamplingFields) -> bool:
    return request.prompt_logprobs is not None and not request.stream


def _echoes(request: SamplingFields) -> bool:
    return isinstance(request, CompletionRequest) and bool(request.echo)


def _only_echoes(request: SamplingFields) -> bool:
    return _echoes(request) and request.max_tokens == 0


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _within(name: str, value: T | None, default: T, low: float, high: float) -> T:
    """The value, or the default when there is none. Raises InvalidRequest outside the bounds; NaN is outside."""
    if value is None:
        return default
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)
    return value


def _above_zero(name: str, value: float | None, default: float, high: float) -> float:
    """As `_within`, without zero itself."""
    if value is not None and not 0.0 < value <= high:
        raise InvalidRequest(f"{name} must be greater than 0 and at most {high}, not {value}", param=name)
    return default if value is None else value


def _min_tokens(request: SamplingFields, max_tokens: int) -> int:
    min_tokens = _within("min_tokens", request.min_tokens, 0, 0, INT32_MAX)
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens must be at most the {max_tokens} tokens that may be generated, not {min_tokens}",
            param="min_tokens",
        )
    return min_tokens


def _stop_token_ids(request: SamplingFields, vocab_size: int) -> tuple[int, ...]:
    ids = request.stop_token_ids or []
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(ids)} entries, at most {MAX_STOP_TOKEN_IDS} are taken", param="stop_token_ids"
        )
    check_token_ids("stop_token_ids", ids, vocab_size)
    return tuple(ids)


def _told_stop_ids(request: SamplingFields, model: ModelFolder) -> tuple[int, ...]:
    """As in vLLM: the model's end of sequence has no stop_reason, even where the client names it, unless it is ignored."""
    if not request.stop_token_ids:
        return ()
    ends = () if request.ignore_eos else model.eos_token_ids
    return tuple(number for number in request.stop_token_ids if number not in ends)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Values beyond OpenAI's -100 to 100 are cut to it, as in vLLM."""
    if len(bias) > MAX_LOGIT_BIAS:
        raise InvalidRequest(
            f"logit_bias has {len(bias)} entries, at most {MAX_LOGIT_BIAS} are taken", param="logit_bias"
        )
    num_digits = len(str(vocab_size))
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) <= num_digits and int(key) < vocab_size):
            raise InvalidRequest(
                f"logit_bias: {key[:40]!r} is not a token id (vocabulary of {vocab_size})", param="logit_bias"
            )
    return tuple((int(key), min(100.0, max(-100.0, value))) for key, value in bias.items())


def _stop(request: SamplingFields, limits: ServerSettings) -> tuple[str, ...]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > limits.max_stop_strings:
        raise InvalidRequest(f"stop has {len(stop)} strings, at most {limits.max_stop_strings} are taken", param="stop")
    for string in stop:
        if not 1 <= len(string) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"a stop string must have 1 to {MAX_STOP_LENGTH} characters, not {len(string)}", param="stop"
            )
    return tuple(stop)


def _include_usage(request: SamplingFields) -> bool:
    options = request.stream_options
    if options is None:
        return False
    if not request.stream:
        raise InvalidRequest("stream_options is only allowed when stream is true", param="stream_options")
    return bool(options.include_usage or options.include_stages)


def _wanted_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    """None: as many as fit."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return _within("max_completion_tokens", request.max_completion_tokens, 1, 1, INT64_MAX)
    if _only_echoes(request):
        return 1  # as in vLLM: drawn, counted and not shown
    if request.max_tokens is not None:
        return _within("max_tokens", request.max_tokens, 1, 1, INT64_MAX)
    return COMPLETION_MAX_TOKENS if isinstance(request, CompletionRequest) else None


def max_tokens_of(request: ChatRequest | CompletionRequest, num_prompt_tokens: int, model: ModelFolder) -> int:
    """What is wanted, by the request or else by the model's generation_config.json, or all that fits behind this prompt where
    that is less: as in vLLM, for many clients always ask for the same large number. Raises InvalidRequest, and ContextTooLong
    in OpenAI's words."""
    wanted, max_model_len = _wanted_tokens(request), model.max_model_len
    source = "messages" if isinstance(request, ChatRequest) else "prompt"
    room = max_model_len - num_prompt_tokens
    if num_prompt_tokens == 0:
        raise InvalidRequest(f"{source} has no tokens: there is nothing to continue", param=source)
    if room < 1:
        raise ContextTooLong(
            f"This model's maximum context length is {max_model_len} tokens. However, your {source} resulted in "
            f"{num_prompt_tokens} tokens. Please reduce the length of the {source}.",
            param=source,
        )
    if wanted is not None and wanted > max_model_len:
        asks_by_new_name = isinstance(request, ChatRequest) and request.max_completion_tokens is not None
        raise InvalidRequest(
            f"max_tokens is too large: {wanted}. This model's maximum context length is {max_model_len} tokens.",
            param="max_completion_tokens" if asks_by_new_name else "max_tokens",
        )
    return min(room, _or(wanted, _or(model.sampling_defaults.max_new_tokens, room)))
