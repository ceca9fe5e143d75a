"""Chat templates that come with requests, where the operator trusts those who send them (--trust-request-chat-template).

They run in the sandbox of the model's own template, beside the event loop, and are bounded on top of it: in size, in how
long one rendering takes, and in what multiplication makes. What a template keeps in memory meanwhile is not.
"""

import asyncio
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from apiserver.chat_template import ChatTemplate, Sandbox
from apiserver.errors import InvalidRequest
from config.model_folder import ModelFolderError

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_RENDER_S = 2.0
MAX_PRODUCT = 1 << 20  # a product of numbers, or the length of a repeated sequence
NUM_KEPT = 8  # compiled

T = TypeVar("T")

_FILE = "<template>"  # what Jinja calls a template that is no file


class RequestSandbox(Sandbox):
    """Multiplication is looked at before it is done, also while a template is compiled."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # Any: a template's values
        if operator == "**" or _size(left) * _size(right) > MAX_PRODUCT:
            raise SecurityError(f"{operator} is bounded in a request's chat template")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> float:
    if isinstance(value, int | float):
        return abs(value)
    return len(value) if hasattr(value, "__len__") else 1


class RequestTemplates:
    """Those of one worker: the last ones are kept compiled."""

    def __init__(self, special_tokens: dict[str, str], *, is_trusted: bool) -> None:
        self._special_tokens, self._is_trusted = special_tokens, is_trusted
        self._kept: OrderedDict[str, ChatTemplate] = OrderedDict()

    async def run(self, source: str, render: Callable[[ChatTemplate], T]) -> T:
        """Raises InvalidRequest, also where nobody may send one, or `render` takes too long."""
        if not self._is_trusted:
            raise InvalidRequest(
                "chat_template: this server takes no chat templates from requests (--trust-request-chat-template)",
                param="chat_template",
            )
        if len(source) > MAX_TEMPLATE_CHARS:
            raise InvalidRequest(f"chat_template has more than {MAX_TEMPLATE_CHARS} characters", param="chat_template")
        return await asyncio.to_thread(self._run, source, render)

    def _run(self, source: str, render: Callable[[ChatTemplate], T]) -> T:
        with _time_limit(MAX_RENDER_S):
            return render(self._template(source))

    def _template(self, source: str) -> ChatTemplate:
        template = self._kept.pop(source, None)
        if template is None:
            template = self._compiled(source)
        self._kept[source] = template
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return template

    def _compiled(self, source: str) -> ChatTemplate:
        try:
            return ChatTemplate(source, self._special_tokens, sandbox=RequestSandbox)
        except ModelFolderError as error:
            raise InvalidRequest(f"chat_template: {error}", param="chat_template") from None
        except (RecursionError, MemoryError, ValueError, SecurityError) as error:
            message = f"chat_template: it cannot be compiled: {type(error).__name__}"
            raise InvalidRequest(message, param="chat_template") from None


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Of what this thread runs of templates: looked at with each line of them."""
    end_s = time.monotonic() + limit_s

    def on_line(_frame: FrameType, _event: str, _argument: object) -> Any:  # Any: a trace function returns itself
        if time.monotonic() > end_s:
            raise InvalidRequest(f"chat_template takes more than {limit_s:g} s to render", param="chat_template")
        return on_line

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        return on_line(frame, event, argument) if frame.f_code.co_filename == _FILE else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)
