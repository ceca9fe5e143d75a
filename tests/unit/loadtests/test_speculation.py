"""What the measurement of prompt lookup reads and writes."""

from typing import Any

import pytest

from loadtests import speculation
from loadtests.speculation import Drafts, Figures, Messages


class FakeServer:
    """Takes so long for everything; each of its passes has four tokens drafted, of which three are right."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.num_passes = name, seconds, 0


def answer_all(server: FakeServer, asked: list[Messages], num_streams: int, max_tokens: int) -> tuple[float, list[str]]:
    server.num_passes += max_tokens
    return server.seconds, [f"{server.name if place == 0 else ''}{place}" for place in range(len(asked))]


def test_a_round_is_measured_against_the_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "answer_all", answer_all)
    monkeypatch.setattr(speculation, "drafts_of", lambda server: Drafts(*(server.num_passes * n for n in (1, 4, 3))))
    plain: Any = FakeServer("plain", 4.0)
    drafting: Any = FakeServer("drafting", 2.0)
    drafting.num_passes = 1000  # what was counted before is not of this round
    figures = Figures()

    speculation.measure(plain, drafting, speculation.chats("list"), 8, 10, figures)

    assert (figures.plain_tok_s, figures.drafted_tok_s, figures.ratios) == ([20.0], [40.0], [2.0])
    assert (figures.accepted_share, figures.accepted_per_draft) == ([75.0], [3.0])
    assert (figures.num_same, figures.num_answers) == (7, 8)


@pytest.mark.parametrize("kind", ["list", "quote", "prose"])
def test_no_two_chats_of_a_kind_are_the_same(kind: str) -> None:
    texts = [messages[0]["content"] for messages in speculation.chats(kind)]

    assert len(set(texts)) == speculation.NUM_PROMPTS
