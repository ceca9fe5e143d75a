"""However an answer is cut into pieces, its reasoning and its content are the same, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from apiserver.output_parts import Content, Part, Reasoning
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.reasoning.style import Phase, ReasoningStyle
from tests.property.pieces import cut, cuts

STYLE = ReasoningStyle("<a>", "</a>")
ANSWERS = st.lists(st.sampled_from(["<a>", "</a>", "<", "</", "a", ">", " ", "b日"]), max_size=12).map("".join)


def split(pieces: list[str], phase: Phase) -> tuple[str, str]:
    """Reasoning and content."""
    splitter = ReasoningSplitter(STYLE, phase)
    parts: list[Part] = []
    for piece in pieces:
        simple = splitter.simple_part_or_none(piece)
        parts += splitter.feed(piece) if simple is None else [simple]
    parts += splitter.finish()
    return joined(parts, Reasoning), joined(parts, Content)


def joined(parts: list[Part], *kinds: type[Content] | type[Reasoning]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content | Reasoning) and isinstance(part, kinds))


@given(answer=ANSWERS, places=cuts(), phase=st.sampled_from(Phase))
def test_any_pieces_give_the_same_split(answer: str, places: list[int], phase: Phase) -> None:
    splitter = ReasoningSplitter(STYLE, phase)
    whole = splitter.feed(answer) + splitter.finish()

    assert split(cut(answer, places), phase) == (joined(whole, Reasoning), joined(whole, Content))


@given(answer=ANSWERS, phase=st.sampled_from(Phase))
def test_only_the_two_markers_and_space_before_them_are_taken_out(answer: str, phase: Phase) -> None:
    reasoning, content = split(list(answer), phase)

    rest = answer
    if phase in (Phase.UNDECIDED, Phase.OPENING) and answer.lstrip().startswith("<a>"):
        rest = answer.lstrip().removeprefix("<a>")
        phase = Phase.THINKING
    if phase in (Phase.OPENING, Phase.THINKING):
        assert (reasoning, content) == (rest.partition("</a>")[0], rest.partition("</a>")[2])
    else:
        assert (reasoning, content) == ("", rest)


@given(answer=ANSWERS, places=cuts())
def test_what_is_held_back_could_become_a_marker(answer: str, places: list[int]) -> None:
    splitter = ReasoningSplitter(STYLE, Phase.THINKING)
    given_out = ""
    fed = ""
    for piece in cut(answer, places):
        fed += piece
        given_out += joined(splitter.feed(piece), Content, Reasoning)
        if "</a>" not in fed:
            held = fed[len(given_out) :]
            assert given_out + held == fed and "</a>".startswith(held)
