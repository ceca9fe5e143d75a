"""Chat messages become the prompt text, by the model's own Jinja template, exactly as transformers renders it.

The template is code from a model folder, so it runs in Jinja's sandbox; a template that fails is the request's fault (400)
and nobody else's. Environment as in transformers' `apply_chat_template` (utils/chat_template_utils.py).
"""

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from apiserver.errors import InvalidRequest
from config.model_folder import ModelFolder, ModelFolderError

MAX_RENDERED_CHARS = 64 * 1024 * 1024


class ChatTemplate:
    """Compiled once per process."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises ModelFolderError when the template does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFolderError(
                f"the chat template does not compile: line {error.lineno}: {error.message}"
            ) from None

    def render(
        self,
        messages: list[dict[str, Any]],  # Any: JSON
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        documents: list[dict[str, Any]] | None,
        variables: dict[str, Any],
    ) -> str:
        """The prompt text. Raises InvalidRequest when the template refuses or fails."""
        try:
            text = self._template.render(
                **{
                    **self._special_tokens,
                    **variables,
                    "messages": messages,
                    "tools": None,
                    "documents": documents,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refused these messages: {error}", param="messages") from None
        except Exception as error:  # a template is code of the model's: whatever it raises is this request's fault
            raise InvalidRequest(
                f"the chat template failed on these messages: {type(error).__name__}: {error}", param="messages"
            ) from None
        if len(text) > MAX_RENDERED_CHARS:
            raise InvalidRequest(f"the rendered chat has {len(text)} characters", param="messages")
        return _cut_behind_final_message(text, messages) if continue_final_message else text


def build_chat_template(model: ModelFolder) -> ChatTemplate | None:
    """None when the model has no template: it serves completions only."""
    if model.chat_template is None:
        return None
    return ChatTemplate(model.chat_template, model.special_tokens)


def _cut_behind_final_message(text: str, messages: list[dict[str, Any]]) -> str:
    """Drop what the template put behind the last message, so that the model goes on writing it."""
    final = str(messages[-1]["content"]).strip()
    at = text.rfind(final)
    if at < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template does not render the last message as it is", param="messages"
        )
    return text[: at + len(final)]


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Without the HTML escapes of Jinja's own filter: templates show tools and arguments to a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's way to declare a tag

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> Any:
        return caller()
