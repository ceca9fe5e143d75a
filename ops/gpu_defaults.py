"""Defaults that depend on the GPU. Resolved before anything forks: workers hash prompts by the engine's block size."""

import msgspec

from config.load import Configuration
from engine_core.attention.choice import default_block_size
from engine_core.errors import CannotBoot
from engine_core.gpu_probe import compute_capability


def with_gpu_defaults(configuration: Configuration) -> Configuration:
    """The same configuration where no CUDA device computes, or the operator has chosen."""
    engine = configuration.settings.engine
    if engine.engine != "core" or engine.device == "cpu" or configuration.is_set("block_size"):
        return configuration
    capability = compute_capability()
    if capability is None:
        return configuration
    try:
        block_size = default_block_size(engine.attention_backend, capability)
    except CannotBoot:
        return configuration  # the engine says it again, with its exit code
    return Configuration(
        msgspec.structs.replace(configuration.settings, engine=msgspec.structs.replace(engine, block_size=block_size)),
        configuration.origins | {"block_size": "attention backend"},
    )
