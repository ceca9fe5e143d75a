"""The token log: what every unfinished stream was given, whatever else went through the worker meanwhile."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from apiserver import token_log
from apiserver.token_log import TokenLog


def section(*pairs: tuple[int, int]) -> bytes:
    return array("I", [number for number, _ in pairs] + [token for _, token in pairs]).tobytes()


def tokens_of(log: TokenLog, *numbers: int) -> list[list[int]]:
    found = log.tokens_of(numbers)
    return [found[number].tolist() for number in numbers]


def test_tokens_come_back_by_stream_in_order() -> None:
    log = TokenLog(1 << 20)
    log.begin(1)
    log.note(section((1, 10)))
    log.begin(2)
    log.note(section((2, 20), (1, 11), (2, 21)))

    assert tokens_of(log, 1, 2, 3) == [[10, 11], [20, 21], []]


def test_a_stream_that_goes_on_keeps_what_it_had() -> None:
    log = TokenLog(1 << 20)
    log.begin(5, array("I", [1, 2]))
    log.note(section((5, 3)))

    assert tokens_of(log, 5) == [[1, 2, 3]]


def test_nothing_is_kept_for_streams_that_have_ended() -> None:
    log = TokenLog(1 << 20)
    for number in range(40):
        log.begin(number)
        for _ in range(10):
            log.note(section(*((number, token) for token in range(100))))
        log.end(number)

    assert log.num_bytes <= 2 * token_log.TRIM_BYTES
    assert not log._begun and not log._sorted


def test_behind_a_long_lived_stream_the_log_stays_within_its_bound() -> None:
    log = TokenLog(token_log.TRIM_BYTES)
    log.begin(1)
    for step in range(4000):
        log.note(section((1, step), *((other, 7) for other in range(2, 30))))

    assert log.num_bytes <= 2 * token_log.TRIM_BYTES
    assert tokens_of(log, 1) == [list(range(4000))]
    assert list(log._sorted) == [1], "nothing is kept of streams that nobody began"


@given(
    steps=st.lists(st.tuples(st.sampled_from(["begin", "end", "note"]), st.integers(1, 6)), max_size=80),
    max_bytes=st.sampled_from([0, 40, 1 << 20]),
)
def test_the_log_is_a_dictionary_of_lists(steps: list[tuple[str, int]], max_bytes: int) -> None:
    log, model = TokenLog(max_bytes), dict[int, list[int]]()
    log._trim_at = 0
    for position, (step, number) in enumerate(steps):
        if step == "begin" and number not in model:
            log.begin(number)
            model[number] = []
        elif step == "end":
            log.end(number)
            model.pop(number, None)
        elif step == "note":
            log.note(section((number, position), (7, position), (number, position + 1)))
            log._trim()
            if number in model:
                model[number] += [position, position + 1]

    found = log.tokens_of(list(model))
    assert {number: tokens.tolist() for number, tokens in found.items()} == model
