"""The facts of a Hugging Face model folder that every role needs, read once and cross-checked.

Weights are not opened here. A folder that cannot be served raises `ModelFolderError` with one line that says what is
wrong and what to do.
"""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from config.settings import ModelSettings


class ModelFolderError(Exception):
    """The folder cannot be served; the message is one line for the operator."""


class SamplingDefaults(Struct, frozen=True):
    """From generation_config.json, as vLLM's `--generation-config auto`: what a request that is silent gets."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_new_tokens: int | None = None


class ModelFolder(Struct, frozen=True):
    """One model as it lies on disk, with the operator's choices applied."""

    path: str
    architecture: str  # first entry of config.json's architectures
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[
        int, ...
    ]  # the tokenizer's first, as in vLLM, then those of generation_config.json or config.json
    bos_token_id: int | None
    served_names: tuple[str, ...]
    chat_template: str | None
    sampling_defaults: SamplingDefaults
    hf_config: dict[str, Any]  # Any: config.json as it is; only engine_core.models reads more of it
    special_tokens: dict[str, str] = {}  # bos_token, eos_token, … as tokenizer_config.json names them, for templates

    @property
    def name(self) -> str:
        return self.served_names[0]

    @property
    def tokenizer_path(self) -> Path:
        return Path(self.path) / "tokenizer.json"


def read_model_folder(path: Path, settings: ModelSettings, *, default_name: str | None = None) -> ModelFolder:
    """Read config.json, generation_config.json, tokenizer.json's presence and the chat template. Raises ModelFolderError."""
    if not path.is_dir():
        raise ModelFolderError(f"{path} is not a folder: give a Hugging Face model folder or a .gguf file")
    hf_config = _read_json(path / "config.json")
    generation = _read_json(path / "generation_config.json", required=False)
    special_tokens = _special_tokens(path)
    if not (path / "tokenizer.json").is_file():
        raise ModelFolderError(f"{path} has no tokenizer.json: convert the tokenizer to the fast format first")
    architectures = hf_config.get("architectures") or []
    if not architectures:
        raise ModelFolderError(f"{path / 'config.json'} names no architecture under 'architectures'")
    declared_len = int(hf_config.get("max_position_embeddings") or 2048)
    max_model_len = settings.max_model_len or declared_len
    if max_model_len > declared_len:
        raise ModelFolderError(
            f"--max-model-len {max_model_len} exceeds the {declared_len} positions {path.name} was trained for"
        )
    return ModelFolder(
        path=str(path),
        architecture=str(architectures[0]),
        vocab_size=int(hf_config["vocab_size"]),
        max_model_len=max_model_len,
        eos_token_ids=_eos_token_ids(path, special_tokens, generation, hf_config),
        bos_token_id=next(iter(_token_ids(hf_config.get("bos_token_id"))), None),
        served_names=settings.served_model_name or (default_name or path.resolve().name,),
        chat_template=_chat_template(path, settings),
        special_tokens=special_tokens,
        sampling_defaults=msgspec.convert(
            {k: v for k, v in generation.items() if k in SamplingDefaults.__struct_fields__}, SamplingDefaults
        ),
        hf_config=hf_config,
    )


def _read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise ModelFolderError(f"{path.parent} has no {path.name}: is it a Hugging Face model folder?") from None
        return {}
    except msgspec.DecodeError as error:
        raise ModelFolderError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} does not hold a JSON object")
    return content


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


class _AddedToken(Struct):
    id: int
    content: str


class _AddedTokens(Struct):
    """Of a tokenizer.json, which is read whole elsewhere."""

    added_tokens: list[_AddedToken] = []


def _eos_token_ids(
    path: Path,
    special_tokens: dict[str, str],
    generation: dict[str, Any],  # Any: JSON
    hf_config: dict[str, Any],
) -> tuple[int, ...]:
    """Where they differ, a fine-tune's tokenizer knows what its answers end with, and config.json what its base's did."""
    declared = _token_ids(generation.get("eos_token_id", hf_config.get("eos_token_id")))
    try:
        tokenizer = msgspec.json.decode((path / "tokenizer.json").read_bytes(), type=_AddedTokens)
    except msgspec.MsgspecError:  # whoever reads it whole says what is wrong with it
        return declared
    text = special_tokens.get("eos_token")
    return tuple(dict.fromkeys((*(t.id for t in tokenizer.added_tokens if t.content == text), *declared)))


def _special_tokens(path: Path) -> dict[str, str]:
    """Text of every special token that has a role; entries may be text or an object with `content`."""
    named = {}
    for name, value in _read_json(path / "tokenizer_config.json", required=False).items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            named[name] = content
    return named


def _chat_template(path: Path, settings: ModelSettings) -> str | None:
    """The operator's file, else chat_template.jinja, else the template inside tokenizer_config.json."""
    if settings.chat_template is not None:
        try:
            return Path(settings.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelFolderError(f"--chat-template {settings.chat_template}: {error.strerror}") from None
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(path / "tokenizer_config.json", required=False).get("chat_template")
    if isinstance(template, list):  # several named templates: the default one serves chats
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template
