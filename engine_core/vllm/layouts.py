"""vLLM's messages by version: which field stands at which position. Data, taken from `vllm/v1/engine/__init__.py` of each.

Its structs travel as MessagePack arrays, fields by position; those behind the last one that is sent or read may be left out.
A version that is not here is refused: a field that moved would be taken for another without a word.
"""

import re
from dataclasses import dataclass

_REQUEST_0_24 = (
    "request_id", "prompt_token_ids", "mm_features", "sampling_params", "pooling_params", "arrival_time", "lora_request",
    "cache_salt", "data_parallel_rank", "prompt_embeds", "prompt_is_token_ids", "client_index", "current_wave", "priority",
    "trace_headers", "resumable", "external_req_id", "reasoning_ended", "reasoning_parser_kwargs", "abort_immediately",
)  # fmt: skip
_OUTPUT_0_24 = (
    "request_id", "new_token_ids", "new_logprobs", "new_prompt_logprobs_tensors", "pooling_output", "finish_reason",
    "stop_reason", "events", "kv_transfer_params", "trace_headers", "prefill_stats", "routed_experts", "num_nans_in_logits",
)  # fmt: skip
_OUTPUTS_0_24 = (
    "engine_index", "outputs", "scheduler_stats", "timestamp", "utility_output", "finished_requests", "wave_complete",
    "start_wave",
)  # fmt: skip
_REQUEST_0_32 = (*_REQUEST_0_24, "session_id", "kv_hints")
_OUTPUT_0_32 = (
    "request_id", "new_token_ids", "new_logprobs", "new_prompt_logprobs_tensors", "pooling_output", "finish_reason",
    "stop_reason", "events", "kv_transfer_params", "ec_transfer_params", "trace_headers", "prefill_stats", "routed_experts",
    "num_nans_in_logits", "mm_cache_miss_hashes", "new_sampling_mask", "spec_decode_metrics", "prompt_token_id_logprobs",
)  # fmt: skip
_OUTPUTS_0_32 = (*_OUTPUTS_0_24, "weight_version")
_OUTPUT_0_33 = (*_OUTPUT_0_32, "error", "allowed_token_ids")


@dataclass(frozen=True, slots=True)
class Layout:
    """Field names by position, and in what the engine core's methods differ."""

    request: tuple[str, ...]  # EngineCoreRequest
    output: tuple[str, ...]  # EngineCoreOutput
    outputs: tuple[str, ...]  # EngineCoreOutputs
    profile_counts_steps: bool = True  # `profile` takes how many to wait for and how many to trace
    wake_up_says_whether: bool = True  # it returns whether the engine core is awake again, else nothing


LAYOUTS = {
    "0.24": Layout(_REQUEST_0_24, _OUTPUT_0_24, _OUTPUTS_0_24, profile_counts_steps=False, wake_up_says_whether=False),
    "0.32": Layout(_REQUEST_0_32, _OUTPUT_0_32, _OUTPUTS_0_32),
    "0.33": Layout(_REQUEST_0_32, _OUTPUT_0_33, _OUTPUTS_0_32),
}


class UnknownVersion(Exception):
    """One line for the operator."""


def layout_of(version: str, forced: str | None = None) -> Layout:
    """That of an engine which says it is this version of vLLM, or of the one that the operator says to take instead. Raises
    UnknownVersion."""
    wanted = forced or version
    found = re.match(r"(\d+)\.(\d+)", wanted)
    layout = LAYOUTS.get(f"{found[1]}.{found[2]}") if found else None
    if layout is None:
        *others, last = LAYOUTS
        raise UnknownVersion(
            f"vLLM {wanted} is not known: its messages may have another layout than those of {', '.join(others)} and {last}; "
            "--vllm-version takes the layout of one of these"
        )
    return layout
