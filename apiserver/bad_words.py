"""Words that an answer must not have, as runs of token ids: vLLM's `bad_words` (SamplingParams.update_from_tokenizer, 0.32).

A word is banned as it stands at the beginning of a text and, where that is another first token, behind a space.
"""

from array import array
from collections.abc import Sequence

from msgspec import structs

from apiserver.errors import InvalidRequest
from apiserver.generation import GenerationRequest
from apiserver.tokenizer import Tokenizer

MAX_BAD_WORDS = 128  # runs of tokens, as vLLM's VLLM_MAX_NUM_BAD_WORDS
MAX_BAD_WORD_CHARS = 1024  # of all words together


def without_bad_words(
    generation: GenerationRequest, words: Sequence[str] | None, tokenizer: Tokenizer
) -> GenerationRequest:
    """Raises InvalidRequest."""
    if not words:
        return generation
    sampling = structs.replace(generation.sampling, bad_words=_runs(words, tokenizer))
    return structs.replace(generation, sampling=sampling)


def _runs(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    if sum(map(len, words)) > MAX_BAD_WORD_CHARS:
        raise InvalidRequest(f"bad_words have more than {MAX_BAD_WORD_CHARS} characters", param="bad_words")
    bare = [word.lstrip() for word in dict.fromkeys(words)]
    if not all(bare):
        raise InvalidRequest("bad_words must not have an empty word", param="bad_words")
    runs: list[tuple[int, ...]] = []
    encoded = tokenizer.encode([form for word in bare for form in (word, " " + word)], add_special_tokens=False)
    ids = [tuple(array("I", entry).tolist()) for entry in encoded]
    for at_start, behind_space in zip(ids[::2], ids[1::2], strict=True):
        if not at_start:
            raise InvalidRequest("bad_words must have at least one token each", param="bad_words")
        runs.append(at_start)
        if behind_space and behind_space[0] != at_start[0] and len(behind_space) == len(at_start):
            runs.append(behind_space)
    if len(runs) > MAX_BAD_WORDS:
        raise InvalidRequest(f"bad_words are {len(runs)}, at most {MAX_BAD_WORDS} are taken", param="bad_words")
    return tuple(runs)
