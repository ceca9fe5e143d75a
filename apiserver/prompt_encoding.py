"""Tokenizing a prompt without stalling the other streams of its worker.

A short text is encoded at once: handing it to a thread costs more than the encoding. A long one goes to a thread; the Rust
tokenizers give up the GIL while they work, so the loop goes on serving.
"""

import asyncio

from apiserver.tokenizer import Tokenizer

INLINE_CHARS = 65_536  # about 16k tokens, some milliseconds at worst


async def encode_prompt(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> bytes:
    """Little-endian u32 ids."""
    if len(text) <= INLINE_CHARS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
