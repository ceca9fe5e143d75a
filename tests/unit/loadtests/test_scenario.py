"""Every scenario there is loads, a wrong one says what is wrong, and questions are what the scenario says."""

from pathlib import Path

import msgspec
import pytest

from loadtests.scenario import FOLDER, Questions, Scenario, body_of, read_scenario

PLAIN = Scenario(description="plain", seconds=1, prompt_words=5, max_tokens=3)


def changed(**fields: object) -> Scenario:
    return msgspec.convert(msgspec.structs.asdict(PLAIN) | fields, Scenario)


def test_the_scenarios_there_are() -> None:
    names = {path.stem for path in FOLDER.glob("*.toml")}

    assert names == {"burst", "chat", "disconnect_storm", "long_prompt", "open_loop", "shared_prefix"}
    assert all(read_scenario(name).description for name in names)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("uesrs = 3", "uesrs"),
        ("users = 0", "not > 0"),
        ("max_tokens = -1", "not > 0"),
        ("leave_share = 1.5", "share"),
        ("pause_s = -1.0", "negative"),
        ("arrivals_per_s = 5.0\nusers = 3", "no users"),
        ("burst_every_s = 5.0\npause_s = 1.0", "burst_every_s"),
        ('users = "many"', "Expected `int`"),
        ("users =", "Invalid value"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    fields = {"description": '"d"', "seconds": "1", "prompt_words": "5", "max_tokens": "5"}
    kept = [f"{name} = {value}" for name, value in fields.items() if not line.startswith(name)]
    path.write_text("\n".join([*kept, line]))

    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        read_scenario(str(path))

    assert complaint in str(caught.value)


def test_an_unknown_name_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="burst, chat"):
        read_scenario("chatt")


def test_a_chat_grows_by_answers_and_ends_after_its_turns() -> None:
    questions = Questions(changed(turns=2, shared_words=3), "seed")

    first = questions.next()
    questions.on_answer("an answer")
    second, third = questions.next(), questions.next()

    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert second[:2] == first and second[2]["content"] == "an answer"
    assert len(third) == 2 and third[0] == first[0] and third[1] != first[1]
    assert [len(message["content"].split()) for message in first] == [3, 5]


def test_questions_are_those_of_the_seed() -> None:
    assert Questions(PLAIN, "a").next() == Questions(PLAIN, "a").next()
    assert Questions(PLAIN, "a").next() != Questions(PLAIN, "b").next()


def test_arrivals_come_at_the_rate_and_are_not_even() -> None:
    questions = Questions(changed(arrivals_per_s=20.0), "seed")

    waits_s = [questions.until_arrival_s() for _ in range(4000)]

    mean_s = sum(waits_s) / len(waits_s)
    variance = sum((wait_s - mean_s) ** 2 for wait_s in waits_s) / len(waits_s)
    assert mean_s == pytest.approx(1 / 20, rel=0.1)
    assert variance**0.5 == pytest.approx(mean_s, rel=0.1)  # of an exponential


def test_the_asked_share_leaves() -> None:
    questions = Questions(changed(leave_share=0.9), "seed")

    left = sum(questions.will_leave() for _ in range(2000))

    assert 1700 < left < 1900
    assert not any(Questions(PLAIN, "seed").will_leave() for _ in range(100))


def test_a_request_names_a_model_only_where_one_is_given() -> None:
    assert "model" not in body_of(PLAIN, [], "")
    assert body_of(PLAIN, [], "m")["model"] == "m"
