"""Prompt lookup (Saxena 2023): what followed the last tokens of a sequence earlier in it may follow them again. No torch."""

import numpy as np

from config.speculative import SpeculativeConfig
from engine_core.plan import Int32Array

MAX_LOOKBACK = 1 << 16  # tokens: bounds the cost of one lookup to some tens of microseconds


class NgramProposer:
    """Looks for the longest of the n-grams that a sequence ends with."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self.max_tokens = config.num_speculative_tokens
        self._min_ngram, self._max_ngram = config.prompt_lookup_min, config.prompt_lookup_max

    def propose(self, token_ids: Int32Array) -> Int32Array:
        """`max_tokens` ids at most, maybe none. Of several places the last one with that many tokens behind it, or else the
        first. One vectorised pass over the tokens per length of n-gram, each over fewer places than the one before."""
        tokens = token_ids[-MAX_LOOKBACK:]
        end = len(tokens) - 1
        ends = np.flatnonzero(tokens[:end] == tokens[end:])  # where an earlier n-gram may end
        found = ends[:0]
        for length in range(1, self._max_ngram + 1):
            if length >= self._min_ngram:
                found = ends
            ends = ends[ends >= length]
            ends = ends[tokens[ends - length] == tokens[end - length]] if len(ends) else ends
            if not len(ends):
                break
        if not len(found):
            return tokens[:0]
        whole = found[found + self.max_tokens <= end]
        start = int(whole[-1] if len(whole) else found[0]) + 1
        return tokens[start : start + self.max_tokens]
