"""What an answer says beside its text, where the client asks for it: most ask for nothing."""

from msgspec import Struct


class AnswerDetails(Struct, frozen=True):
    has_prompt_ids: bool = False
    has_token_ids: bool = False  # of the output
    has_running_usage: bool = False  # on every event of a stream
    stream_interval: int = 1  # tokens that share an event, but for the first and the last one
