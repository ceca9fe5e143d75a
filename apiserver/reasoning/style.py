"""How a model marks its reasoning, by the names that vLLM's --reasoning-parser has for them."""

from enum import Enum
from types import MappingProxyType

from msgspec import Struct

from config.settings import ServerSettings


class Phase(Enum):
    """Where in its answer a model is."""

    UNDECIDED = "the answer may begin with the start marker, else it is content"
    OPENING = "the answer is reasoning, which may begin with the start marker"
    THINKING = "inside the reasoning"
    ANSWERING = "behind it"


class ReasoningStyle(Struct, frozen=True):
    start: str
    end: str
    always_thinks: bool = (
        False  # reasoning comes first even where neither the prompt nor the answer shows a start marker
    )

    def phase_after(self, prompt: str) -> Phase:
        """Where the answer to a rendered prompt begins: templates open the reasoning, or close it to switch it off."""
        tail = prompt.rstrip()
        if tail.endswith(self.start):
            return Phase.THINKING
        if tail.endswith(self.end):
            return Phase.ANSWERING
        return Phase.OPENING if self.always_thinks else Phase.UNDECIDED

    def phase_within(self, answer: str) -> Phase:
        """Where an answer that has begun goes on."""
        return Phase.THINKING if answer.rfind(self.start) > answer.rfind(self.end) else Phase.ANSWERING


STYLES = MappingProxyType(
    {
        "deepseek_r1": ReasoningStyle("<think>", "</think>", always_thinks=True),
        "qwen3": ReasoningStyle("<think>", "</think>", always_thinks=True),
        "glm45": ReasoningStyle("<think>", "</think>"),
        "mistral": ReasoningStyle("[THINK]", "[/THINK]"),
        "seed_oss": ReasoningStyle("<seed:think>", "</seed:think>", always_thinks=True),
    }
)
_RECOGNISED = ("glm45", "mistral", "seed_oss")  # one for each pair of markers, the careful one first


def style_or_none(settings: ServerSettings, chat_template: str | None) -> ReasoningStyle | None:
    """The operator's choice. `auto` takes the markers that the chat template names, both of them, and counts as reasoning
    only what stands between them; so a model that does not think loses nothing."""
    name = settings.reasoning_parser
    if name == "none":
        return None
    if name == "delimiters":
        assert settings.reasoning_start_str and settings.reasoning_end_str  # config.checks
        return ReasoningStyle(settings.reasoning_start_str, settings.reasoning_end_str)
    if name != "auto":
        return STYLES[name]
    template = chat_template or ""
    for style in map(STYLES.__getitem__, _RECOGNISED):
        if style.start in template and style.end in template:
            return ReasoningStyle(style.start, style.end)
    return None
