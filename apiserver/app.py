"""build_app(services): the routes under Starlette's router, inside one middleware. Endpoints are raw ASGI."""

from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from apiserver.errors import MethodNotAllowed, NotFound
from apiserver.fleet_control import FleetControl
from apiserver.keyring import LIMIT_HEADERS
from apiserver.middleware import RequestMiddleware
from apiserver.openapi.document import document
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.chat import ChatCompletions
from apiserver.routes.chat_batch import ChatBatch
from apiserver.routes.chat_intake import ChatIntake
from apiserver.routes.completions import Completions
from apiserver.routes.embeddings import Embeddings
from apiserver.routes.facts import ServerInfo, TokenizerInfo
from apiserver.routes.health import (
    Load,
    Metrics,
    ProbeRoute,
    Version,
    has_started,
    installed_version,
    is_live,
    is_ready,
)
from apiserver.routes.inference import Generate
from apiserver.routes.invocations import Invocations
from apiserver.routes.messages import CountTokens, Messages
from apiserver.routes.models import Models
from apiserver.routes.operator import AbortRequests, ResetPrefixCache, StartProfile, StopProfile
from apiserver.routes.pages import OpenApi, StaticPage
from apiserver.routes.render import RenderChat, RenderCompletion
from apiserver.routes.responses import CancelResponse, Responses, StoredResponses
from apiserver.routes.sleep import Do, Is, Pause, Sleep, WakeUp
from apiserver.routes.tokenize import Detokenize, Tokenize
from apiserver.services import Services
from apiserver.stack_sampler import StackSampler
from ipc.messages import Action


def build_app(services: Services) -> ASGIApp:
    routes = routes_of(services)
    server = services.settings.server
    app: ASGIApp = RequestMiddleware(
        _Router(routes),
        metrics=services.metrics,
        keyring=services.keyring,
        paths=frozenset(route.path for route in routes),
        tracer=services.tracer,
    )
    if server.allowed_origins:  # outermost: browsers must be able to read errors too
        app = CORSMiddleware(
            app,
            allow_origins=server.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *LIMIT_HEADERS],
        )
    return app


def routes_of(services: Services) -> list[Route]:
    """Each is described in apiserver.openapi.operations."""
    prompts = PromptEncoder(services.preloaded.tokenizer, services.model.max_model_len)
    intake = ChatIntake(services, prompts)
    chats, completions = ChatCompletions(services, intake), Completions(services, prompts)
    embeddings, models = Embeddings(services, prompts), Models(services)
    ready = ProbeRoute(services, is_ready)
    routes: list[Route] = []
    has_keys = bool(services.keyring)
    describe = partial(document, routes, title="tokenfleet", version=installed_version(), has_keys=has_keys)
    routes += [
        Route("/v1/chat/completions", chats, methods=["POST"]),
        Route("/v1/chat/completions/batch", ChatBatch(services, intake), methods=["POST"]),
        Route("/v1/chat/completions/render", RenderChat(services, intake), methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/completions/render", RenderCompletion(services, prompts), methods=["POST"]),
        Route("/v1/messages", Messages(services, intake), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokens(services, intake), methods=["POST"]),
        Route("/v1/responses", Responses(services, intake), methods=["POST"]),
        Route("/v1/responses/{response_id}", StoredResponses(services), methods=["GET", "DELETE"]),
        Route("/v1/responses/{response_id}/cancel", CancelResponse(services), methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route(
            "/invocations",
            Invocations(services, {"messages": chats, "prompt": completions, "input": embeddings}),
            methods=["POST"],
        ),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", models, methods=["GET"]),
        Route("/inference/v1/generate", Generate(services), methods=["POST"]),
        Route("/tokenize", Tokenize(services, prompts, intake), methods=["POST"]),
        Route("/detokenize", Detokenize(services, prompts), methods=["POST"]),
        Route("/health", ready, methods=["GET"]),
        Route("/ping", ready, methods=["GET", "POST"]),
        Route("/livez", ProbeRoute(services, is_live), methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/startupz", ProbeRoute(services, has_started), methods=["GET"]),
        Route("/version", Version(), methods=["GET"]),
        Route("/load", Load(services), methods=["GET"]),
        Route("/metrics", Metrics(services), methods=["GET"]),
        Route("/openapi.json", OpenApi(describe), methods=["GET"]),
        Route("/docs", StaticPage("docs.html"), methods=["GET"]),
    ]
    routes += _optional_routes(services)
    return routes


def _optional_routes(services: Services) -> list[Route]:
    """What has to be switched on, or can be switched off."""
    settings, routes = services.settings, list[Route]()
    server, profiler_dir = settings.server, settings.engine.torch_profiler_dir
    sampler = StackSampler(Path(profiler_dir), services.slot) if profiler_dir is not None else None
    control = FleetControl(services.client, sampler)
    if server.server_dev_mode:
        routes += [
            Route("/abort_requests", AbortRequests(control, takes_all=True), methods=["POST"]),
            Route("/inference/v1/abort_requests", AbortRequests(control, takes_all=False), methods=["POST"]),
            Route("/reset_prefix_cache", ResetPrefixCache(control), methods=["POST"]),
            Route("/server_info", ServerInfo(services), methods=["GET"]),
        ]
    if server.server_dev_mode and settings.engine.engine == "vllm":
        routes += [
            Route("/sleep", Sleep(control), methods=["POST"]),
            Route("/wake_up", WakeUp(control), methods=["POST"]),
            Route("/is_sleeping", Is(control, Action.IS_SLEEPING), methods=["GET"]),
            Route("/pause", Pause(control), methods=["POST"]),
            Route("/resume", Do(control, Action.RESUME, "resumed"), methods=["POST"]),
            Route("/is_paused", Is(control, Action.IS_PAUSED), methods=["GET"]),
            Route(
                "/release_kv_cache_memory", Do(control, Action.RELEASE_KV_CACHE, "kv_cache_released"), methods=["POST"]
            ),
        ]
    if profiler_dir is not None:
        routes += [
            Route("/start_profile", StartProfile(control), methods=["POST"]),
            Route("/stop_profile", StopProfile(control), methods=["POST"]),
        ]
    if server.enable_tokenizer_info_endpoint:
        routes.append(Route("/tokenizer_info", TokenizerInfo(services), methods=["GET"]))
    if server.ui:
        routes.append(Route("/", StaticPage("chat.html"), methods=["GET"]))
    return routes


class _Router:
    """Starlette's application, less what would stand between an ApiError and the middleware outside. A path without
    parameters is looked up first: Starlette tries its routes one by one, which costs as much as parsing the body."""

    def __init__(self, routes: list[Route]) -> None:
        all_routes: list[BaseRoute] = [*routes]
        self._router = Starlette(routes=all_routes).router
        self._router.redirect_slashes = False
        self._endpoints: dict[tuple[str, str], ASGIApp] = {
            (method, route.path): route.endpoint
            for route in routes
            if not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        scope["app"] = self  # makes Starlette raise HTTPException for 404 and 405 instead of answering in plain text
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            if error.status_code == 405:
                allowed = (error.headers or {}).get("Allow", "")
                raise MethodNotAllowed(f"Not allowed to {scope['method']} on {scope['path']}", allowed) from None
            raise NotFound(f"Invalid URL ({scope['method']} {scope['path']})") from None
