"""A request's own rules as 32-bit words, for kernels to read: see engine_core.device_rules. No torch.

place  words  what
    0      1  whether there are penalties
    1      3  presence, frequency and repetition penalty, float32
    4      1  min_tokens
    5      1  whether the request is restricted to allowed tokens
    6      4  numbers of biases, of stop ids (0 without min_tokens), of bad words and of tokens asked for
   16     64  the last tokens of the output: its token n stands at n % 64
   80      -  bias ids and their float32 values, stop ids, places of the bad words, tokens whose log-probabilities are
              asked for, then the bad words: each its length and its tokens
"""

import numpy as np
from numpy.typing import NDArray

from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array, Rows

RECORD_WORDS = 4096
HAS_PENALTIES, PRESENCE, FREQUENCY, REPETITION = 0, 1, 2, 3
MIN_TOKENS, IS_RESTRICTED = 4, 5
NUM_BIASES, NUM_STOPS, NUM_WORDS, NUM_ASKED = 6, 7, 8, 9
RING, RING_TOKENS = 16, 64
ENTRIES = RING + RING_TOKENS


def record_of_or_none(state: BatchState, row: int) -> Int32Array | None:
    """Of the row's occupant, (at most RECORD_WORDS,); None when it does not fit."""
    biases = dict(state.logit_bias[row])
    values = np.array(list(biases.values()), np.float32).view(np.int32)
    stops = state.put_off_ids[row] if state.min_tokens[row] > 0 else ()
    words, asked = state.bad_words[row], state.logprob_token_ids[row]
    first_word = ENTRIES + 2 * len(biases) + len(stops) + len(words) + len(asked)
    places = (first_word + np.cumsum([0, *(len(word) + 1 for word in words)])).tolist()
    if places[-1] > RECORD_WORDS or max(map(len, words), default=0) > RING_TOKENS + 1:
        return None
    record: Int32Array = np.zeros(places[-1], np.int32)
    penalties = (state.presence_penalty[row], state.frequency_penalty[row], state.repetition_penalty[row])
    record[HAS_PENALTIES] = penalties != (0.0, 0.0, 1.0)
    record.view(np.float32)[PRESENCE : REPETITION + 1] = penalties
    record[MIN_TOKENS], record[IS_RESTRICTED] = state.min_tokens[row], state.is_restricted[row]
    record[NUM_BIASES : NUM_ASKED + 1] = len(biases), len(stops), len(words), len(asked)
    output = state.output_ids(row)
    numbers = np.arange(max(0, len(output) - RING_TOKENS), len(output))
    record[RING + numbers % RING_TOKENS] = output[numbers]
    entries = (list(biases), values, stops, places[:-1], asked)
    record[ENTRIES:first_word] = np.concatenate([np.asarray(part, np.int32) for part in entries])
    for place, word in zip(places, words, strict=False):
        record[place : place + len(word) + 1] = (len(word), *word)
    return record


def has_rules(state: BatchState, rows: Rows) -> NDArray[np.bool_]:
    """(m,) whether these rows' occupants have rules of their own."""
    has_bias = np.array([bool(state.logit_bias[row]) for row in rows.tolist()], np.bool_)
    return np.asarray(
        has_bias
        | (state.presence_penalty[rows] != 0.0)
        | (state.frequency_penalty[rows] != 0.0)
        | (state.repetition_penalty[rows] != 1.0)
        | (state.min_tokens[rows] > 0)
        | state.is_restricted[rows]
        | state.has_bad_words[rows]
    )
