"""The default model as a folder, for whatever runs before any fleet has started."""

from pathlib import Path

from config.settings import ModelSettings
from engine_core.gguf_conversion import convert
from engine_core.model_source import find_model


def embedded_model() -> Path:
    """The Hugging Face folder of the embedded model; converted at the first use on a machine."""
    source = find_model(ModelSettings())
    if not source.is_ready:
        convert(source, lambda _done, _total: None)
    return source.path
