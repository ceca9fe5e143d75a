"""Chained hashes of KV blocks: equal hash means equal tokens at equal positions, all the way from the start.

Computed by the worker for the prompt, so that the engine's prefix lookup is a dictionary hit per block, and by the
engine for blocks that fill up while it generates. SHA-256 cut to 16 bytes: a collision would let one request read
another's KV, so a fast non-cryptographic hash is not enough. The salt starts the chain and separates runs or tenants.
"""

from functools import lru_cache
from hashlib import sha256

HASH_BYTES = 16


@lru_cache(maxsize=64)
def first_link(salt: bytes) -> bytes:
    """The parent of a sequence's first block."""
    return sha256(b"tokenfleet block hash" + salt).digest()[:HASH_BYTES]


def next_link(parent: bytes, block: bytes | memoryview) -> bytes:
    """Hash of one full block: `block` holds its token ids as little-endian u32."""
    return sha256(parent + block).digest()[:HASH_BYTES]


def chain(prompt: bytes | memoryview, block_size: int, salt: bytes = b"") -> bytes:
    """The links of every full block of a prompt (little-endian u32 ids), joined: 16 bytes each."""
    view = memoryview(prompt)
    block_bytes = 4 * block_size
    link = first_link(salt)
    links = []
    for start in range(0, len(view) - block_bytes + 1, block_bytes):
        link = next_link(link, view[start : start + block_bytes])
        links.append(link)
    return b"".join(links)
