"""vLLM 0.24 whose engine core speaks as one of 0.33: `python -m loadtests.gpu.newer_messages serve MODEL --headless ...`.

0.24.0 is the vLLM for torch 2.11, and the Rust front end of 0.33 costs a fraction of 0.24's. To compare with that one on a
machine that has this torch, outputs are put into the order of its messages, and what the engine core says of itself is
completed. What it computes, and when, stays 0.24's. Its own Python server does not understand it then.

What stands at the top level does so in the processes, too, that vLLM spawns.
"""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import vllm.v1.engine as messages  # type: ignore[import-not-found]  # is not installed where types are checked

from engine_core.vllm.layouts import LAYOUTS

VERSION = "0.33.0"
LAYOUT = LAYOUTS["0.33"]
NUMBERS = {"engine_index": 0, "timestamp": 0.0, "num_nans_in_logits": 0}  # the defaults that are not None


def _struct(name: str, fields: tuple[str, ...], methods: dict[str, Any]) -> type[msgspec.Struct]:  # Any: functions
    shown = [(field, Any, NUMBERS.get(field)) for field in fields]
    return msgspec.defstruct(name, shown, namespace=methods, array_like=True, omit_defaults=True, gc=False)


def _complete(outputs: Any) -> None:  # Any: EngineCoreOutputs
    outputs.timestamp = outputs.timestamp or time.monotonic()
    outputs.outputs = outputs.outputs or []


@dataclass
class EngineCoreReadyResponse(messages.EngineCoreReadyResponse):  # type: ignore[misc]  # see the import
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    data_parallel_rank: int = 0
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    instance_id: str = ""
    supports_lora: bool = False
    max_loras: int = 0
    mamba_block_size: int | None = None
    kv_events_config: None = None
    weight_transfer_backend: None = None
    enable_sleep_mode: bool = False
    supports_draft_weight_updates: bool = False
    effective_attention_block_size: int | None = None

    def __post_init__(self) -> None:
        self.vllm_version = VERSION


is_finished = property(lambda output: output.finish_reason is not None)
messages.EngineCoreOutput = _struct("EngineCoreOutput", LAYOUT.output, {"finished": is_finished})
messages.EngineCoreOutputs = _struct("EngineCoreOutputs", LAYOUT.outputs, {"__post_init__": _complete})
messages.EngineCoreReadyResponse = EngineCoreReadyResponse

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main  # type: ignore[import-not-found]

    main()
