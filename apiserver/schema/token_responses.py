"""Answers of POST /inference/v1/generate, whole and as events, in vLLM's shapes (0.33)."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from apiserver.collected_details import CollectedDetails
from apiserver.errors import ApiError
from apiserver.generation import CollectedChoice, Usage
from apiserver.logprobs import LOWEST, TokenTexts, chat_logprobs, prompt_logprobs
from apiserver.schema.responses import kv_transfer_params, running_usage, usage_object
from apiserver.token_choices import CollectedTokens
from ipc.record import Scored

Json = dict[str, Any]  # Any: JSON, as everywhere here

_encode = msgspec.json.encode
_CHOICE = dict.fromkeys(("routed_experts", "sampling_mask", "weight_versions"))
_BODY = dict.fromkeys(
    (
        "prompt_token_id_logprobs", "mm_placeholders", "metrics", "ec_transfer_params",
    )
)  # fmt: skip


class GenerateAnswers:
    """Of one request. Where the answer has text the logprobs are a chat's, else they are of ids; a prompt's have texts as in
    every answer."""

    done = b"data: [DONE]\n\n"

    def __init__(
        self, response_id: str, texts: TokenTexts, prompt_ids: list[int], *, has_text: bool, shows_prompt: bool = False
    ) -> None:
        self._texts, self._has_text, self._num_prompt_tokens = texts, has_text, len(prompt_ids)
        self._prompt_ids = prompt_ids if shows_prompt else None
        self._head: Json = {"request_id": response_id, "output_mode": "text" if has_text else "tokens"}
        self._is_begun = False

    def body(self, response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
        """apiserver.routes.generate.Body."""
        first = choices[0]
        return _encode(
            {
                **self._head,
                "model": model,
                "created": int(time.time()),
                "usage": usage_object(usage),
                "prompt_token_ids": self._prompt_ids,
                "choices": [self._collected(choice) for choice in choices],
                **_BODY,
                "prompt_logprobs": first.prompt_logprobs if isinstance(first, CollectedDetails) else None,
                "kv_transfer_params": kv_transfer_params(choices),
            }
        )

    def _collected(self, choice: CollectedChoice) -> Json:
        assert isinstance(choice, CollectedTokens)
        return self._choice(
            choice.index, choice.token_ids, choice.content, choice.logprobs, choice.finish_reason, choice.stop_reason
        )

    def tokens(
        self,
        index: int,
        ids: Sequence[int],
        text: str,
        scores: list[Scored],
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
        num_so_far: int | None = None,
    ) -> bytes:
        """apiserver.token_choices.TokenEvents."""
        logprobs = self.logprobs(scores) if scores else None
        choice = self._choice(index, ids, text, logprobs, finish_reason, stop_reason)
        usage = None if num_so_far is None else running_usage(self._num_prompt_tokens, num_so_far, None)
        event: Json = {**self._head, "usage": usage, "choices": [choice]}
        if not self._is_begun and self._prompt_ids is not None:
            event["prompt_token_ids"] = self._prompt_ids
        self._is_begun = True
        return _event(event)

    def _choice(
        self,
        index: int,
        ids: Sequence[int],
        text: str,
        logprobs: Json | None,
        finish_reason: str | None,
        stop_reason: str | int | None,
    ) -> Json:
        choice: Json = {
            "index": index,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": list(ids),
            "logprobs": logprobs,
            **_CHOICE,
        }
        return {**choice, "text": text} if self._has_text else choice

    def logprobs(self, scores: list[Scored], first: int | None = None) -> Json:
        """No prompt is echoed, whose `first` token it would be."""
        if self._has_text:
            return chat_logprobs(self._texts, scores)
        return {"content": [_id_logprobs(scored) for scored in scores]}

    def prompt_logprobs(self, scores: list[Scored]) -> list[Json | None]:
        return prompt_logprobs(self._texts, scores)

    def usage(self, usage: Usage) -> bytes:
        return _event({**self._head, "choices": [], "usage": usage_object(usage)})

    def failed(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"

    def opening(self, _index: int) -> bytes:
        return b""

    def delta(self, _index: int) -> tuple[bytes, bytes]:
        return b"", b""

    def scored(self, index: int, text: bytes, scores: list[Scored]) -> bytes:
        raise AssertionError("ids and their scores leave together")

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        return self.tokens(index, [], "", [], finish_reason, stop_reason)


def _id_logprobs(scored: Scored) -> Json:
    """The token drawn, and as in vLLM first itself and then the likeliest."""
    own = {"token_id": scored.token, "logprob": max(scored.logprob, LOWEST), "rank": scored.rank}
    others = [
        {"token_id": token, "logprob": max(logprob, LOWEST), "rank": rank}
        for rank, (token, logprob) in enumerate(zip(scored.ids, scored.logprobs, strict=True), 1)
        if token != scored.token
    ]
    return {**own, "top_logprobs": [own, *others][: max(len(scored.ids), 1)]}


def _event(content: Json) -> bytes:
    return b"data: " + _encode(content) + b"\n\n"
