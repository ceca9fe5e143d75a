"""What leaves a host in a support archive: every known secret is gone, and the rest is as it was."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.redaction import Redactor, digests_of_key_file, digests_of_private_key

KEYS = ["correct-horse", "YWJjZA==", "k.9_x~7", "team-a:secret"]
PEM_LINES = ["MIGHAgEAMBMGByqGSM49AgEGCCqGSM49", "AwEHBG0wawIBAQQg0123456789abcdef"]
PEM = "\n".join(["-----BEGIN PRIVATE KEY-----", *PEM_LINES, "-----END PRIVATE KEY-----", ""])


def redactor(*secrets: str) -> Redactor:
    return Redactor(sha256(secret.encode()).digest() for secret in secrets)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "line",
    [
        "{}", "key={}", "key = '{}'", 'a="{}" b=2', '{{"key":"{}","status":200}}', "({}, {})", "[{}]", "id={};", "x:{}",
        "url?token={}&n=1", "/v1/{}/x", "{}:{}",
    ],
)  # fmt: skip
def test_a_known_key_is_gone_wherever_it_stands(key: str, line: str) -> None:
    cleaned = redactor(*KEYS).clean(line.format(key, key))

    assert key not in cleaned and "(hidden)" in cleaned


@given(st.lists(st.sampled_from([*KEYS, "plain", "=", " ", ",", '"', "\n", ":", "/"]), max_size=12).map(" ".join))
def test_words_that_stand_alone_are_judged_one_by_one(text: str) -> None:
    cleaned = redactor(*KEYS).clean(text)

    assert cleaned.split() == ["(hidden)" if word in KEYS else word for word in text.split()]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("authorization=Bearer abc.def-g", "authorization=Bearer (hidden)"),
        ("Authorization: basic dXNlcjpwYXNz,", "Authorization: basic (hidden),"),
        ('{"x-api-key":"anything","a":1}', '{"x-api-key":"(hidden)","a":1}'),
        ("TOKENFLEET_API_KEY=abc", "TOKENFLEET_API_KEY=(hidden)"),
        ("said sk-proj-12345678 once", "said (hidden) once"),
        ("http://user:pass@collector:4318/v1", "http://(hidden)@collector:4318/v1"),
        (f"before {PEM}after", "before (hidden)\nafter"),
        (PEM[:60], "(hidden)"),  # a log that ends inside it
    ],
)
def test_what_looks_like_a_secret_is_gone_though_nobody_knows_it(text: str, cleaned: str) -> None:
    assert redactor().clean(text) == cleaned


def test_a_text_without_secrets_is_untouched() -> None:
    line = "2026-01-31T12:00:00.123Z info    worker 0: request finished method=POST path=/v1/completions ms=1.5 \t'x'\n"

    assert redactor(*KEYS).clean(line * 3) == line * 3


def test_a_key_file_is_known_by_its_digests_alone(tmp_path: Path) -> None:
    hashed = sha256(b"only-its-hash-is-here").hexdigest()
    (tmp_path / "keys.toml").write_text(f'[a]\nkey = "plain-key"\n[b]\nsha256 = "{hashed}"')

    cleaned = Redactor(digests_of_key_file(tmp_path / "keys.toml")).clean("plain-key and only-its-hash-is-here")

    assert cleaned == "(hidden) and (hidden)"


def test_every_line_of_a_private_key_is_known(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PEM)

    cleaned = Redactor(digests_of_private_key(tmp_path / "key.pem")).clean("\n".join(PEM_LINES))

    assert cleaned == "(hidden)\n(hidden)"
