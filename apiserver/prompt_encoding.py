"""Prompts become token ids without stalling the other streams of their worker.

A short text is encoded at once: handing it to the thread costs about 35 us of CPU, and the loop stands still for some two
milliseconds at the very worst. More than that goes to one thread of the worker, in order; the tokenizers give up the GIL
while they work, so the loop goes on serving. A text that cannot fit the context is refused before any of it is encoded.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from apiserver.errors import ContextTooLong
from apiserver.tokenizer import Tokenizer

INLINE_CHARS = 8192  # 0.1 us per character for prose never seen before, 0.25 us for noise
INLINE_IDS = 8192

T = TypeVar("T")


class PromptEncoder:
    """The tokenizer as the routes of one worker use it. Its thread starts with the first long text."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer, self._max_model_len = tokenizer, max_model_len
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool, bounded_field: str | None) -> list[bytes]:
        """Per text its ids, little-endian u32.

        `bounded_field` names the request's field whose texts must fit the context: ContextTooLong where one surely does
        not. None: any length.
        """
        if bounded_field is not None:
            for text in texts:
                self._check_length(text, bounded_field)
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)
        return await self._in_thread(lambda: self._tokenizer.encode(texts, add_special_tokens=add_special_tokens))

    async def decode(self, ids: Sequence[int]) -> str:
        if len(ids) <= INLINE_IDS:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        return await self._in_thread(lambda: self._tokenizer.decode(ids, skip_special_tokens=False))

    def _check_length(self, text: str, field: str) -> None:
        max_chars = self._tokenizer.max_chars_per_token
        if max_chars is not None and len(text) > max_chars * self._max_model_len:
            raise ContextTooLong(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your {field} resulted "
                f"in at least {-(-len(text) // max_chars)} tokens. Please reduce the length of the {field}.",
                param=field,
            )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
