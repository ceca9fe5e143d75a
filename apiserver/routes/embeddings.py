"""POST /v1/embeddings: a decoder's own hidden states (https://platform.openai.com/docs/api-reference/embeddings)."""

from functools import partial

from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.embedding import EmbeddingForm, embedding_body
from apiserver.errors import InvalidRequest
from apiserver.field_names import told_as
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.completions import encoded_prompts
from apiserver.routes.generate import answer, check_model, deadline_of, request_id_of
from apiserver.schema.embeddings import EmbeddingRequest, decode_embedding
from apiserver.schema.requests import CompletionRequest
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request
from apiserver.services import Services
from ipc.messages import Pooling

FIELDS = {"prompt": "input"}
COPIED = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "priority", "request_id", "cache_salt")


class Embeddings:
    """A request is a completion of one token that nobody looks at: the engine's answer is in what it computed on the way."""

    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_embedding(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        form = self._form(request)
        completion = CompletionRequest(
            prompt=request.input, max_tokens=1, temperature=0.0, **{name: getattr(request, name) for name in COPIED}
        )
        with told_as(FIELDS):
            request_id = request_id_of(completion, scope)
            generation = generation_request(
                completion,
                await encoded_prompts(completion, services, self._prompts),
                services.model,
                services.settings.server,
                request_id=request_id,
                deadline_s=deadline_of(scope),
            )
        pooling = Pooling[(request.pooling or services.settings.server.embedding_pooling).upper()]
        await answer(
            structs.replace(generation, pooling=pooling), services, scope, receive, send,
            response_id=f"embd-{request_id}", model=model, body=partial(embedding_body, form=form),
        )  # fmt: skip

    def _form(self, request: EmbeddingRequest) -> EmbeddingForm:
        hidden_size = self._services.model.hf_config.get("hidden_size")
        if request.dimensions is not None and not 1 <= request.dimensions <= (hidden_size or request.dimensions):
            raise InvalidRequest(f"dimensions must be between 1 and {hidden_size}", param="dimensions")
        return EmbeddingForm(
            dimensions=request.dimensions,
            is_normalized=request.use_activation is not False,
            is_base64=request.encoding_format == "base64",
        )
