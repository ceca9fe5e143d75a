"""Chat messages become the prompt text, by the model's own Jinja template, exactly as transformers renders it.

The template is code from a model folder, so it runs in Jinja's sandbox and its output is bounded; a template that fails is
the request's fault (400) and nobody else's. Environment and treatment of messages are those of transformers'
`apply_chat_template` (utils/chat_template_utils.py, 5.23).
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from apiserver.errors import InvalidRequest
from config.model_folder import ModelFolder, ModelFolderError

MAX_RENDERED_CHARS = 64 * 1024 * 1024
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Variables that have a field of their own in a request."""

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # its trailing space shows whether the template strips messages
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Compiled once per process."""

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        *,
        max_chars: int = MAX_RENDERED_CHARS,
        sandbox: "type[Sandbox] | None" = None,
    ) -> None:
        """Raises ModelFolderError when the template does not compile."""
        environment = (sandbox or Sandbox)(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens, self._max_chars = special_tokens, max_chars
        try:
            self._template = environment.from_string(source)
            self._template.globals = dict(self._template.globals)  # a ChainMap is walked key by key per rendering
            tree = environment.parse(source)
            self.takes_documents = "documents" in meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFolderError(
                f"the chat template does not compile: line {error.lineno}: {error.message}"
            ) from None
        self.takes_parts = _iterates_over_content(tree)
        self.knows_developer = "'developer'" in source or '"developer"' in source

    def render(
        self,
        messages: Sequence[dict[str, Any]],  # Any: JSON
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt text. `messages` is not empty; a content is text or, where `takes_parts`, a list of text parts.

        Raises InvalidRequest when the template refuses or fails.
        """
        chat = [_with_reasoning_aliases(message) for message in messages]
        if continue_final_message:
            chat[-1] = _with_tag(chat[-1])
        text = self._run(
            {
                **self._special_tokens,
                **(variables or {}),
                "messages": chat,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_tag(text) if continue_final_message else text

    def _run(self, variables: dict[str, Any]) -> str:
        pieces = []
        num_chars = 0
        try:
            context = self._template.new_context(variables)
            for piece in self._template.root_render_func(context):
                num_chars += len(piece)
                if num_chars > self._max_chars:
                    raise InvalidRequest(
                        f"the rendered chat has more than {self._max_chars} characters", param="messages"
                    )
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refused these messages: {error}", param="messages") from None
        except InvalidRequest:
            raise
        except Exception as error:  # a template is code of the model's: whatever it raises is this request's fault
            raise InvalidRequest(
                f"the chat template failed on these messages: {type(error).__name__}: {error}", param="messages"
            ) from None
        return "".join(pieces)

    @cached_property
    def takes_late_system(self) -> bool:
        """Whether a system message may stand behind others; some templates refuse it."""
        turns = [{"role": role, "content": "a"} for role in ("system", "user", "system", "user")]
        try:
            self.render(turns, add_generation_prompt=True)
        except InvalidRequest:
            return False
        return True


def build_chat_template(model: ModelFolder) -> ChatTemplate | None:
    """None when the model has no template: it serves completions only."""
    if model.chat_template is None:
        return None
    return ChatTemplate(model.chat_template, model.special_tokens)


def _with_reasoning_aliases(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under every name that templates read it by."""
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_tag(message: dict[str, Any]) -> dict[str, Any]:
    """Mark the end of the content, so that what the template puts behind it can be found."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + _CONTINUE_TAG}
    if not content:
        raise InvalidRequest("continue_final_message: the final message has no text to continue", param="messages")
    *before, last = content
    return {**message, "content": [*before, {**last, "text": last["text"] + _CONTINUE_TAG}]}


def _cut_at_tag(text: str) -> str:
    at = text.rfind(_CONTINUE_TAG.strip())
    if at < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template does not render the final message", param="messages"
        )
    is_spacing_kept = text.startswith(_CONTINUE_TAG, at)
    return text[:at] if is_spacing_kept else text[:at].rstrip()


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether the template takes a message's content apart itself; otherwise it wants plain text."""
    names = {"content"}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    match node:
        case nodes.Name(name=name):
            return name in names
        case nodes.Getattr(attr=attribute):
            return bool(attribute == "content")
        case nodes.Getitem(arg=nodes.Const(value=key)):
            return bool(key == "content")
        case nodes.Filter(node=inner):
            return _is_content(inner, names)
        case _:
            return False


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter: templates show tools and arguments to a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


_LOOP_ATTRIBUTES = frozenset({"first", "index", "index0", "last", "length", "nextitem", "previtem"})


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, which asks five functions whether an attribute is safe; of a loop these are, and templates ask for little
    else."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's way to declare a tag

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> Any:  # Any: Jinja's macro and its result
        return caller()
