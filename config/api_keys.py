"""The file of --api-key-file: named keys and what each may use. TOML, one table per key:

[team-a]
key = "sk-..."                  # or sha256 = "…", the key's SHA-256 in hex: then the file holds no secret
requests_per_minute = 600       # limits are optional, and hold over all workers together
tokens_per_minute = 100000      # of prompts and answers
max_concurrent_requests = 32
"""

import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

MAX_KEYS = 1024
_Limit = Annotated[int, Meta(ge=1, le=2**53)]
_Hex = Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]


class KeyFileError(ValueError):
    """The file cannot be used. One line, and never a key."""


class KeyLimits(Struct, frozen=True, kw_only=True):
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None


class ApiKey(Struct, frozen=True):
    """`digest` is the key's SHA-256: nothing keeps the key itself."""

    name: str
    digest: bytes
    limits: KeyLimits = KeyLimits()


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    key: Annotated[str, Meta(min_length=1)] | None = None
    sha256: _Hex | None = None
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_concurrent_requests: _Limit | None = None


def digest_of(key: bytes) -> bytes:
    return sha256(key).digest()


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """In the order of their names. Raises KeyFileError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError:  # its message may quote the line
        raise KeyFileError(f"{path} is not valid TOML") from None
    if not document:
        raise KeyFileError(f"{path} has no key: nobody could be served")
    if len(document) > MAX_KEYS:
        raise KeyFileError(f"{path} has {len(document)} keys, at most {MAX_KEYS} are taken")
    keys = tuple(_api_key(path, name, table) for name, table in sorted(document.items()))
    if len({key.digest for key in keys}) < len(keys):
        raise KeyFileError(f"{path} has the same key under two names")
    return keys


def _api_key(path: Path, name: str, table: Any) -> ApiKey:  # Any: what TOML has
    try:
        entry = msgspec.convert(table, _Entry)
    except msgspec.ValidationError as error:
        raise KeyFileError(f"{path}: [{name}] {str(error).replace('`', '')}") from None
    if (entry.key is None) == (entry.sha256 is None):
        raise KeyFileError(f"{path}: [{name}] needs either key or sha256")
    digest = digest_of(entry.key.encode()) if entry.key is not None else bytes.fromhex(entry.sha256 or "")
    limits = KeyLimits(
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        max_concurrent_requests=entry.max_concurrent_requests,
    )
    return ApiKey(name, digest, limits)
