"""POST /tokenize and /detokenize, in vLLM's shapes."""

import asyncio
from array import array

import msgspec
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body, send_json
from apiserver.errors import InvalidRequest
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.chat_intake import ChatIntake
from apiserver.routes.generate import check_model
from apiserver.schema.requests import TokenizeRequest, decode_detokenize, decode_tokenize
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import check_token_ids
from apiserver.services import Services

IDS_AT_ONCE = 4096  # between two turns of the loop; 1.4 ms


class Tokenize:
    """The text may be longer than the context: clients ask in order to cut it."""

    def __init__(self, services: Services, prompts: PromptEncoder, intake: ChatIntake) -> None:
        self._services, self._prompts, self._intake = services, prompts, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_tokenize(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        refuse_unsupported(request)
        text, add_special_tokens = await self._text(request)
        encoded = await self._prompts.encode([text], add_special_tokens=add_special_tokens, bounded_field=None)
        ids = array("I", encoded[0])
        tokens: list[bytes] = []
        strings: list[bytes] = []
        for start in range(0, len(ids), IDS_AT_ONCE):
            piece = ids[start : start + IDS_AT_ONCE].tolist()
            tokens.append(msgspec.json.encode(piece)[1:-1])
            if request.return_token_strs:
                strings.append(
                    msgspec.json.encode([services.preloaded.tokenizer.id_to_token(id_) for id_ in piece])[1:-1]
                )
            if len(ids) > IDS_AT_ONCE:
                await asyncio.sleep(0)  # the other streams of this worker
        await send_json(
            send,
            {
                "count": len(ids),
                "max_model_len": services.model.max_model_len,
                "tokens": _array_of(tokens),
                "token_strs": _array_of(strings) if request.return_token_strs else None,
            },
        )

    async def _text(self, request: TokenizeRequest) -> tuple[str, bool]:
        """The text, and whether special tokens are added: unless the request says, to a prompt only."""
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if request.prompt is not None:
            if request.chat_template is not None:
                raise InvalidRequest("chat_template goes with messages, not with a prompt", param="chat_template")
            return request.prompt, request.add_special_tokens is not False
        return await self._intake.text_of(request), bool(request.add_special_tokens)


def _array_of(pieces: list[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(pieces) + b"]")


class Detokenize:
    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_detokenize(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        check_token_ids("tokens", request.tokens, services.model.vocab_size)
        await send_json(send, {"prompt": await self._prompts.decode(request.tokens)})
