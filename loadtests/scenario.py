"""What simulated users do, as a file of loadtests/scenarios; and the questions they ask.

users: so many at once, each asking again when it has its answer (and has paused); `turns` questions are one chat
burst_every_s: all users ask at the same moment, again and again
arrivals_per_s: no users but arrivals at random moments (Poisson), however slow the answers are
leave_share: so many of the answers are left by closing the connection, after `leave_after_events` events
"""

import random
import tomllib
from pathlib import Path
from pydoc_data import topics
from typing import Any

import msgspec

FOLDER = Path(__file__).with_name("scenarios")


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    description: str
    seconds: float
    prompt_words: int
    max_tokens: int
    users: int = 1
    shared_words: int = 0
    """With which every prompt begins: a system message."""
    turns: int = 1
    pause_s: float = 0.0
    """Mean of what a user waits before the next question."""
    burst_every_s: float = 0.0
    arrivals_per_s: float = 0.0
    leave_share: float = 0.0
    leave_after_events: int = 1

    def __post_init__(self) -> None:
        positive = (self.seconds, self.prompt_words, self.max_tokens, self.users, self.turns, self.leave_after_events)
        if min(positive) <= 0:
            raise ValueError(
                f"seconds, prompt_words, max_tokens, users, turns, leave_after_events: {positive}, not > 0"
            )
        if min(self.shared_words, self.pause_s, self.burst_every_s, self.arrivals_per_s) < 0:
            raise ValueError("shared_words, pause_s, burst_every_s and arrivals_per_s cannot be negative")
        if not 0 <= self.leave_share <= 1:
            raise ValueError(f"leave_share is a share: {self.leave_share}")
        if self.arrivals_per_s and (self.burst_every_s or self.pause_s or self.turns > 1 or self.users > 1):
            raise ValueError("arrivals_per_s knows no users: no users, turns, pause_s or burst_every_s beside it")
        if self.burst_every_s and self.pause_s:
            raise ValueError("burst_every_s says when users ask: no pause_s beside it")


def read_scenario(name: str) -> Scenario:
    """Of the folder by name, or any file by its path. Raises ValueError that names the file, and those there are."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"no scenario {name}: there are {known}, or give the path of a file")
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Scenario)
    except (ValueError, tomllib.TOMLDecodeError) as error:  # msgspec's errors are ValueErrors
        raise ValueError(f"{path}: {error}") from None


class Questions:
    """The chats of one user: prompts of English words, the same for the same seed."""

    def __init__(self, scenario: Scenario, seed: str) -> None:
        self._scenario = scenario
        self._random = random.Random(seed)
        self._messages: list[dict[str, str]] = []
        self._num_asked = 0

    def next(self) -> list[dict[str, str]]:
        """Messages of the next request: of a new chat, or of the one that is going on."""
        if self._num_asked % self._scenario.turns == 0:
            shared = {"role": "system", "content": " ".join(_WORDS[: self._scenario.shared_words])}
            self._messages = [shared] if self._scenario.shared_words else []
        self._num_asked += 1
        start = self._random.randrange(len(_WORDS))
        words = (_WORDS[start:] + _WORDS[:start]) * (self._scenario.prompt_words // len(_WORDS) + 1)
        question = " ".join(words[: self._scenario.prompt_words])
        self._messages = [*self._messages, {"role": "user", "content": question}]
        return self._messages

    def on_answer(self, text: str) -> None:
        self._messages = [*self._messages, {"role": "assistant", "content": text}]

    def will_leave(self) -> bool:
        """Of the answer that was asked for last."""
        return self._random.random() < self._scenario.leave_share

    def pause_s(self) -> float:
        """Exponential around the scenario's mean."""
        return self._random.expovariate(1 / self._scenario.pause_s) if self._scenario.pause_s else 0.0

    def until_arrival_s(self) -> float:
        """From one arrival to the next: exponential, so that arrivals are Poisson's."""
        return self._random.expovariate(self._scenario.arrivals_per_s)


def body_of(scenario: Scenario, messages: list[dict[str, str]], model: str) -> dict[str, Any]:  # Any: JSON
    """`model` may be empty: servers with one model need none. Every answer has its full length."""
    body = {
        "messages": messages, "max_tokens": scenario.max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return {"model": model, **body} if model else body


_WORDS = " ".join(topics.topics[name] for name in sorted(topics.topics)).split()
