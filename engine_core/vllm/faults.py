"""Requests that vLLM cannot answer as they were asked, each with the line that says so."""

from engine_core.outbox import MAX_OVERFLOW_BYTES
from ipc.messages import NO_LIMIT, NO_LOGPROBS, Generate, SamplingParams
from ipc.record import SCORED_WORDS

GREEDY_BELOW = 1e-5
MAX_ALLOWED_TOKEN_IDS = 1024  # these four as in vllm/v1/worker/gpu/sample, which ends the engine core past them
MAX_STOP_IDS = 128
MAX_BAD_WORDS = 128
MAX_BAD_WORDS_IDS = 1024
MAX_SCORED_PROMPT_BYTES = MAX_OVERFLOW_BYTES // 4  # vLLM gives them all at once; a worker has to hold them


def fault_or_none(request: Generate, num_delivered: int, num_eos: int = 1) -> str | None:
    """Why vLLM cannot answer this request as it was asked, in one line. `num_eos` tokens end an answer of the model."""
    sampling = request.sampling
    if request.pooling:
        return "embeddings are not served by the engine vllm: it runs vLLM's generation"
    if sampling.logprob_token_ids:
        return "logprob_token_ids are not served by the engine vllm: it would give them to all who asked for logprobs"
    if sampling.grammar is not None and sampling.allowed_token_ids:
        return "the engine vllm cannot hold an answer to a form and to allowed_token_ids together"
    if sampling.thinking is not None:
        if sampling.thinking.max_tokens != NO_LIMIT:
            return "thinking_token_budget is not served by the engine vllm"
        if sampling.grammar is not None:
            return "the engine vllm cannot hold an answer to a form behind its reasoning: switch reasoning off"
    if sampling.allowed_token_ids or sampling.min_tokens or sampling.bad_words:
        fault = _bound_fault_or_none(sampling, num_eos)
        if fault is not None:
            return fault
    if num_delivered and not _goes_on_exactly(request):
        return (
            "the engine was lost; vLLM cannot go on with a request that has a seed, a penalty on its output, bad_words, a form "
            "or kv_transfer_params"
        )
    return None


def _bound_fault_or_none(sampling: SamplingParams, num_eos: int) -> str | None:
    """vLLM's buffers on a GPU are of one size for all requests, and what does not fit ends its engine core."""
    num_stop_ids = num_eos + len(sampling.stop_token_ids) if sampling.min_tokens else 0
    num_bad_ids = sum(map(len, sampling.bad_words))
    for what, number, at_most in (
        ("ids in allowed_token_ids", len(sampling.allowed_token_ids), MAX_ALLOWED_TOKEN_IDS),
        ("stop ids beside min_tokens, those of the model counted", num_stop_ids, MAX_STOP_IDS),
        ("bad_words, those with a space in front counted", len(sampling.bad_words), MAX_BAD_WORDS),
        ("tokens in bad_words, those with a space in front counted", num_bad_ids, MAX_BAD_WORDS_IDS),
    ):
        if number > at_most:
            return f"the engine vllm takes at most {at_most} {what}, not {number}"
    return None


def size_fault_or_none(request: Generate, num_prompt_tokens: int, num_delivered: int) -> str | None:
    if request.sampling.num_prompt_logprobs == NO_LOGPROBS or num_delivered:
        return None
    num_bytes = 4 * num_prompt_tokens * (SCORED_WORDS + 2 * request.sampling.num_prompt_logprobs)
    if num_bytes <= MAX_SCORED_PROMPT_BYTES:
        return None
    return (
        f"the logprobs of this prompt take {num_bytes} bytes, the engine vllm gives at most {MAX_SCORED_PROMPT_BYTES}: "
        "ask for fewer alternatives or a shorter prompt"
    )


def _goes_on_exactly(request: Generate) -> bool:
    """Whether prompt and output together, as a prompt, are followed by what would have followed the output: the same text, or
    where nobody fixed the draws any text as likely as it was. K/V that was to be handed on, or was handed here, is gone."""
    sampling = request.sampling
    has_fixed_draws = sampling.temperature >= GREEDY_BELOW and sampling.seed is not None
    counts_output = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    hands_on = request.vllm is not None and bool(request.vllm.kv_transfer_params)
    return (
        not has_fixed_draws
        and not counts_output
        and sampling.grammar is None
        and not sampling.bad_words
        and not hands_on
    )
