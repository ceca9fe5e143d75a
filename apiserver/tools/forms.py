"""In which form a model writes calls, by the names that vLLM's --tool-call-parser has for them."""

from types import MappingProxyType

from apiserver.tools import hermes, llama3_json, mistral, qwen3_coder
from apiserver.tools.call_parser import CallParser
from apiserver.tools.hermes import HermesParser
from apiserver.tools.llama3_json import Llama3JsonParser
from apiserver.tools.mistral import MistralParser
from apiserver.tools.pythonic import PythonicParser
from apiserver.tools.qwen3_coder import Qwen3CoderParser
from config.settings import ServerSettings

FORMS: MappingProxyType[str, type[CallParser]] = MappingProxyType(
    {
        "hermes": HermesParser,
        "llama3_json": Llama3JsonParser,
        "mistral": MistralParser,
        "pythonic": PythonicParser,
        "qwen3_coder": Qwen3CoderParser,
        "qwen3_xml": Qwen3CoderParser,
    }
)
SIGNS = (
    ((qwen3_coder.FUNCTION, qwen3_coder.PARAMETER), "qwen3_coder"),
    ((hermes.START,), "hermes"),
    ((mistral.START,), "mistral"),
    ((llama3_json.TAG,), "llama3_json"),
    (('{"name": function name, "parameters": ',), "llama3_json"),
    (("[func_name1(params_name1=",), "pythonic"),
)
"""What a template says to the model, or renders of its earlier calls; the first that is there in all its pieces."""


def form_or_none(settings: ServerSettings, chat_template: str | None) -> type[CallParser] | None:
    """The operator's choice, or what the chat template shows."""
    name = settings.tool_call_parser
    if name == "none":
        return None
    if name != "auto":
        return FORMS[name]
    template = chat_template or ""
    return next((FORMS[form] for signs, form in SIGNS if all(sign in template for sign in signs)), None)
