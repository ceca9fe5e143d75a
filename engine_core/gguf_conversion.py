"""A GGUF file becomes a Hugging Face model folder, once: weights in bf16, tokenizer.json, chat template, config.json.

After it every role sees one kind of model. Runs in a process of its own (`ops`), without torch: numpy dequantizes
tensor by tensor, so memory stays near the largest one. The folder is written beside its final place and renamed: a
reader finds all of it or nothing, and of two converters the last one wins. While it is written its converter holds a lock in
it: what a killed one has left, as large as the model, is told by that and removed before the next conversion.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. safetensors: https://huggingface.co/docs/safetensors.
"""

import fcntl
import json
import logging
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

from config.model_folder import ModelFolderError
from engine_core.gguf_tokenizer import build_tokenizer
from engine_core.model_source import STAMP_FILE, ModelSource, stamp_of

logger = logging.getLogger(__name__)

LOCK_FILE = "converting.lock"
UNLOCKED_FOR_S = 10.0  # no longer, by far, is a folder before it has its lock
LOCKLESS_FOR_S = 3600.0  # without a lock file at all: about to be renamed, or of a converter that knew none

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture is called elsewhere, and how llama.cpp stored it."""

    hf_name: str
    model_type: str
    has_permuted_qk: bool  # llama.cpp interleaves the rotary halves of q and k rows


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", has_permuted_qk=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", has_permuted_qk=False),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", has_permuted_qk=False),
}

OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: ModelSource, progress: Progress) -> None:
    """Convert `source.gguf` into `source.path`. Raises ModelFolderError with one line for the operator."""
    assert source.gguf is not None
    reader = _open(source.gguf)
    metadata = Metadata(reader, source.gguf)
    source.path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(source.path)
    folder = Path(tempfile.mkdtemp(prefix=_half_made_prefix(source.path), dir=source.path.parent))
    try:
        with _locked(folder):
            stamp = stamp_of(source.gguf)
            has_lm_head = any(tensor.name == "output.weight" for tensor in reader.tensors)
            _write_descriptions(folder, metadata, has_lm_head=has_lm_head)
            _write_weights(folder / "model.safetensors", reader.tensors, metadata, progress)
            _write_json(folder / STAMP_FILE, stamp)
            (folder / LOCK_FILE).unlink()
            _replace(folder, source.path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _half_made_prefix(target: Path) -> str:
    return f".{target.name}-"


def _locked(folder: Path) -> IO[bytes]:
    """Held until it is closed, or this process ends, however. Where the file system has no locks nothing will be removed."""
    lock = (folder / LOCK_FILE).open("wb")
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _sweep(target: Path) -> None:
    """Remove what killed conversions into `target` have left."""
    for folder in target.parent.iterdir():
        if folder.name.startswith(_half_made_prefix(target)) and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("what a killed conversion had left is removed", extra={"folder": str(folder)})


def _is_abandoned(folder: Path) -> bool:
    """Nobody holds its lock, and nobody has just made it. False also when it is not ours to look at, or gone."""
    try:
        rested_s = time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        if not (folder / LOCK_FILE).exists():
            return rested_s > LOCKLESS_FOR_S
        with (folder / LOCK_FILE).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its converter lives
    except OSError:
        return False
    return rested_s > UNLOCKED_FOR_S


class Metadata:
    """The key-value part of a GGUF, with the architecture's prefix supplied."""

    def __init__(self, reader: GGUFReader, path: Path) -> None:
        self._reader, self.path = reader, path
        name = str(self.get("general.architecture"))
        if name not in ARCHITECTURES:
            raise ModelFolderError(
                f"{path.name} holds architecture '{name}'; supported from GGUF: {', '.join(ARCHITECTURES)}"
            )
        self._prefix, self.architecture = name, ARCHITECTURES[name]

    def get(self, key: str, default: Any = None) -> Any:  # Any: GGUF values are of many types
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def of_model(self, key: str) -> Any:
        """Raises ModelFolderError when the file lacks it."""
        value = self.get(f"{self._prefix}.{key}")
        if value is None:
            raise ModelFolderError(f"{self.path.name} lacks the field {self._prefix}.{key}: is it complete?")
        return value

    @property
    def num_heads(self) -> int:
        return int(self.of_model("attention.head_count"))

    @property
    def num_kv_heads(self) -> int:
        return int(self.get(f"{self._prefix}.attention.head_count_kv", self.num_heads))

    @property
    def head_dim(self) -> int:
        return int(
            self.get(f"{self._prefix}.attention.key_length", int(self.of_model("embedding_length")) // self.num_heads)
        )

    def refuse_rope_scaling(self) -> None:
        kind = self.get(f"{self._prefix}.rope.scaling.type", "none")
        if kind != "none":
            raise ModelFolderError(f"{self.path.name} uses rope scaling '{kind}', which is not supported from GGUF")


def _open(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader parses unchecked: any exception means a file it cannot read
        raise ModelFolderError(
            f"{path} is not a whole GGUF file ({type(error).__name__}): was the download interrupted?"
        ) from None


def _write_descriptions(folder: Path, metadata: Metadata, *, has_lm_head: bool) -> None:
    """Everything but the weights."""
    metadata.refuse_rope_scaling()
    tokens = metadata.get("tokenizer.ggml.tokens")
    bos, eos = metadata.get("tokenizer.ggml.bos_token_id"), metadata.get("tokenizer.ggml.eos_token_id")
    eos_ids = sorted({i for i in (eos, metadata.get("tokenizer.ggml.eot_token_id")) if i is not None})
    _write_json(folder / "tokenizer.json", build_tokenizer(metadata.get, metadata.path.name))
    _write_json(
        folder / "config.json",
        {
            "architectures": [metadata.architecture.hf_name],
            "model_type": metadata.architecture.model_type,
            "vocab_size": len(tokens),
            "hidden_size": int(metadata.of_model("embedding_length")),
            "intermediate_size": int(metadata.of_model("feed_forward_length")),
            "num_hidden_layers": int(metadata.of_model("block_count")),
            "num_attention_heads": metadata.num_heads,
            "num_key_value_heads": metadata.num_kv_heads,
            "head_dim": metadata.head_dim,
            "max_position_embeddings": int(metadata.of_model("context_length")),
            "rms_norm_eps": _shortest(metadata.of_model("attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(metadata.of_model("rope.freq_base")),
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": not has_lm_head,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "bfloat16",
        },
    )
    _write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos_ids})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None if bos is None else tokens[bos],
            "eos_token": None if eos is None else tokens[eos],
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(metadata.of_model("context_length")),
        },
    )
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(path: Path, tensors: list[ReaderTensor], metadata: Metadata, progress: Progress) -> None:
    """One safetensors file: an 8-byte length, a JSON header with every tensor's place, then the bytes in that order."""
    names = [_hf_name(tensor.name, metadata.path.name) for tensor in tensors]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in zip(names, tensors, strict=True):
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(length) for length in reversed(tensor.shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for done, data in _bf16_tensors(tensors, metadata):
            file.write(data)
            progress(done, end)
        file.flush()
        os.fsync(file.fileno())


def _bf16_tensors(tensors: list[ReaderTensor], metadata: Metadata) -> Iterator[tuple[int, bytes]]:
    """Each tensor's bytes behind the number of bytes done with it."""
    done = 0
    for tensor in tensors:
        try:
            weight = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ModelFolderError(
                f"{metadata.path.name}: tensor {tensor.name} is quantized as {tensor.tensor_type.name}, "
                "which cannot be dequantized here; use another quantization of the model"
            ) from None
        if metadata.architecture.has_permuted_qk and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = metadata.num_heads if tensor.name.endswith("attn_q.weight") else metadata.num_kv_heads
            weight = _unpermuted(weight, heads)
        data = bf16_bytes(weight)
        done += len(data)
        yield done, data


def bf16_bytes(weight: NDArray[np.float32]) -> bytes:
    """Rounded to nearest even, little endian. Weights are finite."""
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def _unpermuted(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of each head from llama.cpp's interleaved order (0, h, 1, h + 1, …) back to halves (0, 1, …, h, …)."""
    rows, columns = weight.shape
    paired = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)


def _hf_name(name: str, file_name: str) -> str:
    if name in OUTER_TENSORS:
        return OUTER_TENSORS[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    if name.startswith("blk.") and part in LAYER_TENSORS and kind in ("weight", "bias"):
        return f"model.layers.{block}.{LAYER_TENSORS[part]}.{kind}"
    raise ModelFolderError(f"{file_name} holds the tensor {name}, which no supported architecture has")


def _shortest(value: float) -> float:
    """The number somebody once wrote: GGUF keeps float32, and 1e-5 would come back as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _replace(folder: Path, target: Path) -> None:
    """Put the finished folder in place of whatever is there. A reader that has the old files open keeps them."""
    folder.chmod(0o755)
    if target.exists():
        stale = Path(tempfile.mkdtemp(prefix=f".{target.name}-stale-", dir=target.parent))
        target.rename(stale / "old")
        folder.rename(target)
        shutil.rmtree(stale, ignore_errors=True)
    else:
        folder.rename(target)
