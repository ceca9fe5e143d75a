"""API keys from a file: what the file may say, what the limits are, over all workers of a fleet; and its changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.errors import KeyLimitReached
from apiserver.keyring import Headers, Holder, Keyring
from config.api_keys import KeyFileError, digest_of, read_api_keys
from ipc.key_page import NUM_ROWS, KeyPages, create_key_segment
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

FILE = """
[alice]
key = "sk-alice"
requests_per_minute = 3
tokens_per_minute = 1000
max_concurrent_requests = 2
[bob]
sha256 = "{}"
"""


class Fleet:
    """Workers with pages of their own and one clock."""

    def __init__(self, num_workers: int) -> None:
        self.now_s = 600.0
        self.views = [create_key_segment(slot).view for slot in range(num_workers)]
        self.alive = [True] * num_workers
        self.pages = [self.start(slot) for slot in range(num_workers)]

    def start(self, slot: int) -> KeyPages:
        return KeyPages(self.views, slot, self.alive.__getitem__, clock_s=lambda: self.now_s)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE.format(digest_of(b"sk-bob").hex()))
    return path


def holder_of(keyring: Keyring, key: str) -> Holder:
    holder = keyring.holder_or_none(digest_of(key.encode()))
    assert holder is not None
    return holder


def refused(begin: Callable[[], Headers]) -> KeyLimitReached:
    with pytest.raises(KeyLimitReached) as caught:
        begin()
    return caught.value


def test_a_file_names_keys_in_plain_and_as_digests(file: Path) -> None:
    keyring = Keyring(("sk-flag",), file)

    assert [holder_of(keyring, key).key.name for key in ("sk-flag", "sk-alice", "sk-bob")] == [
        "api-key-1", "alice", "bob",
    ]  # fmt: skip
    assert keyring.holder_or_none(digest_of(b"sk-eve")) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no key"),
        ("[a", "not valid TOML"),
        ("[a]", "needs either key or sha256"),
        ('[a]\nkey = "sk-secret"\nsha256 = "00"', "sha256"),
        ('[a]\nkey = ""', "key"),
        ('[a]\nkey = "sk-secret"\nrequests_per_hour = 3', "requests_per_hour"),
        ('[a]\nkey = "sk-secret"\nrequests_per_minute = 0', "requests_per_minute"),
        ('[a]\nkey = "sk-secret"\n[b]\nkey = "sk-secret"', "same key"),
        ('a = "sk-secret"', "[a]"),
    ],
)
def test_a_wrong_file_is_one_line_that_shows_no_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)

    with pytest.raises(KeyFileError) as caught:
        read_api_keys(path)

    assert complaint in str(caught.value) and "sk-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_change_is_taken_up_and_a_mistake_is_not(file: Path) -> None:
    keyring = Keyring((), file)
    link = file.with_name("data")

    file.with_name("new").write_text('[carol]\nkey = "sk-carol"')
    link.symlink_to(file.with_name("new"))
    link.replace(file)  # as Kubernetes replaces a Secret
    keyring.reload()
    assert keyring.holder_or_none(digest_of(b"sk-alice")) is None
    assert holder_of(keyring, "sk-carol").key.name == "carol"

    file.with_name("new").write_text("[broken")
    keyring.reload()
    assert holder_of(keyring, "sk-carol").key.name == "carol"

    file.unlink()
    keyring.reload()
    assert holder_of(keyring, "sk-carol").key.name == "carol"


def test_requests_of_all_workers_count_together(file: Path) -> None:
    fleet = Fleet(3)
    rings = [Keyring((), file, pages) for pages in fleet.pages]
    alice = holder_of(rings[0], "sk-alice")

    for ring in rings:
        headers = dict(ring.begin(alice))
        ring.end(alice, 0)

    assert headers[b"x-ratelimit-limit-requests"] == b"3" and headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-reset-requests"] == b"2m0s"
    error = refused(lambda: rings[0].begin(alice))
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert dict(error.headers)[b"retry-after"] == b"80"  # in the next minute, once 3 x (1 - 20/60) + 1 are 3


def test_what_retry_after_says_is_true(file: Path) -> None:
    fleet = Fleet(1)
    (ring,) = (Keyring((), file, pages) for pages in fleet.pages)
    alice = holder_of(ring, "sk-alice")
    for _ in range(3):
        ring.begin(alice)
        ring.end(alice, 0)

    fleet.now_s += 78
    wait_s = refused(lambda: ring.begin(alice)).retry_after_s
    fleet.now_s += wait_s

    ring.begin(alice)


def test_tokens_count_when_a_request_ends(file: Path) -> None:
    fleet = Fleet(2)
    rings = [Keyring((), file, pages) for pages in fleet.pages]
    alice = holder_of(rings[0], "sk-alice")

    rings[0].begin(alice)
    rings[0].end(alice, 1500)

    assert "tokens per minute" in refused(lambda: rings[1].begin(alice)).message
    fleet.now_s += 120
    rings[1].begin(alice)


def test_requests_at_once_are_bounded_and_the_dead_hold_none(file: Path) -> None:
    fleet = Fleet(2)
    rings = [Keyring((), file, pages) for pages in fleet.pages]
    alice = holder_of(rings[0], "sk-alice")
    rings[0].begin(alice)
    rings[0].begin(alice)
    assert "in flight" in refused(lambda: rings[1].begin(alice)).message

    fleet.alive[0] = False
    rings[1].begin(alice)  # the third of this minute
    rings[1].end(alice, 0)
    fleet.alive[0] = True
    successor = fleet.start(0)

    assert successor.use_of(alice.key_id).in_flight == 0
    assert successor.use_of(alice.key_id).requests == 3


def test_a_key_without_limits_is_not_counted(file: Path) -> None:
    fleet = Fleet(1)

    assert not holder_of(Keyring((), file, fleet.pages[0]), "sk-bob").is_limited


def test_rows_of_forgotten_keys_are_taken_again() -> None:
    fleet = Fleet(1)
    (pages,) = fleet.pages

    for key_id in range(1, 3 * NUM_ROWS, 7):
        pages.set_known(frozenset({key_id}))
        pages.begin(key_id)
        pages.end(key_id, 5)
        assert pages.use_of(key_id).tokens == 5


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([7, 7 + NUM_ROWS]), st.sampled_from([0.0, 10.0, 65.0])),
        max_size=60,
    )
)
def test_pages_count_as_one_list_would(steps: list[tuple[int, int, float]]) -> None:
    fleet = Fleet(3)
    for pages in fleet.pages:
        pages.set_known(frozenset({7, 7 + NUM_ROWS}))
    model: list[tuple[int, int]] = []  # key, minute

    for slot, key_id, pause_s in steps:
        fleet.now_s += pause_s
        fleet.pages[slot].begin(key_id)
        model.append((key_id, int(fleet.now_s // 60)))
        use = fleet.pages[(slot + 1) % 3].use_of(key_id)
        minutes = [minute for key, minute in model if key == key_id]
        assert use.requests == minutes.count(int(fleet.now_s // 60))
        assert use.requests_before == minutes.count(int(fleet.now_s // 60) - 1)
        assert use.in_flight == len(minutes)


def test_the_server_tells_limits_and_refuses_in_openais_words(tmp_path: Path, file: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    rig = WorkerRig(folder, keyring=Keyring((), file, Fleet(1).pages[0]))
    alice = {"authorization": "Bearer sk-alice"}
    body = {"prompt": "hello", "max_tokens": 2}

    assert rig.post("/v1/completions", body).status_code == 401
    answers = [rig.post("/v1/completions", body, headers=alice) for _ in range(3)]
    last = rig.post("/v1/completions", body, headers=alice)

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0"]
    used = answers[0].json()["usage"]["total_tokens"]
    assert answers[1].headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
    assert last.status_code == 429 and int(last.headers["retry-after"]) >= 1
    assert error_of(last)["type"] == "rate_limit_error" and error_of(last)["code"] == "rate_limit_exceeded"
    assert "alice" in error_of(last)["message"] and "sk-alice" not in last.text
    assert rig.get("/v1/models", headers=alice).status_code == 200  # only what makes the server work is counted
    bob = rig.post("/v1/completions", body, headers={"authorization": "Bearer sk-bob"})
    assert bob.status_code == 200 and "x-ratelimit-limit-requests" not in bob.headers


def test_a_client_that_is_refused_or_fails_holds_nothing(tmp_path: Path, file: Path) -> None:
    pages = Fleet(1).pages[0]
    rig = WorkerRig(make_model_folder(tmp_path / "tiny"), keyring=Keyring((), file, pages))

    assert rig.post("/v1/completions", {}, headers={"authorization": "Bearer sk-alice"}).status_code == 400

    key_id = int.from_bytes(digest_of(b"sk-alice")[:8], "little")
    assert (pages.use_of(key_id).requests, pages.use_of(key_id).in_flight) == (1, 0)
