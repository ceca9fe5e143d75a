"""POST /tokenize and /detokenize, in vLLM's shapes."""

from array import array

from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body, send_json
from apiserver.errors import InvalidRequest
from apiserver.prompt_encoding import encode_prompt
from apiserver.routes.chat import render_chat
from apiserver.routes.generate import check_model
from apiserver.schema.requests import TokenizeRequest, decode_detokenize, decode_tokenize
from apiserver.services import Services


class Tokenize:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_tokenize(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        text, add_special_tokens = self._text(request)
        tokenizer = services.preloaded.tokenizer
        ids = array("I", await encode_prompt(tokenizer, text, add_special_tokens=add_special_tokens)).tolist()
        strings = [tokenizer.token_of(number) for number in ids] if request.return_token_strs else None
        await send_json(
            send,
            {"count": len(ids), "max_model_len": services.model.max_model_len, "tokens": ids, "token_strs": strings},
        )

    def _text(self, request: TokenizeRequest) -> tuple[str, bool]:
        """The text, and whether special tokens are added unless the request says."""
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if request.prompt is not None:
            return request.prompt, request.add_special_tokens is not False
        return render_chat(request, self._services), bool(request.add_special_tokens)


class Detokenize:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_detokenize(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        vocab_size = services.model.vocab_size
        for number in request.tokens:
            if not 0 <= number < vocab_size:
                raise InvalidRequest(f"tokens: {number} is not a token id (vocabulary of {vocab_size})", param="tokens")
        text = services.preloaded.tokenizer.decode(request.tokens, skip_special_tokens=False)
        await send_json(send, {"prompt": text})
