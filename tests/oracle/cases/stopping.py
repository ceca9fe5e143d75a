"""What ends an answer, and what the answer says of it."""

from tests.oracle.cases.case import Case, chat, completion

COUNT = "1, 2, 3, 4, 5,"

CASES: list[Case] = [
    completion("stopping/string", prompt=COUNT, stop="9", max_tokens=32),
    completion("stopping/string-kept", prompt=COUNT, stop="9", max_tokens=32, include_stop_str_in_output=True),
    completion("stopping/first-of-two", prompt=COUNT, stop=["12", " 8,"], max_tokens=32),
    completion("stopping/across-tokens", prompt=COUNT, stop=", 9, 1", max_tokens=32),
    completion("stopping/never-seen", prompt=COUNT, stop=["xyzzy"], max_tokens=12),
    completion("stopping/empty-list", prompt=COUNT, stop=[]),
    completion("stopping/null", prompt=COUNT, stop=None),
    completion("stopping/token-id", stop_token_ids=[30], max_tokens=32),
    completion("stopping/token-id-kept", stop_token_ids=[30], max_tokens=32, include_stop_str_in_output=True),
    completion("stopping/token-id-and-string", stop_token_ids=[30], stop=["Paris"], max_tokens=32),
    completion("stopping/token-id-special-shown", stop_token_ids=[30], skip_special_tokens=False, max_tokens=32),
    completion("stopping/at-the-first-token", stop=[" Paris"], max_tokens=8),
    completion("stopping/min-tokens-before-string", prompt=COUNT, stop=["7"], min_tokens=10, max_tokens=40),
    completion("stopping/min-tokens-before-token-id", stop_token_ids=[30], min_tokens=10, max_tokens=40),
    completion("stopping/two-prompts", prompt=[COUNT, "10, 9, 8, 7,"], stop=["9", "4"], max_tokens=32),
    completion("stopping/n-2", prompt=COUNT, stop=["9"], n=2, temperature=1.0, top_k=1, max_tokens=32),
    chat("stopping/chat-string", stop="capital", max_tokens=32),
    chat("stopping/chat-string-kept", stop="capital", max_tokens=32, include_stop_str_in_output=True),
    chat("stopping/chat-token-id", stop_token_ids=[30], max_tokens=32),
    chat("stopping/chat-end-of-sequence-as-stop-token", stop_token_ids=[2], max_tokens=64),
    chat("stopping/chat-end-of-sequence-ignored-but-stop-token", stop_token_ids=[2], ignore_eos=True, max_tokens=64),
    chat("stopping/chat-at-once", stop=["The"], max_tokens=8),
]
