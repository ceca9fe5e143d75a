"""Outputs held to a grammar: compiled beside the step loop, then one mask of the vocabulary per token. No torch.

A compiled grammar is kept and copied for each sequence that asks for it (7 us). The tokenizer is read with the first one.
"""

import logging
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from ipc.grammar import Grammar, llguidance_source

logger = logging.getLogger(__name__)

MAX_ITEMS_IN_ROW = 8000  # four of them an optional property of an object; the mask of so many takes some 40 ms
MAX_COMPILED = 256  # some 100 KB each
MAX_COMPILED_CHARS = 4 << 20  # of all their sources
Bits = NDArray[np.bool_]


class GrammarError(Exception):
    """One line for the client: this grammar cannot be compiled for this model."""


class Matcher:
    """Where one sequence stands in its grammar. Follows the sequence's known tokens when it is asked for a mask, so that a
    sequence may be preempted, resumed or computed again without a word to it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._matcher, self.vocab_size, self._eos_token_ids = matcher, vocab_size, list(eos_token_ids)
        self._words = np.zeros(-(-vocab_size // 32), np.int32)
        self._num_consumed = 0

    def allowed(self, output_ids: NDArray[np.int32]) -> Bits:
        """(vocab_size,) what may follow this output, all of it. Nothing, when the output has left the grammar."""
        if not self.is_complete:
            self._matcher.consume_tokens(output_ids[self._num_consumed :].tolist())
            self._num_consumed = len(output_ids)
        if self.is_complete:
            bits = np.zeros(self.vocab_size, np.bool_)
            bits[self._eos_token_ids] = not self._matcher.is_error()
            return bits
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        return np.unpackbits(self._words.view(np.uint8), count=self.vocab_size, bitorder="little").view(np.bool_)

    @property
    def is_complete(self) -> bool:
        """Nothing but the end may follow what was last looked at."""
        return self._matcher.is_stopped()


class GrammarCompiler:
    """All grammars of one engine."""

    def __init__(self, tokenizer_path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer_path, self._vocab_size, self._eos_token_ids = tokenizer_path, vocab_size, eos_token_ids
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._tokenizer: LLTokenizer | None = None  # the thread's
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._num_chars = 0

    def compile(self, grammar: Grammar) -> "Future[LLMatcher]":
        """Done at once when it was compiled before. Its result is the original: see `matcher_of`."""
        future = self._compiled.get(grammar)
        if future is None:
            future = self._compiled[grammar] = self._executor.submit(self._compile, grammar)
            self._num_chars += len(grammar.source)
            self._forget_oldest()
        else:
            self._compiled.move_to_end(grammar)
        return future

    def _forget_oldest(self) -> None:
        while len(self._compiled) > MAX_COMPILED or self._num_chars > MAX_COMPILED_CHARS:
            oldest, _ = self._compiled.popitem(last=False)
            self._num_chars -= len(oldest.source)

    def matcher_of(self, compiled: "Future[LLMatcher]") -> Matcher:
        """A new one at the start of its grammar. The future is done. Raises GrammarError."""
        try:
            return Matcher(compiled.result().deep_copy(), self._vocab_size, self._eos_token_ids)
        except GrammarError:
            raise
        except Exception as error:
            logger.exception("a grammar did not compile")
            raise GrammarError(f"the grammar did not compile: {type(error).__name__}") from None

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._tokenizer is None:
            eos = list(self._eos_token_ids) or None
            self._tokenizer = LLTokenizer(str(self._tokenizer_path), n_vocab=self._vocab_size, eos_token=eos)
        limits = LLParserLimits(max_items_in_row=MAX_ITEMS_IN_ROW)
        matcher = LLMatcher(self._tokenizer, llguidance_source(grammar), log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(" ".join(matcher.get_error().split()))
        return matcher
