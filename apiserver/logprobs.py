"""How likely the model held each token, as clients read it: the form of chats and the form of completions.

https://platform.openai.com/docs/api-reference/chat/object (choices.logprobs) and .../completions/object. As in vLLM the token
that ended a text is among them, and minus infinity, which JSON does not have, is -9999. `bytes` are the token's own bytes,
also where they are only part of a character and `token` shows a replacement character.
"""

from collections.abc import Sequence
from typing import Any

from apiserver.detokenizer import Decoder
from apiserver.token_table import TokenTable
from ipc.record import Scored

LOWEST = -9999.0
MAX_LOGPROBS = 20  # alternatives per token, as vLLM's --max-logprobs


class TokenTexts:
    """The text of a token standing alone."""

    def __init__(self, table: TokenTable | None, decoder: Decoder) -> None:
        self._pieces = table.pieces if table is not None else None
        self._decoder = decoder

    def bytes_of(self, token: int) -> bytes:
        if self._pieces is not None:
            return self._pieces[token] or b""
        return self._decoder.decode([token], skip_special_tokens=False).encode()

    def alternative_bytes_of(self, token: int) -> bytes:
        """`bytes` beside the name of one that was not drawn."""
        return self.bytes_of(token)

    def text_of(self, token: int) -> str:
        return self.bytes_of(token).decode(errors="replace")

    def name_of(self, token: int) -> str:
        """What stands for it in logprobs."""
        return self.text_of(token)


class TokenIds(TokenTexts):
    """Of clients that want to know which of several tokens of the same text it was."""

    def name_of(self, token: int) -> str:
        return f"token_id:{token}"

    def alternative_bytes_of(self, token: int) -> bytes:
        """As in vLLM those of the name."""
        return self.name_of(token).encode()


def chat_logprobs(texts: TokenTexts, scores: Sequence[Scored]) -> dict[str, Any]:  # Any: JSON
    return {
        "content": [
            {
                **_chat_entry(texts, scored.token, scored.logprob, texts.bytes_of(scored.token)),
                "top_logprobs": [
                    _chat_entry(texts, token, logprob, texts.alternative_bytes_of(token))
                    for token, logprob in _own_first(scored)
                ],
            }
            for scored in scores
        ]
    }


def completion_logprobs(
    texts: TokenTexts, scores: Sequence[Scored], offset: int, first: int | None = None
) -> tuple[dict[str, Any], int]:
    """`offset` is where the first token's text begins, in characters; returns where the next one's does too. A token's own
    logprob is among the alternatives even when it is not one of the likeliest. `first` is a prompt's first token, which
    has no score and stands before the others."""
    tokens, offsets = [], []
    if first is not None:
        tokens.append(texts.name_of(first))
        offsets.append(offset)
        offset += len(tokens[0])
    for scored in scores:
        name = texts.name_of(scored.token)
        tokens.append(name)
        offsets.append(offset)
        offset += len(name)
    unscored: list[None] = [None] * (first is not None)
    alternatives = [
        {texts.name_of(token): _finite(logprob) for token, logprob in _own_and_others(scored)} for scored in scores
    ]
    logprobs = {
        "text_offset": offsets,
        "token_logprobs": [*unscored, *(_finite(scored.logprob) for scored in scores)],
        "tokens": tokens,
        "top_logprobs": [*unscored, *alternatives],
    }
    return logprobs, offset


def prompt_logprobs(texts: TokenTexts, scores: Sequence[Scored]) -> list[dict[str, Any] | None]:
    """vLLM's form: a null for the first token, then by token id the token itself and the likeliest."""
    return [None, *(_prompt_entry(texts, scored) for scored in scores)]


def _prompt_entry(texts: TokenTexts, scored: Scored) -> dict[str, Any]:
    ranked = [(scored.token, scored.logprob, scored.rank)]
    ranked += zip(scored.ids, scored.logprobs, range(1, len(scored.ids) + 1), strict=True)
    return {
        str(token): {"logprob": _finite(logprob), "rank": rank, "decoded_token": texts.text_of(token)}
        for token, logprob, rank in ranked
    }


def _own_and_others(scored: Scored) -> list[tuple[int, float]]:
    return [(scored.token, scored.logprob), *zip(scored.ids, scored.logprobs, strict=True)]


def _own_first(scored: Scored) -> list[tuple[int, float]]:
    """As in vLLM the token itself is the first of as many as were asked for, also where it is not one of the likeliest."""
    pairs = list(zip(scored.ids, scored.logprobs, strict=True))
    if not pairs or pairs[0][0] == scored.token:
        return pairs
    others = [pair for pair in pairs if pair[0] != scored.token]
    return [(scored.token, scored.logprob), *others][: len(pairs)]


def _chat_entry(texts: TokenTexts, token: int, logprob: float, piece: bytes) -> dict[str, Any]:
    return {"token": texts.name_of(token), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
