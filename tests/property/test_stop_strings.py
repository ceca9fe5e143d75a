"""Stop strings are found wherever the pieces break, and nothing that could begin one is given out too early."""

from hypothesis import given
from hypothesis import strategies as st

from apiserver.stop_strings import StopStrings

SHORT = st.text("ab日", max_size=12)
STOPS = st.lists(st.text("ab日", min_size=1, max_size=4), min_size=1, max_size=3)
PIECES = st.lists(SHORT, max_size=8)


@given(pieces=PIECES, stop=st.text("ab日", min_size=1, max_size=5), include=st.booleans())
def test_one_stop_string_cuts_the_text_at_its_first_place_in_any_pieces(
    pieces: list[str], stop: str, include: bool
) -> None:
    strings = StopStrings([stop], include_in_output=include)

    given_out = "".join(strings.feed(piece) for piece in pieces) + strings.finish()

    before, found, _ = "".join(pieces).partition(stop)
    assert given_out == before + (found if include else "")
    assert strings.matched == (found or None)


@given(pieces=PIECES, stops=STOPS)
def test_of_several_the_first_to_be_complete_ends_the_text_in_any_pieces(pieces: list[str], stops: list[str]) -> None:
    strings, text = StopStrings(stops, include_in_output=True), "".join(pieces)

    given_out = "".join(strings.feed(piece) for piece in pieces) + strings.finish()

    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert given_out == text[: ends[0] if ends else len(text)]


@given(pieces=PIECES, stops=STOPS)
def test_held_back_is_the_longest_end_that_could_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    strings = StopStrings(stops, include_in_output=False)
    text, given_out = "", ""

    for piece in pieces:
        text += piece
        given_out += strings.feed(piece)
        if strings.matched is not None:
            return
        held = text[len(given_out) :]
        starts = [text[at:] for at in range(len(text)) if any(stop.startswith(text[at:]) for stop in stops)]
        assert held == (starts[0] if starts else "")


@given(early=PIECES, late=PIECES, stops=STOPS)
def test_a_match_ends_behind_the_pieces_that_may_not_match(early: list[str], late: list[str], stops: list[str]) -> None:
    strings = StopStrings(stops, include_in_output=True)

    given_out = "".join(strings.feed(piece, may_match=False) for piece in early)
    assert strings.matched is None
    given_out += "".join(strings.feed(character) for piece in late for character in piece) + strings.finish()

    text, first = "".join(early + late), len("".join(early)) + 1
    ends = [end for end in range(first, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert given_out == text[: ends[0] if ends else len(text)]


def test_of_two_in_one_piece_the_one_that_ends_first_wins_and_of_two_that_end_together_the_first_named() -> None:
    earlier = StopStrings(["bcd", "c"], include_in_output=False)
    first_named = StopStrings(["bc", "c"], include_in_output=False)

    assert (earlier.feed("abcd"), first_named.feed("abcd")) == ("ab", "a")
    assert (earlier.matched, first_named.matched) == ("c", "bc")
    assert earlier.feed("more") == first_named.feed("more") == ""
