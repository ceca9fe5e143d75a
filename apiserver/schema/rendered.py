"""What the render routes answer: the body that POST /inference/v1/generate takes, here or in vLLM.

Sampling parameters stand in it as vLLM writes them, without those that have their defaults; what the model's
generation_config.json says of them is in it.
"""

from typing import Any

import msgspec
from msgspec import structs

from apiserver.generation import GenerationRequest
from apiserver.schema.requests import SamplingFields
from ipc.grammar import Grammar
from ipc.messages import NO_LIMIT, SamplingParams

Json = dict[str, Any]  # Any: JSON, as everywhere here

_FROM_SAMPLING = (
    "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p", "seed",
    "stop_token_ids", "ignore_eos", "min_tokens", "allowed_token_ids",
)  # fmt: skip
_FROM_REQUEST = ("bad_words", "prompt_logprobs", "spaces_between_special_tokens", "stream_interval")
_DEFAULTS = {field.name: field.default for field in structs.fields(SamplingParams) if field.name in _FROM_SAMPLING}


def rendered_request(
    request: SamplingFields,
    generation: GenerationRequest,
    place: int,
    *,
    request_id: str,
    reasoning_ended: bool | None = None,
    template_variables: Json | None = None,
) -> Json:
    """Of the prompt at this place. `template_variables` of a model whose answers are looked at for reasoning."""
    return {
        "request_id": request_id,
        "token_ids": memoryview(generation.prompts[place].ids).cast("I").tolist(),
        "token_offsets": None,
        "features": None,
        "content_parts": None,
        "sampling_params": _sampling(request, generation, place),
        "model": request.model,
        "reasoning_ended": reasoning_ended,
        "reasoning_parser_kwargs": (
            None if template_variables is None else {"chat_template_kwargs": template_variables}
        ),
        "return_token_ids": None,
        "output_mode": "tokens",
        "stream": bool(request.stream),
        "stream_options": _stream_options(request),
        "cache_salt": request.cache_salt,
        "priority": generation.priority,
        "kv_transfer_params": request.kv_transfer_params,
        "ec_transfer_params": None,
    }


def _stream_options(request: SamplingFields) -> Json | None:
    """vLLM's two; ours ask for what only this server's own answer has."""
    options = request.stream_options
    if not request.stream or options is None:
        return None
    return {
        "include_usage": options.include_usage,
        "continuous_usage_stats": options.continuous_usage_stats,
    }


def _sampling(request: SamplingFields, generation: GenerationRequest, place: int) -> Json:
    sampling = generation.sampling
    fields: Json = {name: getattr(sampling, name) for name in _FROM_SAMPLING}
    fields = {name: value for name, value in fields.items() if value != _DEFAULTS[name]}
    fields |= {name: value for name in _FROM_REQUEST if (value := getattr(request, name)) is not None}
    fields["max_tokens"] = generation.max_tokens[place]
    if generation.n != 1:
        fields["n"] = generation.n
    if generation.stop:
        fields["stop"] = generation.stop
    if generation.include_stop:
        fields["include_stop_str_in_output"] = True
    if not generation.skip_special_tokens:
        fields["skip_special_tokens"] = False
    if generation.has_logprobs:
        fields["logprobs"] = sampling.num_logprobs
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.grammar is not None:
        fields["structured_outputs"] = _structured_outputs(sampling.grammar)
    if sampling.thinking is not None and sampling.thinking.max_tokens != NO_LIMIT:
        fields["thinking_token_budget"] = sampling.thinking.max_tokens
    return fields


def _structured_outputs(grammar: Grammar) -> Json:
    asked = _asked(grammar)
    return {**asked, "disable_any_whitespace": True} if grammar.is_compact else asked


def _asked(grammar: Grammar) -> Json:
    match grammar.kind:
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            return {"json": msgspec.json.decode(grammar.source)}
        case "choice":
            return {"choice": msgspec.json.decode(grammar.source)}
        case "regex":
            return {"regex": grammar.source}
        case "ebnf":
            return {"grammar": grammar.source}
        case "structural_tag":
            return {"structural_tag": grammar.source}
